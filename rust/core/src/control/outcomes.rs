//! Outcomes of requests since the previous snapshot of a controller. Bounded, even when no controller takes them.

use serde::Serialize;

/// Largest number of TTFT that are kept between two snapshots. Beyond it an even sample is kept.
const MAX_KEPT: usize = 4096;

/// Outcomes since the previous snapshot.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OutcomeWindow {
    /// Requests with a prompt that arrived.
    pub arrivals: u64,
    /// First tokens that came.
    pub first_tokens: u64,
    /// TTFT of streamed answers, from the whole request to its first token, seconds. At most 4,096 values.
    pub ttft_s: Vec<f64>,
    /// Sum over answers of their mean ITL, seconds.
    pub itl_sum_s: f64,
    /// Answers in that sum.
    pub itl_answers: u64,
    /// Sum over answers of the time to their last token, seconds.
    pub e2e_sum_s: f64,
    /// Answers in that sum.
    pub e2e_answers: u64,
    /// Placed requests whose answer ended before its last token.
    pub broken: u64,
    /// Requests that the queue refused.
    pub refused: u64,
}

impl OutcomeWindow {
    /// Counts a first token.
    pub fn first_token(&mut self, ttft_s: f64) {
        if self.ttft_s.len() < MAX_KEPT {
            self.ttft_s.push(ttft_s);
        } else {
            // Multiplication by an odd number visits every place in turn, so the sample is spread over the window.
            let at = self.first_tokens.wrapping_mul(2_654_435_761) as usize % MAX_KEPT;
            self.ttft_s[at] = ttft_s;
        }
        self.first_tokens += 1;
    }

    /// Counts an answer that ended.
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
    fn outcomes_that_are_not_taken_are_bounded_and_counted() {
        let mut window = OutcomeWindow::default();
        for i in 0..10_000 {
            window.first_token(f64::from(i));
        }
        assert_eq!((window.ttft_s.len(), window.first_tokens), (MAX_KEPT, 10_000));
        let late = window.ttft_s.iter().filter(|&&ttft_s| ttft_s >= 5000.0).count();
        assert!((1500..=4096).contains(&late), "{late} of the later half");
    }
}
