//! NVIDIA Dynamo's own cost, exactly: the yardstick of every comparison, and the policy for parity.
//!
//! `tests/router/test_parity.py` compares the picks with Dynamo's own over random states, bookings and tiers
//! included. Two forms of one formula are here. `parts_of` is the readable one, for one candidate.
//! `price_plain` prices several candidates at a time, in the case of nearly all decisions. A property test
//! holds them equal to the last bit.
//!
//! O(candidates): 0.44 ns each in the vector form, 2.6 ns one by one (4,096 workers, a busy machine).

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::config::{non_negative, share};
use super::{Policy, View};
use crate::error::Error;
use crate::exact::{large_f64, small_f64};
use crate::request::Parts;
use crate::rng::Rng;

/// Parameters of [`Dynamo`], with Dynamo's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamoConfig {
    /// Blocks of credit for each cached device block, 0 to 1.
    pub overlap_score_credit: f64,
    /// Decay of the credit with the prefill backlog above that of the least loaded candidate, 0 or above.
    ///
    /// With it, a cached block counts less on a busy worker. 0, Dynamo's default, lets every cached block
    /// count alike.
    pub overlap_score_credit_decay: f64,
    /// Weight of a prefill block against a decode block, 0 or above.
    pub prefill_load_scale: f64,
    /// Cost of each request in flight, blocks, 0 or above.
    pub decode_active_request_weight: f64,
    /// Credit of a block in host memory, 0 to 1.
    pub host_cache_hit_weight: f64,
    /// Credit of a block on disk, 0 to 1.
    pub disk_cache_hit_weight: f64,
    /// Temperature of the pick, 0 or above. 0 takes the lowest cost; see [`crate::pick::pick`].
    pub router_temperature: f64,
}

impl Default for DynamoConfig {
    fn default() -> Self {
        Self {
            overlap_score_credit: 1.0,
            overlap_score_credit_decay: 0.0,
            prefill_load_scale: 1.0,
            decode_active_request_weight: 0.0,
            host_cache_hit_weight: 0.75,
            disk_cache_hit_weight: 0.25,
            router_temperature: 0.0,
        }
    }
}

impl DynamoConfig {
    /// Dynamo's parameters for the decode leg of a split: no overlap credit. The router must not track prefill there.
    pub fn decode_leg() -> Self {
        Self {
            overlap_score_credit: 0.0,
            ..Self::default()
        }
    }
}

/// Cost in blocks:
///
/// ```text
/// credit = c / (1 + decay · excess / max(1, ⌈input / B⌉)) · device + w_host · host + w_disk · disk
/// excess = (active prefill tokens of the candidate − lowest among the candidates) / B
/// raw    = (active prefill tokens + input) / B
/// cost   = prefill_load_scale · max(0, raw − credit) + |active blocks ∪ request blocks| + w_request · active requests
/// ```
///
/// On the prefill leg of a split no decode block counts, since Dynamo routes it with
/// `router_track_active_blocks` off. On the decode leg of a split the cost is `max(0, |active ∪ request| −
/// credit) + w_request · active requests`. At c = 0 there is no credit.
///
/// Source: Dynamo 1.6.1, `dynamo-kv-router`, scheduling/selector, without its shared cache and taints, which Wardrop
/// does not know.
///
/// # Example
///
/// B = 16, all parameters at their defaults. A prompt has 1,600 tokens, or 100 blocks. Worker 1 holds 80 of
/// them and has 3,200 prefill tokens and 50 other blocks in flight. Worker 2 is empty and idle.
///
/// ```text
/// worker 1: (3200 + 1600) / 16 − 80 = 220 to prefill,  50 + 100 = 150 in flight,  cost 370
/// worker 2:  1600 / 16              = 100 to prefill,       100 in flight,        cost 200
/// ```
///
/// Worker 2 wins although it has nothing cached: the backlog of worker 1 is worth 200 blocks.
#[derive(Clone, Debug)]
pub struct Dynamo {
    config: DynamoConfig,
}

impl Dynamo {
    /// The policy.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn new(config: DynamoConfig) -> Result<Self, Error> {
        share("overlap_score_credit", config.overlap_score_credit)?;
        non_negative("overlap_score_credit_decay", config.overlap_score_credit_decay)?;
        non_negative("prefill_load_scale", config.prefill_load_scale)?;
        non_negative(
            "decode_active_request_weight",
            config.decode_active_request_weight,
        )?;
        share("host_cache_hit_weight", config.host_cache_hit_weight)?;
        share("disk_cache_hit_weight", config.disk_cache_hit_weight)?;
        non_negative("router_temperature", config.router_temperature)?;
        Ok(Self { config })
    }

    /// Lowest prefill backlog of any candidate, tokens: the decay is measured against it. 0 where nothing decays.
    fn lowest_prefill_tokens(&self, view: &View<'_>) -> u64 {
        if self.decays(view) {
            view.prefill_tokens.iter().copied().min().unwrap_or(0)
        } else {
            0
        }
    }

    /// Whether the credit of a cached block depends on the prefill backlog.
    fn decays(&self, view: &View<'_>) -> bool {
        view.tracks_prefill && self.config.overlap_score_credit_decay > 0.0
    }

    /// The three summands of one candidate's cost, in blocks: prefill, decode, requests. Each is at least 0.
    ///
    /// This is the form to read beside Dynamo's source. O(1).
    fn parts_of(&self, view: &View<'_>, i: usize, lowest_prefill_tokens: u64) -> [f64; 3] {
        let config = &self.config;
        let decay = if self.decays(view) {
            self.decay(view, i, lowest_prefill_tokens)
        } else {
            1.0
        };
        let credit = config.overlap_score_credit * decay * f64::from(view.device_blocks[i])
            + config.host_cache_hit_weight * f64::from(view.host_blocks[i])
            + config.disk_cache_hit_weight * f64::from(view.disk_blocks[i]);
        // A prefill pool has no decode blocks: Dynamo turns their tracking off there.
        let decode = if view.tracks_decode {
            view.union_blocks(i) as f64
        } else {
            0.0
        };
        let requests = config.decode_active_request_weight * f64::from(view.active_requests[i]);
        if view.tracks_prefill {
            let tokens = view.prefill_tokens[i] as f64 + f64::from(view.input_tokens);
            let raw = tokens / f64::from(view.block_size);
            [
                config.prefill_load_scale * (raw - credit).max(0.0),
                decode,
                requests,
            ]
        } else if config.overlap_score_credit > 0.0 {
            [0.0, (decode - credit).max(0.0), requests]
        } else {
            [0.0, decode, requests]
        }
    }

    /// Factor of the credit of candidate `i`, above 0 and at most 1: see the formula of [`Dynamo`].
    fn decay(&self, view: &View<'_>, i: usize, lowest_prefill_tokens: u64) -> f64 {
        let excess_tokens = view.prefill_tokens[i] - lowest_prefill_tokens;
        let excess_blocks = excess_tokens as f64 / f64::from(view.block_size);
        let request_blocks = view.input_tokens.div_ceil(view.block_size).max(1);
        1.0 / (1.0 + self.config.overlap_score_credit_decay * (excess_blocks / f64::from(request_blocks)))
    }
}

impl Policy for Dynamo {
    fn name(&self) -> &'static str {
        "dynamo"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        if view.no_lower && !self.decays(view) {
            price_plain(view, &self.config, costs);
            return;
        }
        let lowest = self.lowest_prefill_tokens(view);
        for (i, cost) in costs.iter_mut().enumerate() {
            let [prefill, decode, requests] = self.parts_of(view, i, lowest);
            *cost = prefill + decode + requests;
        }
    }

    /// Blocks to prefill, blocks in flight, and blocks for the requests in flight. On the decode leg of a split the
    /// credit is in the second part.
    fn parts(&self, view: &View<'_>, i: usize) -> Parts {
        let [prefill, decode, requests] = self.parts_of(view, i, self.lowest_prefill_tokens(view));
        Parts::new([
            ("prefill_blocks", prefill),
            ("decode_blocks", decode),
            ("requests", requests),
        ])
    }

    fn reuse_weights(&self) -> Option<[f64; 2]> {
        Some([
            self.config.host_cache_hit_weight,
            self.config.disk_cache_hit_weight,
        ])
    }

    fn temperature(&self) -> f64 {
        self.config.router_temperature
    }
}

/// The cost when no candidate holds a block in a lower tier and no credit decays, as in nearly every
/// decision. It equals the general form to the last bit, and prices several candidates at a time.
///
/// `multiversion` compiles it for AVX-512, AVX2 and the baseline, and the program chooses at its start. Sums
/// wrap and conversions are exact by their bounds ([`crate::exact`]), because a check per candidate would end
/// the vector loop.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2"))]
fn price_plain(view: &View<'_>, config: &DynamoConfig, costs: &mut [f64]) {
    let n = costs.len();
    let (prefill, active) = (&view.prefill_tokens[..n], &view.decode_blocks[..n]);
    let (device, shared) = (&view.device_blocks[..n], &view.shared_blocks[..n]);
    let (input_tokens, request_blocks) = (f64::from(view.input_tokens), f64::from(view.request_blocks));
    let (scale, credit) = (config.prefill_load_scale, config.overlap_score_credit);
    // Division by a power of two equals multiplication by its inverse to the last bit. A multiplication takes a fifth
    // of the time.
    let (inverse, exact) = (
        1.0 / f64::from(view.block_size),
        view.block_size.is_power_of_two(),
    );
    let prefill_blocks = |i: usize| {
        let tokens = large_f64(prefill[i]) + input_tokens;
        let raw = if exact {
            tokens * inverse
        } else {
            tokens / f64::from(view.block_size)
        };
        scale * (raw - credit * small_f64(device[i])).max(0.0)
    };
    let decode_blocks = |i: usize| large_f64(active[i]) + (request_blocks - small_f64(shared[i]));
    // One loop per role of the pool, chosen once, so that no candidate has a branch.
    match (view.tracks_prefill, view.tracks_decode) {
        (true, true) => fill(costs, |i| prefill_blocks(i) + decode_blocks(i)),
        (true, false) => fill(costs, prefill_blocks),
        (false, true) if credit > 0.0 => fill(costs, |i| {
            (decode_blocks(i) - credit * small_f64(device[i])).max(0.0)
        }),
        (false, true) => fill(costs, decode_blocks),
        (false, false) => costs.fill(0.0),
    }
    let weight = config.decode_active_request_weight;
    if weight > 0.0 {
        for (cost, &requests) in costs.iter_mut().zip(&view.active_requests[..n]) {
            *cost += weight * small_f64(requests);
        }
    }
}

/// Writes `cost(i)` for every candidate. One loop per form of the cost, so that no loop has a branch.
#[inline(always)]
fn fill(costs: &mut [f64], cost: impl Fn(usize) -> f64) {
    for (i, slot) in costs.iter_mut().enumerate() {
        *slot = cost(i);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::LatencyView;
    use crate::rng::Rng;
    use crate::worker::WorkerId;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn several_candidates_at_a_time_cost_what_one_does(
            load in proptest::collection::vec((0u64..1 << 40, 0u64..1 << 30, 0u32..500, 0u32..500, 0u32..99), 1..70),
            (input_tokens, block_size) in (1u32..100_000, 1u32..130),
            (credit, scale, weight) in (0.0..1.0, 0.0..4.0, prop_oneof![Just(0.0), 0.1..2.0]),
            (tracks_prefill, tracks_decode) in (any::<bool>(), any::<bool>()),
        ) {
            let column = |of: fn(&(u64, u64, u32, u32, u32)) -> u32| load.iter().map(of).collect::<Vec<u32>>();
            let (device, shared, requests) = (column(|of| of.2), column(|of| of.3), column(|of| of.4));
            let prefill: Vec<u64> = load.iter().map(|of| of.0).collect();
            let active: Vec<u64> = load.iter().map(|of| of.1).collect();
            let zeros = vec![0; load.len()];
            let view = View {
                block_size,
                input_tokens,
                request_blocks: 500,
                expected_output_tokens: None,
                turn: 0,
                prefix_key: 0,
                tracks_prefill,
                tracks_decode,
                workers: &vec![WorkerId::new(0, 0); load.len()],
                device_blocks: &device,
                host_blocks: &zeros,
                disk_blocks: &zeros,
                no_lower: true,
                prefill_tokens: &prefill,
                decode_blocks: &active,
                shared_blocks: &shared,
                active_requests: &requests,
                output_tokens: 0.0,
                latency: LatencyView::default(),
            };
            let policy = Dynamo::new(DynamoConfig {
                overlap_score_credit: credit,
                prefill_load_scale: scale,
                decode_active_request_weight: weight,
                ..DynamoConfig::default()
            })
            .unwrap();
            let (mut plain, mut general) = (vec![0.0; load.len()], vec![0.0; load.len()]);
            policy.price(&view, &mut Rng::new(0), &mut plain);
            policy.price(&View { no_lower: false, ..view }, &mut Rng::new(0), &mut general);
            prop_assert_eq!(plain, general);
        }
    }
}
