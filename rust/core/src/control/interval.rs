//! What came of the requests since a controller looked last: bounded, whoever forgets to look.

use serde::Serialize;

/// Times to first token that are kept between two looks; of more, an even sample.
const MAX_KEPT: usize = 4096;

/// Outcomes since the last look.
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

impl Interval {
    /// A first token came.
    pub fn first_token(&mut self, ttft_s: f64) {
        if self.ttft_s.len() < MAX_KEPT {
            self.ttft_s.push(ttft_s);
        } else {
            // A multiplicative walk over the places: every one is overwritten in turn, spread over the interval.
            let at = self.first_tokens.wrapping_mul(2_654_435_761) as usize % MAX_KEPT;
            self.ttft_s[at] = ttft_s;
        }
        self.first_tokens += 1;
    }

    /// An answer ended.
    pub fn ended(&mut self, e2e_s: f64, itl_s: Option<f64>) {
        self.e2e_sum_s += e2e_s;
        self.e2e_answers += 1;
        if let Some(itl_s) = itl_s {
            self.itl_sum_s += itl_s;
            self.itl_answers += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_that_nobody_takes_are_bounded_and_counted() {
        let mut interval = Interval::default();
        for i in 0..10_000 {
            interval.first_token(f64::from(i));
        }
        assert_eq!((interval.ttft_s.len(), interval.first_tokens), (MAX_KEPT, 10_000));
        let late = interval.ttft_s.iter().filter(|&&ttft_s| ttft_s >= 5000.0).count();
        assert!((1500..=4096).contains(&late), "{late} of the later half");
    }
}
