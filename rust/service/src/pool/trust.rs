//! Trust in the index, as far as the pool has a part in it: the state of the feeds goes to the router, and a fall of trust
//! makes the worker's blocks suspect.
//!
//! The router measures the trust, see [`wardrop_core::trust`]. The pool gives the feed share:
//!
//! ```text
//! feed share = order · silence
//! order      = 1 for synced, partial and restored blocks; min(0.75, heard / (heard + lost)) for suspect blocks
//! silence    = ½ for each run of 8 requests that stored a block without an event from the worker
//! ```
//!
//! `heard` and `lost` count the worker's events. An event weighs 1023/1024 of the event after it.
//! Complexity: O(1) per event and per finished request.

use wardrop_core::{Trust, TrustMode, WorkerId};

use super::cursor::StreamState;
use super::{State, Worker, WorkerPool};

/// Most that blocks count for while events are missing. It is below the score at which a worker stays exact.
const SUSPECT_SHARE: f64 = 0.75;
/// Requests without an event that halve the feed share.
const SILENT_REQUESTS: u32 = 8;
/// Most halves that silence may take, so that the share stays above 0.
const SILENT_HALVES_MAX: u32 = 16;
/// Found share below which the blocks of a worker that is not exact are suspect.
const SUSPECT_FOUND_SHARE: f64 = 0.5;
/// Found share from which a later fall makes the blocks suspect again.
const SOUND_FOUND_SHARE: f64 = 0.6;

/// What the pool remembers of the trust in one worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct FeedTrust {
    /// Finished requests in a row that stored a block, and of which no event came.
    silent_requests: u32,
    /// Feed share that the router knows.
    feed_share: f64,
    /// Storing requests that were compared with the worker's events.
    storing_requests: u64,
    /// Mode at the last look.
    mode: TrustMode,
    /// Whether the blocks became suspect because the engine does not find them.
    is_doubted: bool,
}

impl Default for FeedTrust {
    fn default() -> Self {
        Self {
            silent_requests: 0,
            feed_share: 1.0,
            storing_requests: 0,
            mode: TrustMode::Exact,
            is_doubted: false,
        }
    }
}

impl FeedTrust {
    /// An event of the worker came.
    pub fn heard(&mut self) {
        self.silent_requests = 0;
    }
}

impl Worker {
    /// Share of the score that the state of the feed gives, above 0 and at most 1.
    fn feed_share(&self) -> f64 {
        let order = match self.cursor.state() {
            // The worker's first event confirms restored blocks or makes them suspect. A discount before that event would
            // cost every worker a quarter of its reuse after each restart of the router.
            StreamState::Synced | StreamState::Partial | StreamState::Restored => 1.0,
            StreamState::Suspect => self.cursor.heard_share().min(SUSPECT_SHARE),
        };
        let halves = (self.trust.silent_requests / SILENT_REQUESTS).min(SILENT_HALVES_MAX);
        order * 0.5_f64.powi(halves.cast_signed())
    }
}

impl State {
    /// Passes the state of a worker's feed on to the router, when it changed.
    ///
    /// Called at every review of a worker, hence the comparison first.
    pub(super) fn share_feed(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let feed_share = worker.feed_share();
        if (feed_share - worker.trust.feed_share).abs() > f64::EPSILON {
            worker.trust.feed_share = feed_share;
            let _ = self.router.set_feed_share(id, feed_share);
        }
    }
}

impl WorkerPool {
    /// Looks at the trust in a worker after the engine's count of cached tokens reached the router.
    ///
    /// `placed_s` is the time at which the request was placed.
    ///
    /// A request that stored a block must have caused an event after its placement. A run of
    /// requests without one shows a feed that lost the worker.
    pub(crate) fn review_trust(&self, id: WorkerId, placed_s: f64) {
        let Ok(trust) = self.router.trust(id) else {
            return;
        };
        let state = &mut *self.state.lock();
        let Some(worker) = state.workers.get_mut(&id) else {
            return;
        };
        let stored = trust.storing_requests > worker.trust.storing_requests;
        worker.trust.storing_requests = trust.storing_requests;
        let last_event_s = worker.health.last_event_s();
        if stored && last_event_s.is_some_and(|at_s| at_s < placed_s) {
            worker.trust.silent_requests = worker.trust.silent_requests.saturating_add(1);
        }
        worker.follow_trust(id, &trust);
        state.share_feed(id);
    }
}

impl Worker {
    /// Reports a change of mode. Makes the blocks suspect when the engine does not find most of them: a dump, or the deadline
    /// of suspect blocks, then removes the blocks.
    ///
    /// A worker is doubted once per fall: only a found share of [`SOUND_FOUND_SHARE`] or above arms
    /// the rule again.
    fn follow_trust(&mut self, id: WorkerId, trust: &Trust) {
        if std::mem::replace(&mut self.trust.mode, trust.mode) != trust.mode {
            tracing::info!(
                worker_id = id.instance,
                dp_rank = id.dp_rank,
                mode = trust.mode.name(),
                score = trust.score,
                found_share = trust.found_share,
                "the trust in the index about a worker changed"
            );
        }
        // The feed share is no news about what the engine finds.
        let found_share = trust.found_share / trust.feed_share;
        if found_share >= SOUND_FOUND_SHARE {
            self.trust.is_doubted = false;
        } else if found_share < SUSPECT_FOUND_SHARE
            && trust.mode != TrustMode::Exact
            && !std::mem::replace(&mut self.trust.is_doubted, true)
        {
            self.cursor.suspect();
            self.position.forget();
        }
    }
}
