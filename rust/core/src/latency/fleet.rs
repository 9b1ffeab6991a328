//! The curves of every worker of a pool, and the fleet's own, which is the prior of a worker that joins.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::clock::ServiceClock;
use super::curve::{PrefillWork, Prior, WorkerCurves};
use super::pass::Told;
use super::rls::{Learning, RlsRecord};
use crate::error::Error;
use crate::worker::WorkerId;

/// Version of [`FleetRecord`].
const VERSION: u32 = 1;

/// Curves by dense worker position. The caller maps its workers to positions and frees them with [`FleetCurves::remove`].
#[derive(Clone, Debug)]
pub struct FleetCurves {
    learning: Learning,
    fleet: WorkerCurves,
    workers: Vec<Option<(WorkerCurves, ServiceClock)>>,
    /// By position: the step report that was learned from last.
    pub(super) told: FxHashMap<usize, Told>,
}

/// One worker's curves, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurveView {
    /// Whose.
    pub worker: WorkerId,
    /// Present coefficients.
    pub coefficients: Prior,
    /// Samples behind the prefill curve.
    pub prefill_samples: u64,
    /// Samples behind the step curve.
    pub step_samples: u64,
    /// Running mean relative error of the prefill curve.
    pub prefill_error: f64,
    /// Running mean relative error of the step curve.
    pub step_error: f64,
}

/// All curves as plain numbers, for a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetRecord {
    version: u32,
    learning: Learning,
    fleet: CurveRecord,
    workers: Vec<(WorkerId, CurveRecord)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CurveRecord {
    prefill: RlsRecord,
    step: RlsRecord,
}

impl FleetCurves {
    /// No workers; the fleet's curve starts at `prior`.
    pub fn new(prior: &Prior, learning: Learning) -> Self {
        Self {
            learning,
            fleet: WorkerCurves::new(prior, learning),
            workers: Vec::new(),
            told: FxHashMap::default(),
        }
    }

    /// Starts the curves of a worker at those of the fleet. An old worker at `position` is forgotten.
    pub fn add(&mut self, position: usize) {
        if self.workers.len() <= position {
            self.workers.resize(position + 1, None);
        }
        let curves = WorkerCurves::new(&self.fleet.coefficients(), self.learning);
        self.workers[position] = Some((curves, ServiceClock::default()));
    }

    /// Forgets a worker.
    pub fn remove(&mut self, position: usize) {
        if let Some(worker) = self.workers.get_mut(position) {
            *worker = None;
        }
        self.told.remove(&position);
    }

    /// The curves of a worker; the fleet's where it has none.
    #[inline]
    pub fn of(&self, position: usize) -> &WorkerCurves {
        match self.workers.get(position) {
            Some(Some((curves, _))) => curves,
            _ => &self.fleet,
        }
    }

    /// The fleet's own curves.
    pub const fn fleet(&self) -> &WorkerCurves {
        &self.fleet
    }

    /// Learns from a first token: sent at `sent_s`, come at `now_s`, after `new_tokens` behind `cached_tokens`;
    /// `shared_s` of the time went to decode steps in the same passes.
    pub fn first_token(
        &mut self,
        position: usize,
        (sent_s, now_s): (f64, f64),
        (new_tokens, cached_tokens): (u64, u64),
        shared_s: f64,
    ) {
        let Some(Some((curves, clock))) = self.workers.get_mut(position) else {
            return;
        };
        let work = PrefillWork::of(new_tokens, cached_tokens);
        if let Some((work, seconds)) = clock.first_token((sent_s, now_s), work, shared_s) {
            curves.observe_prefill(&work, seconds);
            self.fleet.observe_prefill(&work, seconds);
        }
    }

    /// Learns from one engine pass whose prefill work is known (forward-pass metrics).
    pub fn prefill_pass(&mut self, position: usize, work: &PrefillWork, seconds: f64) {
        if let Some(Some((curves, _))) = self.workers.get_mut(position) {
            curves.observe_prefill(work, seconds);
            self.fleet.observe_prefill(work, seconds);
        }
    }

    /// Learns from a decode step, or from a finished request's mean token gap at the load of its decode.
    pub fn step(&mut self, position: usize, (batch, kv_tokens): (f64, f64), seconds: f64) {
        if let Some(Some((curves, _))) = self.workers.get_mut(position) {
            curves.observe_step(batch, kv_tokens, seconds);
            self.fleet.observe_step(batch, kv_tokens, seconds);
        }
    }

    /// The curves of the given workers, for `wardrop curves`.
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

    /// Everything learned, for a file.
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

    /// Takes over a record: the fleet's curve and those of the workers that `position_of` still knows.
    ///
    /// Errors: [`Error::Parameter`] for another version or a damaged record; nothing changes then.
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
