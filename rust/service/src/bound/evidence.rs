//! What stands behind the learned curves of a fleet: samples and relative errors.

use serde::Serialize;

use crate::models::Model;
use crate::pool::Role;

/// Samples of a curve below which no bound is computed. The curve is then mostly the prior.
const LEAST_SAMPLES: u64 = 32;

/// Samples and errors of the curves of a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CurveEvidence {
    /// Samples of prefill, over all workers that prefill.
    pub prefill_samples: u64,
    /// Samples of decode steps, over all workers that decode.
    pub step_samples: u64,
    /// Mean relative error of the prefill curves, by samples; 0 without samples.
    pub prefill_error: f64,
    /// Mean relative error of the step curves, by samples; 0 without samples.
    pub step_error: f64,
}

impl CurveEvidence {
    /// The evidence of a model's workers now. O(workers).
    pub fn of(model: &Model) -> Self {
        let mut evidence = Self::default();
        for role in model.roles() {
            for view in model.pool(*role).curve_views() {
                if *role != Role::Decode {
                    evidence.prefill_samples += view.prefill_samples;
                    evidence.prefill_error += view.prefill_error * view.prefill_samples as f64;
                }
                if *role != Role::Prefill {
                    evidence.step_samples += view.step_samples;
                    evidence.step_error += view.step_error * view.step_samples as f64;
                }
            }
        }
        evidence.prefill_error /= evidence.prefill_samples.max(1) as f64;
        evidence.step_error /= evidence.step_samples.max(1) as f64;
        evidence
    }

    /// Whether both curves learned from enough samples.
    pub fn suffices(&self) -> bool {
        self.prefill_samples.min(self.step_samples) >= LEAST_SAMPLES
    }
}
