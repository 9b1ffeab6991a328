//! How far predictions made at decision time are from what was then seen.

use std::collections::VecDeque;

/// How far the latency model is from what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ModelError {
    /// Predictions compared, at most the last 1,024.
    pub samples: usize,
    /// Mean of |predicted − observed| ÷ observed, each at most 10: an answer that a busy machine delivers in one burst has an
    /// observed time between tokens of nearly 0, and one of them would be all that the mean shows.
    pub mean_absolute_share: f64,
    /// Σ predicted ÷ Σ observed: above 1 the model is too slow.
    pub bias: f64,
}

/// The last predictions with their outcomes. O(1) per outcome, bounded.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    outcomes: VecDeque<(f64, f64)>,
}

const MAX_OUTCOMES: usize = 1024;
const MAX_SHARE: f64 = 10.0;

impl Calibration {
    /// Records what a prediction turned out to be, both in seconds. What is not finite, or an outcome that is not above 0,
    /// is passed over.
    pub fn record(&mut self, predicted_s: f64, observed_s: f64) {
        if predicted_s.is_finite() && observed_s.is_finite() && observed_s > 0.0 {
            if self.outcomes.len() == MAX_OUTCOMES {
                self.outcomes.pop_front();
            }
            self.outcomes.push_back((predicted_s, observed_s));
        }
    }

    /// The error over the outcomes that are kept; all 0 without any.
    pub fn error(&self) -> ModelError {
        if self.outcomes.is_empty() {
            return ModelError::default();
        }
        let share: f64 = self
            .outcomes
            .iter()
            .map(|(p, o)| ((p - o).abs() / o).min(MAX_SHARE))
            .sum();
        let predicted: f64 = self.outcomes.iter().map(|(p, _)| p).sum();
        let observed: f64 = self.outcomes.iter().map(|(_, o)| o).sum();
        ModelError {
            samples: self.outcomes.len(),
            mean_absolute_share: share / self.outcomes.len() as f64,
            bias: predicted / observed,
        }
    }
}
