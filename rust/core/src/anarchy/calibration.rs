//! Error of the latency model: predictions made at decision time against the times measured later.
//!
//! The price of anarchy is computed from predicted costs. A model that is off by half makes it worthless, so
//! every report carries this error.

use std::collections::VecDeque;

/// Distance between predicted and measured times.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ModelError {
    /// Number of compared predictions; at most the last 1,024 count.
    pub samples: usize,
    /// Mean of `|predicted − observed| / observed`, each term at most 10.
    ///
    /// The bound exists because a busy machine can deliver an answer in one burst. The observed time between tokens is
    /// then almost 0, and a single unbounded term would determine the mean.
    pub mean_absolute_share: f64,
    /// `Σ predicted / Σ observed`. A value above 1 means that the model predicts too slow times.
    pub bias: f64,
}

/// The last predictions with their outcomes. O(1) per outcome; memory is bounded by 1,024 pairs.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    /// The last pairs, oldest first, at most [`MAX_OUTCOMES`].
    outcomes: VecDeque<PredictedTime>,
}

/// A prediction and the time measured for it, both finite, seconds. The measured time is above 0.
#[derive(Debug, Clone, Copy)]
struct PredictedTime {
    predicted_s: f64,
    observed_s: f64,
}

/// Outcomes kept; the oldest is dropped first.
const MAX_OUTCOMES: usize = 1024;
/// Largest relative error that one outcome contributes to the mean.
const MAX_SHARE: f64 = 10.0;

impl Calibration {
    /// Records a prediction and the time measured for it, both in seconds.
    ///
    /// A pair that is not finite, or an observed time of 0 or below, is ignored.
    pub fn record(&mut self, predicted_s: f64, observed_s: f64) {
        if predicted_s.is_finite() && observed_s.is_finite() && observed_s > 0.0 {
            if self.outcomes.len() == MAX_OUTCOMES {
                self.outcomes.pop_front();
            }
            self.outcomes.push_back(PredictedTime {
                predicted_s,
                observed_s,
            });
        }
    }

    /// The error over the kept outcomes; all fields are 0 without any.
    pub fn error(&self) -> ModelError {
        if self.outcomes.is_empty() {
            return ModelError::default();
        }
        let share = |pair: &PredictedTime| {
            ((pair.predicted_s - pair.observed_s).abs() / pair.observed_s).min(MAX_SHARE)
        };
        let shares: f64 = self.outcomes.iter().map(share).sum();
        let predicted_s: f64 = self.outcomes.iter().map(|pair| pair.predicted_s).sum();
        let observed_s: f64 = self.outcomes.iter().map(|pair| pair.observed_s).sum();
        ModelError {
            samples: self.outcomes.len(),
            mean_absolute_share: shares / self.outcomes.len() as f64,
            bias: predicted_s / observed_s,
        }
    }
}
