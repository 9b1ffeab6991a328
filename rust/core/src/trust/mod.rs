//! Trust in the index, per worker: how far a price may believe what the index lists for the worker.
//!
//! ```text
//! match ─▶ [`IndexTrust`]: listed blocks → believed blocks ─▶ price          O(workers), only while a worker is not exact
//! outcome: listed against reported cached tokens ─▶ [`Agreement`] ─┐
//! feed: gaps, silence, incarnation ─▶ feed share ──────────────────┴▶ score ─▶ [`TrustMode`]
//! ```
//!
//! Two figures follow from the finished requests of a worker whose engine reported its cached tokens. Each request
//! counts `15/16` of the request after it. `listed` is what the index listed, `excess` the part that the engine did not
//! find, `deficit` what the engine found beyond it. All are sums of tokens.
//!
//! ```text
//! score       = feed share · (1 − (excess + deficit) / (listed + deficit))       0 to 1
//! found share = feed share · (1 − excess / listed)                               0 to 1
//! ```
//!
//! A degraded worker is believed by the *gained share*: the found share of listed tokens less the found share of unlisted
//! tokens. A listed token that is found no more often than an unlisted one says nothing about the cache. Degraded workers
//! of similar shares are believed alike: 16 requests give a share with much noise, and noise moves requests to and fro.
//!
//! | mode | the price believes | falls here when | leaves upwards when |
//! |---|---|---|---|
//! | exact | all listed blocks | | |
//! | degraded | the gained share of them | score < 0.8 | score ≥ 0.9 |
//! | predicted | the blocks of requests that were placed on the worker | score < 0.4, and predictions score ≥ 0.6 | score ≥ 0.6 |
//! | load only | none | found share < 0.1 | found share ≥ 0.2 |
//!
//! A fall needs 4 requests of evidence since the last change of mode, a rise 8. A low feed share alone leads to
//! degraded at once, and its end leads back at once. A request is evidence when the index listed a block for it. It is
//! also evidence when the engine found a block more than the index and the requests in flight explain.
//!
//! Source of the decayed ratio: the posterior mean of a Beta distribution with discounted counts, as in West
//! and Harrison, *Bayesian Forecasting and Dynamic Models* (1997), with tokens for counts.

mod agreement;
mod table;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub(crate) use self::agreement::Claim;
use self::agreement::{Agreement, Evidence};
pub(crate) use self::table::IndexTrust;

/// What a price may believe about the cache of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustMode {
    /// All blocks that the index lists.
    #[default]
    Exact,
    /// The found share of the blocks that the index lists.
    Degraded,
    /// The blocks of the requests that were placed on the worker, in place of the index.
    Predicted,
    /// No block. The worker is priced by its load.
    LoadOnly,
}

impl TrustMode {
    /// Every mode, from the most to the least trust.
    pub const ALL: [Self; 4] = [Self::Exact, Self::Degraded, Self::Predicted, Self::LoadOnly];

    /// Name of the mode in metric labels and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Degraded => "degraded",
            Self::Predicted => "predicted",
            Self::LoadOnly => "load_only",
        }
    }
}

/// Score below which an exact worker becomes degraded.
const FALL_SCORE: f64 = 0.8;
/// Score from which a degraded worker becomes exact.
const RISE_SCORE: f64 = 0.9;
/// Score below which predictions may replace the index of a degraded worker.
const LOW_FALL_SCORE: f64 = 0.4;
/// Score from which the index replaces predictions again, and from which predictions hold.
const LOW_RISE_SCORE: f64 = 0.6;
/// Found share below which a worker becomes load only. The found share of a listed prefix is its expected length, so a
/// discount serves better than no belief until next to nothing is found.
const LEAST_FOUND_FALL: f64 = 0.1;
/// Found share from which a load-only worker becomes degraded again.
const LEAST_FOUND_RISE: f64 = 0.2;
/// Requests of evidence since the last change of mode that a fall needs.
const FALL_EVIDENCE: u32 = 4;
/// Requests of evidence since the last change of mode that a rise needs.
const RISE_EVIDENCE: u32 = 8;

/// Trust in the index about one worker, as a report.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trust {
    /// What a price may believe.
    pub mode: TrustMode,
    /// Agreement of the index with the engine, 0 to 1. 1 without evidence.
    pub score: f64,
    /// Share of the listed tokens that the engine finds, 0 to 1. 1 without evidence.
    pub found_share: f64,
    /// Part of the score that the state of the feed gives, 0 to 1.
    pub feed_share: f64,
    /// Changes of mode since the worker was registered.
    pub mode_changes: u64,
    /// Finished requests whose engine reported cached tokens.
    pub requests: u64,
    /// Cached tokens that the index listed for these requests.
    pub indexed_tokens: u64,
    /// Cached tokens that the engine reported.
    pub reported_tokens: u64,
    /// Σ |listed − reported|, in tokens.
    pub absolute_error_tokens: u64,
    /// Finished requests since the worker was registered that stored at least one block, by the engine's report.
    pub storing_requests: u64,
}

impl Default for Trust {
    fn default() -> Self {
        WorkerTrust::default().report()
    }
}

/// What a price believes of a worker's blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Belief {
    /// All listed blocks.
    All,
    /// This share of the listed blocks.
    Share(f64),
    /// This share of the blocks that placed requests predict.
    Placed(f64),
    /// No block.
    Nothing,
}

/// Evidence about one worker, with the mode that follows.
#[derive(Clone, Debug)]
struct WorkerTrust {
    mode: TrustMode,
    /// Listed against reported tokens.
    index: Agreement,
    /// Tokens predicted from placed requests against reported tokens. Without evidence while the mode is exact.
    placed: Agreement,
    /// Share that the state of the feed gives, 0 to 1.
    feed_share: f64,
    /// Requests of evidence since the last change of mode, saturating.
    since_change: u32,
    /// Whether the worker is degraded by its feed alone.
    is_degraded_by_feed: bool,
    /// Share of the listed blocks that a price believes while the worker is degraded, 0 to 1.
    believed_share: f64,
    /// Number of the incarnation and of the clears of its blocks. A claim of another number is no evidence.
    epoch: u32,
    totals: Totals,
}

/// Counts since the worker was registered.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    mode_changes: u64,
    requests: u64,
    indexed_tokens: u64,
    reported_tokens: u64,
    absolute_error_tokens: u64,
    storing_requests: u64,
}

impl Default for WorkerTrust {
    fn default() -> Self {
        Self {
            mode: TrustMode::Exact,
            index: Agreement::default(),
            placed: Agreement::default(),
            feed_share: 1.0,
            since_change: 0,
            is_degraded_by_feed: false,
            believed_share: 1.0,
            epoch: 0,
            totals: Totals::default(),
        }
    }
}

impl WorkerTrust {
    fn score(&self) -> f64 {
        self.feed_share * self.index.score()
    }

    fn found_share(&self) -> f64 {
        self.feed_share * self.index.found_share()
    }

    fn report(&self) -> Trust {
        let totals = &self.totals;
        Trust {
            mode: self.mode,
            score: self.score(),
            found_share: self.found_share(),
            feed_share: self.feed_share,
            mode_changes: totals.mode_changes,
            requests: totals.requests,
            indexed_tokens: totals.indexed_tokens,
            reported_tokens: totals.reported_tokens,
            absolute_error_tokens: totals.absolute_error_tokens,
            storing_requests: totals.storing_requests,
        }
    }

    fn belief(&self) -> Belief {
        match self.mode {
            TrustMode::Exact => Belief::All,
            TrustMode::Degraded => Belief::Share(self.believed_share),
            TrustMode::Predicted => Belief::Placed(self.placed.found_share()),
            TrustMode::LoadOnly => Belief::Nothing,
        }
    }

    /// Adds what an engine reported of one request.
    fn observe(&mut self, claim: &Claim, reported_tokens: u64, block_tokens: u64) {
        let listed_tokens = u64::from(claim.device_blocks) * block_tokens;
        let totals = &mut self.totals;
        totals.requests += 1;
        totals.indexed_tokens += listed_tokens;
        totals.reported_tokens += reported_tokens;
        totals.absolute_error_tokens += listed_tokens.abs_diff(reported_tokens);
        // Only whole blocks are listed. A prompt that is short or not known has none, and is no evidence.
        let reported_tokens = reported_tokens.min(u64::from(claim.request_blocks) * block_tokens);
        let new_blocks = u64::from(claim.request_blocks) - reported_tokens.div_ceil(block_tokens);
        totals.storing_requests += u64::from(new_blocks > 0);
        if claim.epoch != self.epoch || claim.request_blocks == 0 {
            return;
        }
        let most_blocks = claim.all_tiers_blocks.max(claim.in_flight_blocks);
        let of = |blocks: u32, most_blocks: u32| Evidence {
            listed_tokens: u64::from(blocks) * block_tokens,
            most_tokens: u64::from(most_blocks.max(blocks)) * block_tokens,
            reported_tokens,
            prompt_tokens: u64::from(claim.request_blocks) * block_tokens,
            block_tokens,
        };
        if self.index.add(of(claim.device_blocks, most_blocks)) {
            self.since_change = self.since_change.saturating_add(1);
        }
        if let Some(placed_blocks) = claim.placed_blocks {
            self.placed.add(of(placed_blocks, claim.in_flight_blocks));
        }
    }

    /// Moves to the mode that the evidence asks for. Returns whether the mode changed.
    fn judge(&mut self) -> bool {
        let next = self.next_mode();
        if self.index.score() < FALL_SCORE {
            self.is_degraded_by_feed = false;
        }
        if next == self.mode {
            return false;
        }
        self.is_degraded_by_feed =
            self.mode == TrustMode::Exact && next == TrustMode::Degraded && self.index.score() >= FALL_SCORE;
        self.mode = next;
        self.since_change = 0;
        self.totals.mode_changes += 1;
        if next == TrustMode::Exact {
            self.placed = Agreement::default();
        }
        true
    }

    fn next_mode(&self) -> TrustMode {
        use TrustMode::{Degraded, Exact, LoadOnly, Predicted};
        let (score, found_share) = (self.score(), self.found_share());
        let may_fall = self.since_change >= FALL_EVIDENCE;
        let may_rise = self.since_change >= RISE_EVIDENCE;
        let (placed, placed_score) = (self.placed.requests() >= FALL_EVIDENCE, self.placed.score());
        let predictions_hold = placed && placed_score >= LOW_RISE_SCORE;
        match self.mode {
            Exact if score < FALL_SCORE && (may_fall || self.feed_share < FALL_SCORE) => Degraded,
            Degraded if may_fall && score < LOW_FALL_SCORE && predictions_hold => Predicted,
            Degraded if may_fall && found_share < LEAST_FOUND_FALL => LoadOnly,
            Degraded if score >= RISE_SCORE && (may_rise || self.is_degraded_by_feed) => Exact,
            Predicted if may_rise && score >= LOW_RISE_SCORE => Degraded,
            Predicted if may_fall && placed && placed_score < LOW_FALL_SCORE => {
                if found_share < LEAST_FOUND_FALL {
                    LoadOnly
                } else {
                    Degraded
                }
            }
            LoadOnly if may_rise && self.index.lists_blocks() && found_share >= LEAST_FOUND_RISE => Degraded,
            LoadOnly if may_fall && predictions_hold => Predicted,
            mode => mode,
        }
    }

    /// The blocks of the worker were dropped from the index: earlier evidence says nothing of later blocks. The mode
    /// stays until later blocks earn another.
    fn forget_blocks(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.index = Agreement::default();
        self.since_change = 0;
    }

    /// A new incarnation of the worker begins without evidence.
    fn begin_incarnation(&mut self) {
        let changed = self.mode != TrustMode::Exact;
        *self = Self {
            epoch: self.epoch.wrapping_add(1),
            totals: self.totals,
            ..Self::default()
        };
        self.totals.mode_changes += u64::from(changed);
    }
}
