//! Results of a run: one record per request, and histograms of values that are too many to keep.

use serde::Serialize;

use crate::sse::Facts;

/// Outcome of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not sent: the run ended before the due time, or an earlier turn of the conversation failed.
    #[default]
    Unsent,
    /// Not sent: too many requests were in flight in the open loop. The bound of the driver caused it, not the server.
    Shed,
    /// Complete, status 2xx.
    Ok,
    /// Status other than 2xx, or an error event in a stream.
    Refused,
    /// No connection, a broken connection, or bytes that are not an HTTP answer.
    Broken,
    /// Not complete in time.
    Timeout,
    /// Stopped by the caller while in flight.
    Stopped,
}

/// Measurements of one request; all times are seconds since the start of the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// Outcome of the request.
    pub outcome: Outcome,
    /// Due time of the request.
    pub due_s: Option<f64>,
    /// Time at which the request was sent.
    pub sent_s: Option<f64>,
    /// Time at which the response head arrived.
    pub head_s: Option<f64>,
    /// Time of the first token chunk; without streaming, the end of the answer.
    pub first_token_s: Option<f64>,
    /// Time of the last token chunk.
    pub last_token_s: Option<f64>,
    /// Time of the last byte.
    pub end_s: Option<f64>,
    /// HTTP status.
    pub status: Option<u16>,
    /// Token chunks seen; `facts.completion_tokens` is the server's own count.
    pub chunks: u32,
    /// Longest gap between two token chunks.
    pub gap_max_s: Option<f64>,
    /// Facts that the response reported.
    pub facts: Facts,
}

/// Histogram with 32 buckets per doubling from 1 µs on (2.2 % wide), 1 µs to 2,000 s.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

const PER_DOUBLING: f64 = 32.0;
const BUCKETS: usize = 32 * 31;

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
        }
    }
}

impl Histogram {
    /// Counts one duration; durations below 1 µs count as 1 µs.
    pub fn add(&mut self, seconds: f64) {
        let bucket = ((seconds * 1e6).max(1.0).log2() * PER_DOUBLING) as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.total += 1;
    }

    /// The quantile `q` in seconds: the middle of its bucket. None when empty.
    pub fn quantile_s(&self, q: f64) -> Option<f64> {
        let rank = ((q.clamp(0.0, 1.0) * self.total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|&count| {
            seen += count;
            seen >= rank
        })?;
        Some(((bucket as f64 + 0.5) / PER_DOUBLING).exp2() * 1e-6)
    }

    /// Number of durations counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Upper edge in seconds and count of each non-empty bucket.
    pub fn filled(&self) -> Vec<(f64, u64)> {
        let edge = |bucket: usize| ((bucket + 1) as f64 / PER_DOUBLING).exp2() * 1e-6;
        self.counts
            .iter()
            .enumerate()
            .filter(|&(_, &n)| n > 0)
            .map(|(bucket, &n)| (edge(bucket), n))
            .collect()
    }
}

/// Results of a run by column: index `i` of each column is request `i` of the plan.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Wall time of the run.
    pub elapsed_s: f64,
    outcome: Vec<Outcome>,
    due_s: Vec<Option<f64>>,
    sent_s: Vec<Option<f64>>,
    head_s: Vec<Option<f64>>,
    first_token_s: Vec<Option<f64>>,
    last_token_s: Vec<Option<f64>>,
    end_s: Vec<Option<f64>>,
    status: Vec<Option<u16>>,
    chunks: Vec<u32>,
    gap_max_s: Vec<Option<f64>>,
    prompt_tokens: Vec<Option<u32>>,
    completion_tokens: Vec<Option<u32>>,
    cached_tokens: Vec<Option<u32>>,
    /// Decimal text: 64 bits do not survive every JSON reader.
    worker_id: Vec<Option<String>>,
    prefill_worker_id: Vec<Option<String>>,
    /// Gaps between token chunks: `[upper edge s, count]`.
    itl_histogram: Vec<(f64, u64)>,
    itl_p50_s: Option<f64>,
    itl_p95_s: Option<f64>,
    itl_p99_s: Option<f64>,
    /// Lateness of the driver: time sent minus due time.
    lateness_p50_s: Option<f64>,
    lateness_p99_s: Option<f64>,
    /// Lateness of the driver's event loop, measured by a timer throughout the run.
    loop_lag_p50_s: Option<f64>,
    loop_lag_p99_s: Option<f64>,
    connections_opened: u64,
}

/// Histograms that fill during a run.
#[derive(Clone, Debug, Default)]
pub struct Tallies {
    /// Gaps between token chunks.
    pub itl: Histogram,
    /// Sent to first token.
    pub ttft: Histogram,
    /// Due to sent.
    pub lateness: Histogram,
    /// Timer due to timer run.
    pub loop_lag: Histogram,
}

impl Report {
    /// Turns the records of a run into columns.
    pub fn new(records: &[Record], tallies: &Tallies, elapsed_s: f64, connections_opened: u64) -> Self {
        fn column<T>(records: &[Record], of: impl Fn(&Record) -> T) -> Vec<T> {
            records.iter().map(of).collect()
        }
        Self {
            elapsed_s,
            outcome: column(records, |r| r.outcome),
            due_s: column(records, |r| r.due_s),
            sent_s: column(records, |r| r.sent_s),
            head_s: column(records, |r| r.head_s),
            first_token_s: column(records, |r| r.first_token_s),
            last_token_s: column(records, |r| r.last_token_s),
            end_s: column(records, |r| r.end_s),
            status: column(records, |r| r.status),
            chunks: column(records, |r| r.chunks),
            gap_max_s: column(records, |r| r.gap_max_s),
            prompt_tokens: column(records, |r| r.facts.prompt_tokens),
            completion_tokens: column(records, |r| r.facts.completion_tokens),
            cached_tokens: column(records, |r| r.facts.cached_tokens),
            worker_id: column(records, |r| r.facts.worker_id.map(|id| id.to_string())),
            prefill_worker_id: column(records, |r| r.facts.prefill_worker_id.map(|id| id.to_string())),
            itl_histogram: tallies.itl.filled(),
            itl_p50_s: tallies.itl.quantile_s(0.5),
            itl_p95_s: tallies.itl.quantile_s(0.95),
            itl_p99_s: tallies.itl.quantile_s(0.99),
            lateness_p50_s: tallies.lateness.quantile_s(0.5),
            lateness_p99_s: tallies.lateness.quantile_s(0.99),
            loop_lag_p50_s: tallies.loop_lag.quantile_s(0.5),
            loop_lag_p99_s: tallies.loop_lag.quantile_s(0.99),
            connections_opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_bucket_of_the_sorted_truth() {
        let mut histogram = Histogram::default();
        let mut values: Vec<f64> = (1..=5_000_u32).map(|i| f64::from(i * i) * 1e-6).collect();
        for &value in &values {
            histogram.add(value);
        }
        values.sort_by(f64::total_cmp);
        for q in [0.01, 0.5, 0.95, 0.99, 1.0] {
            let truth = values[((q * values.len() as f64).ceil() as usize).max(1) - 1];
            let got = histogram.quantile_s(q).expect("not empty");
            assert!(
                (got / truth - 1.0).abs() < 0.023,
                "q {q}: got {got}, truth {truth}"
            );
        }
        assert_eq!(histogram.total(), 5_000);
        assert_eq!(histogram.filled().iter().map(|&(_, n)| n).sum::<u64>(), 5_000);
    }

    #[test]
    fn an_empty_histogram_has_no_quantile_and_extremes_are_kept() {
        assert_eq!(Histogram::default().quantile_s(0.5), None);
        let mut histogram = Histogram::default();
        histogram.add(0.0);
        histogram.add(1e9);
        assert_eq!(histogram.total(), 2);
    }
}
