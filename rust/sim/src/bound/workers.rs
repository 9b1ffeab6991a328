//! A live fleet as a bound sees it: learned curves and reported limits, with every unknown limit out of the way.
//!
//! Workers may differ. The bound knows one curve per pool and a speed per worker. The curve is the mean over the workers; a
//! worker's speed is the largest ratio of the mean curve to its own curve over all work that it may get. Time on the mean
//! curve over the speed is then below the worker's own time everywhere, so the bound holds. Cost: O(workers).

use serde::{Deserialize, Serialize};
use wardrop_core::latency::Prior;

use crate::spec::{EngineSpec, FleetSpec, PoolSpec, Role, TransferSpec};
use crate::timing::Timing;

/// A limit that binds nothing. It stays below every limit of an engine's numbers.
const UNLIMITED: u32 = u32::MAX / 2 - 1;
/// Sequences and KV tokens at which the step curves of workers without known limits are compared.
const FAR_SEQUENCES: f64 = 4_096.0;
const FAR_KV_TOKENS: f64 = 1e8;
/// Ratio of two neighbouring prompt lengths at which prefill curves are compared.
const LENGTH_RATIO: f64 = 1.2;
/// Between two such lengths, a ratio of quadratic curves exceeds its ends by less than this factor.
const BETWEEN_LENGTHS: f64 = 1.01;

/// The workers of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundFleet {
    /// Tokens of a block.
    pub block_size: u32,
    /// One aggregated pool, or a prefill pool and a decode pool.
    pub pools: Vec<BoundPool>,
}

/// The workers of one role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundPool {
    /// Part of a request that the workers compute.
    pub role: Role,
    /// The workers, in any order.
    pub workers: Vec<BoundWorker>,
}

/// One worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundWorker {
    /// Learned latency curves.
    pub curves: Prior,
    /// KV blocks of the device; `None` where unknown.
    pub kv_blocks: Option<u32>,
    /// Sequences that run at once; `None` where unknown.
    pub max_num_seqs: Option<u32>,
    /// Tokens of one pass; `None` where unknown.
    pub max_num_batched_tokens: Option<u32>,
}

impl BoundFleet {
    /// The fleet in the terms of the bound. Transfers cost nothing, because their cost is not learned.
    pub fn spec(&self) -> FleetSpec {
        FleetSpec {
            pools: self.pools.iter().map(|pool| pool.spec(self.block_size)).collect(),
            transfer: TransferSpec {
                bandwidth_bytes_per_s: f64::MAX,
                ..TransferSpec::default()
            },
            ..FleetSpec::default()
        }
    }

    /// KV blocks of all workers whose memory is known.
    pub fn known_blocks(&self) -> u64 {
        let workers = self.pools.iter().flat_map(|pool| &pool.workers);
        workers.filter_map(|worker| worker.kv_blocks).map(u64::from).sum()
    }
}

impl BoundPool {
    fn spec(&self, block_size: u32) -> PoolSpec {
        let most = |limit: fn(&BoundWorker) -> Option<u32>| {
            let known: Option<Vec<u32>> = self.workers.iter().map(limit).collect();
            known
                .and_then(|known| known.into_iter().max())
                .map_or(UNLIMITED, |most| most.clamp(1, UNLIMITED))
        };
        let engine = EngineSpec {
            block_size,
            num_blocks: most(|worker| worker.kv_blocks),
            max_num_seqs: most(|worker| worker.max_num_seqs),
            max_num_batched_tokens: most(|worker| worker.max_num_batched_tokens),
            timing: Timing::Learned(self.mean_curves()),
            kv_bytes_per_token: 0.0,
            ..EngineSpec::default()
        };
        PoolSpec {
            role: self.role,
            speeds: self
                .workers
                .iter()
                .map(|worker| self.speed(worker, &engine))
                .collect(),
            engine,
        }
    }

    fn mean_curves(&self) -> Prior {
        let count = self.workers.len().max(1) as f64;
        let mut mean = Prior {
            prefill: [0.0; 4],
            step: [0.0; 3],
        };
        for worker in &self.workers {
            for (sum, own) in mean.prefill.iter_mut().zip(worker.curves.prefill) {
                *sum += own / count;
            }
            for (sum, own) in mean.step.iter_mut().zip(worker.curves.step) {
                *sum += own / count;
            }
        }
        mean
    }

    /// Largest ratio of the pool's mean curve to the curve of a worker.
    fn speed(&self, worker: &BoundWorker, engine: &EngineSpec) -> f64 {
        let Timing::Learned(mean) = &engine.timing else {
            return 1.0;
        };
        let own = &worker.curves;
        let ratio = |mean_s: f64, own_s: f64| if mean_s > 0.0 { mean_s / own_s } else { 0.0 };
        let mut speed = 0.0_f64;
        if self.role != Role::Decode {
            // The bound looks at passes of up to twice the tokens of one, because an engine rounds means.
            let longest = u64::from(engine.max_num_batched_tokens) * 2;
            let mut new = 0;
            while new < longest {
                new = ((new as f64 * LENGTH_RATIO) as u64).max(new + 1).min(longest);
                speed = speed.max(ratio(mean.prefill_s(new, 0), own.prefill_s(new, 0)));
            }
            speed *= BETWEEN_LENGTHS;
        }
        if self.role != Role::Prefill {
            // The step curve is linear, so a ratio of two of them is largest at a corner of the loads.
            let sequences = f64::from(engine.max_num_seqs).min(FAR_SEQUENCES);
            let memory = f64::from(engine.num_blocks) * f64::from(engine.block_size);
            let memory = memory.min(FAR_KV_TOKENS);
            for (batch, kv) in [
                (1.0, 1.0),
                (1.0, memory),
                (sequences, sequences),
                (sequences, memory),
            ] {
                speed = speed.max(ratio(mean.step_s(batch, kv), own.step_s(batch, kv)));
            }
        }
        // Curves without any cost compare as equals. A curve of 0 beside others has no speed: the bound refuses it.
        if speed > 0.0 { speed } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(scale: f64) -> BoundWorker {
        BoundWorker {
            curves: Prior {
                prefill: [1e-2 * scale, 1e-4 * scale, 0.0, 0.0],
                step: [5e-3 * scale, 1e-4 * scale, 1e-8 * scale],
            },
            kv_blocks: Some(1_000),
            max_num_seqs: Some(64),
            max_num_batched_tokens: Some(2_048),
        }
    }

    fn pool(workers: Vec<BoundWorker>) -> BoundPool {
        BoundPool {
            role: Role::Aggregated,
            workers,
        }
    }

    #[test]
    fn no_worker_is_faster_than_the_mean_curve_at_its_speed() {
        let mut odd = worker(1.0);
        odd.curves.prefill = [5e-2, 1e-5, 1e-9, 0.0];
        odd.curves.step = [1e-3, 3e-4, 5e-8];
        let pool = pool(vec![worker(1.0), worker(0.5), odd]);
        let spec = pool.spec(16);
        let Timing::Learned(mean) = &spec.engine.timing else {
            panic!("learned curves");
        };
        for (worker, speed) in pool.workers.iter().zip(&spec.speeds) {
            for tokens in 1..4_096 {
                let floor = mean.prefill_s(tokens, 0) / speed;
                assert!(
                    worker.curves.prefill_s(tokens, 0) >= floor * (1.0 - 1e-9),
                    "{tokens}"
                );
            }
            for batch in [1.0, 7.0, 64.0] {
                for kv in [batch, 500.0, 16_000.0] {
                    assert!(worker.curves.step_s(batch, kv) >= mean.step_s(batch, kv) / speed * (1.0 - 1e-9));
                }
            }
        }
    }

    #[test]
    fn equal_workers_have_speed_one_and_unknown_limits_bind_nothing() {
        let mut unknown = worker(1.0);
        unknown.kv_blocks = None;
        let spec = pool(vec![worker(1.0), unknown]).spec(16);
        assert!(
            spec.speeds
                .iter()
                .all(|speed| (speed / BETWEEN_LENGTHS - 1.0).abs() < 1e-9)
        );
        assert_eq!(
            (spec.engine.num_blocks, spec.engine.max_num_seqs),
            (UNLIMITED, 64)
        );
        let fleet = BoundFleet {
            block_size: 16,
            pools: vec![pool(vec![worker(1.0)])],
        };
        assert_eq!(fleet.known_blocks(), 1_000);
        assert!(fleet.spec().validate().is_ok());
    }
}
