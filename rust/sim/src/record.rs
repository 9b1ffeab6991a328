//! Results of a run: one row per request, a histogram of token gaps, counters, and samples of the workers.

use wardrop_core::PriceGuardReport;
use wardrop_core::anarchy::MeterReport;
use wardrop_core::regime::RegimeChange;

use crate::bound::LowerBound;

/// Time of a point that a request has not reached.
const NEVER: f64 = f64::NAN;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// The request has not ended, because the run stopped early.
    Open = 0,
    /// All output tokens were delivered.
    Complete = 1,
    /// The request was larger than the worker's cache, or the queue refused it.
    Rejected = 2,
    /// The request found no worker for the maximum number of retries.
    Failed = 3,
}

/// Result of every request, as columns with one entry per request.
///
/// Times are milliseconds of simulated time, and NaN if the request never reached the point.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// First arrival at the router.
    pub arrival_ms: Vec<f64>,
    /// First admission by the engine that prefills the request.
    pub admit_ms: Vec<f64>,
    /// Delivery of the first token.
    pub first_token_ms: Vec<f64>,
    /// Delivery of the last token, or the end without it.
    pub end_ms: Vec<f64>,
    /// Index of the prefill worker, or of the only worker; `u32::MAX` for none.
    pub worker: Vec<u32>,
    /// Index of the decode worker in a split fleet; `u32::MAX` for none.
    pub decode_worker: Vec<u32>,
    /// Prompt tokens that the engine found in its cache.
    pub cached_tokens: Vec<u32>,
    /// Prompt tokens that the router expected in the worker's cache.
    pub expected_tokens: Vec<u32>,
    /// Number of times that the request lost its blocks and started again.
    pub preemptions: Vec<u32>,
    /// Number of times that the request was routed again after a failure.
    pub retries: Vec<u32>,
    /// How the request ended, as a number of [`End`].
    pub end: Vec<u8>,
}

impl Requests {
    pub(crate) fn new(len: usize) -> Self {
        Self {
            arrival_ms: vec![NEVER; len],
            admit_ms: vec![NEVER; len],
            first_token_ms: vec![NEVER; len],
            end_ms: vec![NEVER; len],
            worker: vec![u32::MAX; len],
            decode_worker: vec![u32::MAX; len],
            cached_tokens: vec![0; len],
            expected_tokens: vec![0; len],
            preemptions: vec![0; len],
            retries: vec![0; len],
            end: vec![End::Open as u8; len],
        }
    }

    pub(crate) fn clear_row(&mut self, i: usize) {
        for times in [
            &mut self.arrival_ms,
            &mut self.admit_ms,
            &mut self.first_token_ms,
            &mut self.end_ms,
        ] {
            times[i] = NEVER;
        }
        self.worker[i] = u32::MAX;
        self.decode_worker[i] = u32::MAX;
        self.cached_tokens[i] = 0;
        self.expected_tokens[i] = 0;
        self.preemptions[i] = 0;
        self.retries[i] = 0;
        self.end[i] = End::Open as u8;
    }

    pub(crate) fn add_row(&mut self) {
        for times in [
            &mut self.arrival_ms,
            &mut self.admit_ms,
            &mut self.first_token_ms,
            &mut self.end_ms,
        ] {
            times.push(NEVER);
        }
        self.worker.push(u32::MAX);
        self.decode_worker.push(u32::MAX);
        self.cached_tokens.push(0);
        self.expected_tokens.push(0);
        self.preemptions.push(0);
        self.retries.push(0);
        self.end.push(End::Open as u8);
    }
}

/// Histogram of the gaps between consecutive tokens, in buckets of 1/64 octave (1.1 %) from 2^-10 ms.
#[derive(Clone, Debug)]
pub struct GapHistogram {
    /// Number of gaps per bucket.
    pub counts: Vec<u64>,
    /// Sum of all gaps, in milliseconds.
    pub sum_ms: f64,
    /// Number of gaps.
    pub count: u64,
}

impl GapHistogram {
    /// Negated exponent of the lowest bucket: it starts at 2^-10 ms.
    const LOWEST_NEGATED: u64 = 10;
    /// Number of octaves.
    const OCTAVES: usize = 34;
    /// Binary logarithm of the number of buckets per octave.
    const PARTS_LOG2: u32 = 6;

    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; Self::OCTAVES << Self::PARTS_LOG2],
            sum_ms: 0.0,
            count: 0,
        }
    }

    /// Counts `weight` gaps of `gap_ms`. The float's exponent and leading mantissa bits are the bucket.
    pub(crate) fn add(&mut self, gap_ms: f64, weight: u64) {
        let bits = gap_ms.max(0.0).to_bits() >> (52 - Self::PARTS_LOG2);
        let lowest = (1023 - Self::LOWEST_NEGATED) << Self::PARTS_LOG2;
        let at = (bits.saturating_sub(lowest) as usize).min(self.counts.len() - 1);
        self.counts[at] += weight;
        self.sum_ms += gap_ms * weight as f64;
        self.count += weight;
    }

    /// Middle of bucket `at`, in milliseconds.
    pub fn bucket_ms(at: usize) -> f64 {
        let octave = (at >> Self::PARTS_LOG2) as f64 - Self::LOWEST_NEGATED as f64;
        let part = (at & ((1 << Self::PARTS_LOG2) - 1)) as f64 + 0.5;
        octave.exp2() * (1.0 + part / f64::from(1 << Self::PARTS_LOG2))
    }
}

/// Samples of every worker's state. The columns of workers are `[sample][worker]` matrices, flattened in row-major order.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Time of each sample, in milliseconds.
    pub at_ms: Vec<f64>,
    /// Number of running sequences.
    pub running: Vec<u32>,
    /// Number of sequences that wait in the engine.
    pub waiting: Vec<u32>,
    /// Number of KV blocks held by sequences.
    pub active_blocks: Vec<u32>,
}

/// Counters of a whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Engine iterations.
    pub iterations: u64,
    /// Computed prompt tokens. A preempted or retried request counts again.
    pub prefill_tokens: u64,
    /// Delivered output tokens.
    pub output_tokens: u64,
    /// KV events sent by workers.
    pub events_sent: u64,
    /// KV events that never reached a router.
    pub events_lost: u64,
    /// KV events that a router refused, for instance because of an unknown parent after a loss.
    pub events_refused: u64,
    /// Iteration reports sent by workers.
    pub reports_sent: u64,
    /// Iteration reports that never reached a router.
    pub reports_lost: u64,
    /// Sequences that lost their blocks.
    pub preemptions: u64,
    /// Blocks that left device memory.
    pub evictions: u64,
    /// Prompt tokens read back from a lower tier.
    pub onboarded_tokens: u64,
    /// Bytes of KV sent between pools.
    pub transfer_bytes: f64,
    /// Decisions of the routers.
    pub decisions: u64,
    /// Largest number of blocks that one worker held at a time.
    pub peak_active_blocks: u32,
}

/// Results of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Result of every request.
    pub requests: Requests,
    /// Gaps between consecutive tokens of a request.
    pub gaps: GapHistogram,
    /// Samples of the workers' state.
    pub samples: Samples,
    /// Counters of the run.
    pub totals: Totals,
    /// Simulated time of the last event, in milliseconds.
    pub end_ms: f64,
    /// Loss of the decisions of each pool; `None` if the fleet does not measure it or made fewer than two decisions.
    pub anarchy: Vec<Option<MeterReport>>,
    /// Lower bound on the cost of the complete requests under any routing; `None` if the fleet does not measure the
    /// price of anarchy, or has engines that no bound covers.
    pub bound: Option<LowerBound>,
    /// Changes of regime per pool; empty for a policy without regimes.
    pub regimes: Vec<Vec<RegimeChange>>,
    /// State and evidence of each pool's price guard at the end.
    pub price_guards: Vec<PriceGuardReport>,
    /// Decisions per pool that a static rule made in place of the policy.
    pub decided_statically: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_lands_in_a_bucket_within_one_percent_of_it() {
        for gap in [0.002, 0.5, 1.0, 9.3, 77.7, 12_345.0] {
            let mut gaps = GapHistogram::new();
            gaps.add(gap, 3);
            let at = gaps
                .counts
                .iter()
                .position(|count| *count == 3)
                .expect("one bucket");
            assert!((GapHistogram::bucket_ms(at) / gap - 1.0).abs() < 0.01, "{gap}");
        }
    }
}
