//! The curves of every worker of a pool, and the curves of the fleet, which learn from every worker.
//!
//! A curve without a sample of its own follows the curve of the fleet. A worker that is idle while the others
//! learn is thus priced as an average worker, not by the prior of its first day. Otherwise the first worker
//! with outcomes looks faster than all idle workers, by as much as the prior is too slow. It then takes the
//! traffic of a cold fleet alone.
//!
//! With followers, 15 s of agent sessions on workers of a tenth of the prior's speed have 0.90 of the mean
//! TTFT of Dynamo's cost. Without them it was 1.15 times.
//!
//! Workers are positions here, not ids: the caller owns the map. A sample costs O(1), plus O(followers) when
//! the fleet's curves moved far enough.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::clock::{FirstToken, PassSample, ServiceClock};
use super::curve::{PrefillWork, Prior, StepLoad, WorkerCurves};
use super::pass::{LoadFilter, Pass};
use super::rls::{Learning, RlsRecord};
use crate::error::Error;
use crate::worker::WorkerId;

/// Version of the format of [`FleetRecord`]. A change of the coefficients' meaning needs a new one.
const VERSION: u32 = 1;

/// Curves by position. The caller maps its workers to positions and frees a position with [`FleetCurves::remove`].
#[derive(Clone, Debug)]
pub struct FleetCurves {
    /// How fast every curve learns. A restored record takes over this value, not the value that it was made with.
    learning: Learning,
    /// Learns from the outcomes of every worker. A worker that joins starts here.
    fleet: WorkerCurves,
    /// Curves and service clock by position. `None` where no worker is. The clock is not saved: it holds the
    /// last pass only.
    workers: Vec<Option<(WorkerCurves, ServiceClock)>>,
    /// Positions of workers with at least one curve without a sample. It may name positions without
    /// a worker until the next call of [`FleetCurves::lead_followers`].
    followers: Vec<usize>,
    /// The curves of the fleet as its followers have them.
    followed: Prior,
    /// By position: the load of the last step report that was learned from.
    filters: FxHashMap<usize, LoadFilter>,
}

/// One worker's curves, for display.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurveView {
    /// The worker.
    pub worker: WorkerId,
    /// Present coefficients.
    pub coefficients: Prior,
    /// Samples that the prefill curve learned from.
    pub prefill_samples: u64,
    /// Samples that the step curve learned from.
    pub step_samples: u64,
    /// Running mean relative error of the prefill curve.
    pub prefill_error: f64,
    /// Running mean relative error of the step curve.
    pub step_error: f64,
}

/// All curves as plain numbers, for a file. A record of another version is refused.
///
/// It survives a restart of the router, so that prices need not be learned again. Workers are named by id,
/// since positions differ between two runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetRecord {
    /// Format of the record. A reader refuses any other.
    version: u32,
    /// Learning parameters that the curves were learned with, for people.
    learning: Learning,
    /// Curves of the fleet, where a worker that joins later starts.
    fleet: CurveRecord,
    /// Curves of each worker. Workers that the reader does not know are skipped.
    workers: Vec<(WorkerId, CurveRecord)>,
}

/// The curves of one worker, or of the fleet. An unknown field is refused: it would be a newer format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CurveRecord {
    prefill: RlsRecord,
    step: RlsRecord,
}

impl FleetCurves {
    /// No workers. The curves of the fleet start at `prior`.
    pub fn new(prior: &Prior, learning: Learning) -> Self {
        Self {
            learning,
            fleet: WorkerCurves::new(prior, learning),
            workers: Vec::new(),
            followers: Vec::new(),
            followed: *prior,
            filters: FxHashMap::default(),
        }
    }

    /// Starts the curves of a worker at the curves of the fleet. They replace the curves of a previous worker at
    /// `position`.
    pub fn add(&mut self, position: usize) {
        if self.workers.len() <= position {
            self.workers.resize(position + 1, None);
        }
        let curves = WorkerCurves::new(&self.fleet.coefficients(), self.learning);
        self.workers[position] = Some((curves, ServiceClock::default()));
        if !self.followers.contains(&position) {
            self.followers.push(position);
        }
    }

    /// Positions of the workers that follow the curves of the fleet, when these curves moved far enough since
    /// the last call to move the followers. None where they have not. O(followers) then, else O(1).
    pub fn lead_followers(&mut self) -> &[usize] {
        let fleet = self.fleet.coefficients();
        if self.followers.is_empty() || !has_moved(&self.followed, &fleet) {
            return &[];
        }
        self.followed = fleet;
        let (workers, learning) = (&mut self.workers, self.learning);
        self.followers.retain(|&position| match &mut workers[position] {
            Some((curves, _)) => curves.follow(&fleet, learning),
            None => false,
        });
        &self.followers
    }

    /// Drops the curves of a worker.
    pub fn remove(&mut self, position: usize) {
        self.followers.retain(|&follower| follower != position);
        if let Some(worker) = self.workers.get_mut(position) {
            *worker = None;
        }
        self.filters.remove(&position);
    }

    /// The curves of the worker at a position. The curves of the fleet where no worker is.
    #[inline]
    pub fn of(&self, position: usize) -> &WorkerCurves {
        match self.workers.get(position) {
            Some(Some((curves, _))) => curves,
            _ => &self.fleet,
        }
    }

    /// The curves of the fleet, which learn from every worker.
    pub const fn fleet(&self) -> &WorkerCurves {
        &self.fleet
    }

    /// Learns from a first token, once it closes a pass. The curves of the fleet learn from the same sample.
    ///
    /// A position without a worker is ignored: its request outlived it. Returns the number of the pass, for
    /// [`FleetCurves::prompt_ended`], where the computed part of the prompt is not known.
    pub fn first_token(&mut self, position: usize, first: &FirstToken) -> Option<u64> {
        let (_, clock) = self.workers.get_mut(position)?.as_mut()?;
        let (number, sample) = clock.first_token(first);
        if let Some(PassSample { work, seconds }) = sample {
            self.prefill_pass(position, &work, seconds);
        }
        first.is_unsure.then_some(number)
    }

    /// The request of a first token ended whose computed part was not known then. `split` is what the engine reported:
    /// computed and cached tokens of the prompt.
    pub fn prompt_ended(&mut self, position: usize, pass: u64, split: Option<(u64, u64)>) {
        let Some(Some((_, clock))) = self.workers.get_mut(position) else {
            return;
        };
        let work = split.map(|(new, cached)| PrefillWork::of(new, cached));
        if let Some(PassSample { work, seconds }) = clock.prompt_ended(pass, work) {
            self.prefill_pass(position, &work, seconds);
        }
    }

    /// Learns from one engine pass of known prefill work, as from forward-pass metrics.
    pub fn prefill_pass(&mut self, position: usize, work: &PrefillWork, seconds: f64) {
        if let Some(Some((curves, _))) = self.workers.get_mut(position) {
            curves.follow(&self.fleet.coefficients(), self.learning);
            curves.observe_prefill(work, seconds);
            self.fleet.observe_prefill(work, seconds);
        }
    }

    /// Learns from a pass with one kind of work. In a mixed pass the share of each kind is unknown. A pass with
    /// several prompts teaches nothing either, since only the sums of their lengths are reported.
    ///
    /// A figure that cannot be true, and a decode load that is no news, teach nothing
    /// ([`Pass::is_believable`], `pass.rs`).
    pub fn pass(&mut self, position: usize, pass: &Pass) {
        if !pass.is_believable() {
            return;
        }
        match (pass.prefills, pass.decodes) {
            (1, 0) if pass.prefill_tokens > 0 => {
                let work = PrefillWork::of(pass.prefill_tokens, pass.prefill_kv_tokens);
                self.prefill_pass(position, &work, pass.seconds);
            }
            (0, decodes) if decodes > 0 => {
                let load = StepLoad {
                    batch: decodes as f64,
                    kv_tokens: pass.decode_kv_tokens as f64,
                };
                if self.filters.entry(position).or_default().is_new(load) {
                    self.step(position, load, pass.seconds);
                }
            }
            _ => {}
        }
    }

    /// Learns from a decode step, or from the mean token gap of a finished request, at the load of its
    /// decode. The fleet learns from the same sample.
    pub fn step(&mut self, position: usize, load: StepLoad, seconds: f64) {
        if let Some(Some((curves, _))) = self.workers.get_mut(position) {
            curves.follow(&self.fleet.coefficients(), self.learning);
            curves.observe_step(load, seconds);
            self.fleet.observe_step(load, seconds);
        }
    }

    /// The curves of the given workers, for display.
    pub fn views<'a>(
        &'a self,
        workers: impl Iterator<Item = (WorkerId, usize)> + 'a,
    ) -> impl Iterator<Item = CurveView> + 'a {
        workers.map(|(worker, position)| {
            let curves = self.of(position);
            let (prefill_samples, step_samples) = curves.samples();
            let (prefill_error, step_error) = curves.residuals();
            CurveView {
                worker,
                coefficients: curves.coefficients(),
                prefill_samples,
                step_samples,
                prefill_error,
                step_error,
            }
        })
    }

    /// All that was learned, for a file. O(workers).
    pub fn record(&self, workers: impl Iterator<Item = (WorkerId, usize)>) -> FleetRecord {
        let record = |curves: &WorkerCurves| {
            let (prefill, step) = curves.record();
            CurveRecord { prefill, step }
        };
        FleetRecord {
            version: VERSION,
            learning: self.learning,
            fleet: record(&self.fleet),
            workers: workers
                .map(|(worker, at)| (worker, record(self.of(at))))
                .collect(),
        }
    }

    /// Restores a record: the curves of the fleet, and of each worker that `position_of` knows. Returns how many
    /// workers it knew.
    ///
    /// # Errors
    /// [`Error::Parameter`] for another version or a damaged record. Nothing changes then.
    pub fn restore(
        &mut self,
        record: &FleetRecord,
        position_of: impl Fn(WorkerId) -> Option<usize>,
    ) -> Result<usize, Error> {
        if record.version != VERSION {
            let got = record.version.to_string();
            return Err(Error::Parameter {
                field: "curve record version",
                got,
                expected: "1",
            });
        }
        let curves =
            |record: &CurveRecord| WorkerCurves::restore(&record.prefill, &record.step, self.learning);
        // Everything is read before anything changes, so that a damaged record leaves the curves as they are.
        let fleet = curves(&record.fleet)?;
        let mut known = Vec::new();
        for (worker, record) in &record.workers {
            if let Some(position) = position_of(*worker) {
                known.push((position, curves(record)?));
            }
        }
        self.fleet = fleet;
        let restored = known.len();
        for (position, curves) in known {
            self.add(position);
            self.workers[position] = Some((curves, ServiceClock::default()));
        }
        Ok(restored)
    }
}

/// Relative move of a prediction of the fleet from which its followers are brought up to date.
///
/// Bringing them up to date costs O(followers) under the lock of the decision, so a move that no price can see is left
/// out. An answer of 256 tokens takes about 2 s to decode. A share of 5 % was tried: the followers' decode then differed by
/// 0.1 s from that of the worker that had served, which outweighed a cached prefix of 1,000 tokens.
const FOLLOW_SHARE: f64 = 0.002;

/// Whether the predictions of two fleets differ by more than [`FOLLOW_SHARE`], at a usual prompt or step.
fn has_moved(then: &Prior, now: &Prior) -> bool {
    let prompt = PrefillWork::of(2_000, 2_000);
    let step = StepLoad {
        batch: 16.0,
        kv_tokens: 64_000.0,
    };
    let differ = |then: f64, now: f64| (now - then).abs() > FOLLOW_SHARE * then;
    differ(then.prefill_at(&prompt), now.prefill_at(&prompt)) || differ(then.step_at(step), now.step_at(step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const TRUE: [f64; 3] = [9e-3, 3e-5, 1.1e-8];

    fn step_s(batch: f64, kv_tokens: f64, rng: &mut Rng) -> f64 {
        (TRUE[0] + TRUE[1] * batch + TRUE[2] * kv_tokens) * (1.0 + 0.1 * (rng.unit() - 0.5))
    }

    /// Error at a load far from the last one, after `reports` at that one.
    fn error_after(reports: usize, filtered: bool) -> f64 {
        let mut curves = FleetCurves::new(&Prior::default(), Learning::default());
        curves.add(0);
        let mut rng = Rng::new(5);
        let mut report = |batch: u64, kv_tokens: u64, curves: &mut FleetCurves| {
            let seconds = step_s(batch as f64, kv_tokens as f64, &mut rng);
            if filtered {
                let pass = Pass {
                    decodes: batch,
                    decode_kv_tokens: kv_tokens,
                    seconds,
                    ..Pass::default()
                };
                curves.pass(0, &pass);
            } else {
                let load = StepLoad {
                    batch: batch as f64,
                    kv_tokens: kv_tokens as f64,
                };
                curves.step(0, load, seconds);
            }
        };
        for i in 0..400u64 {
            report(1 + i * 7 % 200, (1 + i * 11 % 190) * 5_000, &mut curves);
        }
        for _ in 0..reports {
            report(3, 20_000, &mut curves);
        }
        let want = TRUE[0] + TRUE[1] * 150.0 + TRUE[2] * 900_000.0;
        (curves.of(0).step_s(150.0, 900_000.0) / want - 1.0).abs()
    }

    #[test]
    fn hours_at_one_load_do_not_unlearn_the_others() {
        assert!(error_after(0, true) < 0.05, "{}", error_after(0, true));
        assert!(error_after(50_000, true) < 0.05, "{}", error_after(50_000, true));
        let (least, most) = (error_after(0, false), error_after(50_000, false));
        assert!(
            most > 2.0 * least && most > 0.1,
            "the control must unlearn: {least} before, {most} after"
        );
    }
}
