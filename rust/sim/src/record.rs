//! What a run leaves behind: one row per request, a histogram of token gaps, counters, and samples of the workers.

use wardrop_core::anarchy::MeterReport;
use wardrop_core::regime::RegimeChange;

/// Not reached.
pub const NEVER: f64 = f64::NAN;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// Still open (only when the run was cut short).
    Open = 0,
    /// All output tokens delivered.
    Complete = 1,
    /// Larger than any worker's cache.
    Rejected = 2,
    /// No worker was left.
    Failed = 3,
}

/// Columns, one entry per request; times in ms of simulated time, NaN when never reached.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// Reached the router.
    pub arrival_ms: Vec<f64>,
    /// First scheduled by the engine that prefills it.
    pub admit_ms: Vec<f64>,
    /// First token delivered.
    pub first_token_ms: Vec<f64>,
    /// Last token delivered.
    pub end_ms: Vec<f64>,
    /// Prefilling (or only) worker, `u32::MAX` without one.
    pub worker: Vec<u32>,
    /// Decoding worker of a split fleet, `u32::MAX` without one.
    pub decode_worker: Vec<u32>,
    /// Prompt tokens found in the worker's caches.
    pub cached_tokens: Vec<u32>,
    /// Prompt tokens that the router expected to find.
    pub expected_tokens: Vec<u32>,
    /// Times it lost its blocks and started over.
    pub preemptions: Vec<u32>,
    /// Times it was sent to another worker after a failure.
    pub retries: Vec<u32>,
    /// See [`End`].
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

/// Counts of token gaps in buckets of 1/64 octave (1.1 %), from 2^-10 ms.
#[derive(Clone, Debug)]
pub struct GapHistogram {
    /// Count per bucket.
    pub counts: Vec<u64>,
    /// Sum of all gaps, ms.
    pub sum_ms: f64,
    /// Number of gaps.
    pub count: u64,
}

impl GapHistogram {
    /// The lowest bucket starts at 2 to minus this.
    const LOWEST_NEGATED: u64 = 10;
    const OCTAVES: usize = 34;
    const PARTS_LOG2: u32 = 6;

    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; Self::OCTAVES << Self::PARTS_LOG2],
            sum_ms: 0.0,
            count: 0,
        }
    }

    /// Count `weight` gaps of `gap_ms`. The bucket is read off the float's exponent and leading mantissa bits.
    pub(crate) fn add(&mut self, gap_ms: f64, weight: u64) {
        let bits = gap_ms.max(0.0).to_bits() >> (52 - Self::PARTS_LOG2);
        let lowest = (1023 - Self::LOWEST_NEGATED) << Self::PARTS_LOG2;
        let at = (bits.saturating_sub(lowest) as usize).min(self.counts.len() - 1);
        self.counts[at] += weight;
        self.sum_ms += gap_ms * weight as f64;
        self.count += weight;
    }

    /// Middle of bucket `at`, ms.
    pub fn bucket_ms(at: usize) -> f64 {
        let octave = (at >> Self::PARTS_LOG2) as f64 - Self::LOWEST_NEGATED as f64;
        let part = (at & ((1 << Self::PARTS_LOG2) - 1)) as f64 + 0.5;
        octave.exp2() * (1.0 + part / f64::from(1 << Self::PARTS_LOG2))
    }
}

/// One look at every worker.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// When, ms.
    pub at_ms: Vec<f64>,
    /// Running sequences, `[sample][worker]` flattened, as the next two.
    pub running: Vec<u32>,
    /// Sequences waiting in the engine.
    pub waiting: Vec<u32>,
    /// KV blocks held by running sequences.
    pub active_blocks: Vec<u32>,
}

/// Counters of a whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Engine iterations.
    pub iterations: u64,
    /// Prompt tokens computed (again after a preemption or a retry).
    pub prefill_tokens: u64,
    /// Output tokens delivered.
    pub output_tokens: u64,
    /// KV events sent by workers.
    pub events_sent: u64,
    /// … of which never reached a router.
    pub events_lost: u64,
    /// … of which a router refused (for instance, an unknown parent after a loss).
    pub events_refused: u64,
    /// Reports of iterations sent by workers.
    pub reports_sent: u64,
    /// … of which never reached a router.
    pub reports_lost: u64,
    /// Sequences that lost their blocks.
    pub preemptions: u64,
    /// Blocks that left device memory.
    pub evictions: u64,
    /// Prompt tokens brought back from a lower tier.
    pub onboarded_tokens: u64,
    /// Bytes of KV moved between pools.
    pub transfer_bytes: f64,
    /// Decisions made by the routers.
    pub decisions: u64,
    /// Highest number of blocks held at once by any worker.
    pub peak_active_blocks: u32,
}

/// Everything that came out.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// One row per request.
    pub requests: Requests,
    /// Time between consecutive tokens of a request.
    pub gaps: GapHistogram,
    /// See [`Samples`].
    pub samples: Samples,
    /// See [`Totals`].
    pub totals: Totals,
    /// When the last request ended, ms.
    pub end_ms: f64,
    /// What routing lost, per pool; `None` where it was not measured or fewer than two decisions were made.
    pub anarchy: Vec<Option<MeterReport>>,
    /// Changes of regime per pool, of policies that have regimes.
    pub regimes: Vec<Vec<RegimeChange>>,
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
