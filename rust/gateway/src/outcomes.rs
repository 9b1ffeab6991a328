//! What came of the requests of the last moments, for a controller that polls: bounded, whoever forgets to.

use parking_lot::Mutex;
use serde::Serialize;

/// Times to first token that are kept between two polls; of more, an even sample.
const MAX_KEPT: usize = 4096;

/// Outcomes since the last poll, and counts since the start.
#[derive(Default)]
pub struct Outcomes(Mutex<Interval>);

/// What is told, and then begun anew.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Interval {
    /// Requests with a prompt that arrived.
    pub arrivals: u64,
    /// First tokens that came.
    pub first_tokens: u64,
    /// From the whole request to its first token, of streamed answers; at most 4,096.
    pub ttft_s: Vec<f64>,
    /// Sum over answers of their mean time between tokens.
    pub itl_sum_s: f64,
    /// Answers in it.
    pub itl_answers: u64,
    /// Sum over answers of the time to their last token.
    pub e2e_sum_s: f64,
    /// Answers in it.
    pub e2e_answers: u64,
    /// Placed requests whose answer broke off.
    pub broken: u64,
    /// Requests refused by the queue.
    pub refused: u64,
}

impl Outcomes {
    /// A request with a prompt arrived.
    pub fn arrived(&self) {
        self.0.lock().arrivals += 1;
    }

    /// Its first token came.
    pub fn first_token(&self, ttft_s: f64) {
        let interval = &mut *self.0.lock();
        if interval.ttft_s.len() < MAX_KEPT {
            interval.ttft_s.push(ttft_s);
        } else {
            // A multiplicative walk over the places: every one is overwritten in turn, spread over the interval.
            let at = interval.first_tokens.wrapping_mul(2_654_435_761) as usize % MAX_KEPT;
            interval.ttft_s[at] = ttft_s;
        }
        interval.first_tokens += 1;
    }

    /// Its answer ended.
    pub fn ended(&self, e2e_s: f64, itl_s: Option<f64>) {
        let interval = &mut *self.0.lock();
        interval.e2e_sum_s += e2e_s;
        interval.e2e_answers += 1;
        if let Some(itl_s) = itl_s {
            interval.itl_sum_s += itl_s;
            interval.itl_answers += 1;
        }
    }

    /// Its answer broke off.
    pub fn broke(&self) {
        self.0.lock().broken += 1;
    }

    /// The queue refused it.
    pub fn refused(&self) {
        self.0.lock().refused += 1;
    }

    /// Everything since the last call.
    pub fn take(&self) -> Interval {
        std::mem::take(&mut self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_that_nobody_takes_are_bounded_and_counted() {
        let outcomes = Outcomes::default();
        for i in 0..10_000 {
            outcomes.first_token(f64::from(i));
        }
        let taken = outcomes.take();
        assert_eq!((taken.ttft_s.len(), taken.first_tokens), (MAX_KEPT, 10_000));
        let late = taken.ttft_s.iter().filter(|&&ttft_s| ttft_s >= 5000.0).count();
        assert!((1500..=4096).contains(&late), "{late} of the later half");
        assert_eq!(outcomes.take().first_tokens, 0);
    }
}
