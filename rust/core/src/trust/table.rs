//! The trust of every worker by slot, and what it lets a price believe.

use super::agreement::Agreement;
use super::{Belief, Claim, Trust, TrustMode, WorkerTrust};
use crate::index::{Slot, TierOverlap};

/// Largest distance of a worker's gained share from the pooled one at which the worker takes the pooled one.
const SIMILAR_SHARES: f64 = 0.25;

/// Trust in the index about every worker.
#[derive(Debug, Default)]
pub(crate) struct IndexTrust {
    /// Trust by slot.
    workers: Vec<WorkerTrust>,
    /// Slots whose mode is not exact.
    not_exact: usize,
    /// Whether every worker stays exact regardless of the evidence.
    is_fixed: bool,
}

impl IndexTrust {
    /// A table without workers. With `measures` false, every worker stays exact.
    pub(crate) fn new(measures: bool) -> Self {
        Self {
            is_fixed: !measures,
            ..Self::default()
        }
    }

    /// Starts a worker without evidence.
    pub(crate) fn add_worker(&mut self, slot: Slot) {
        let len = self.workers.len().max(slot.index() + 1);
        self.workers.resize_with(len, WorkerTrust::default);
        self.remove_worker(slot);
    }

    /// Drops the evidence about a worker that left.
    pub(crate) fn remove_worker(&mut self, slot: Slot) {
        let epoch = self.workers[slot.index()].epoch.wrapping_add(1);
        self.change(slot, |worker| {
            *worker = WorkerTrust {
                epoch,
                ..WorkerTrust::default()
            };
        });
    }

    /// Whether every worker is exact, so that listed blocks are believed blocks.
    pub(crate) const fn is_exact(&self) -> bool {
        self.not_exact == 0
    }

    /// Mode of a worker.
    pub(crate) fn mode(&self, slot: Slot) -> TrustMode {
        self.workers[slot.index()].mode
    }

    /// Number of the worker's incarnation and clears, for its claims.
    pub(crate) fn epoch(&self, slot: Slot) -> u32 {
        self.workers[slot.index()].epoch
    }

    /// Trust in the index about a worker.
    pub(crate) fn report(&self, slot: Slot) -> Trust {
        self.workers[slot.index()].report()
    }

    /// Adds what an engine reported of one request. Returns whether the mode of the worker changed.
    pub(crate) fn observe(
        &mut self,
        slot: Slot,
        claim: &Claim,
        reported_tokens: u64,
        block_tokens: u32,
    ) -> bool {
        self.change(slot, |worker| {
            worker.observe(claim, reported_tokens, u64::from(block_tokens));
        })
    }

    /// Sets the share of the score that the state of a feed gives, within 0 to 1. Returns whether the mode changed.
    pub(crate) fn set_feed_share(&mut self, slot: Slot, feed_share: f64) -> bool {
        let feed_share = if feed_share >= 0.0 {
            feed_share.min(1.0)
        } else {
            0.0
        };
        self.change(slot, |worker| worker.feed_share = feed_share)
    }

    /// Drops the evidence about blocks that left the index as a whole. The mode stays.
    pub(crate) fn forget_blocks(&mut self, slot: Slot) {
        self.workers[slot.index()].forget_blocks();
    }

    /// Starts an incarnation of a worker without evidence.
    pub(crate) fn begin_incarnation(&mut self, slot: Slot) -> bool {
        self.change(slot, WorkerTrust::begin_incarnation)
    }

    /// Changes a worker and moves it to the mode that follows. Returns whether its mode changed.
    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut WorkerTrust)) -> bool {
        let worker = &mut self.workers[slot.index()];
        let before = worker.mode;
        change(worker);
        if !self.is_fixed {
            worker.judge();
        }
        let is_exact = |mode| usize::from(mode != TrustMode::Exact);
        let is_changed = worker.mode != before;
        self.not_exact = self.not_exact + is_exact(worker.mode) - is_exact(before);
        if self.not_exact > 0 {
            self.share_evidence();
        }
        is_changed
    }

    /// Sets what a price believes of each degraded worker, from the evidence of all degraded workers. O(workers).
    fn share_evidence(&mut self) {
        let is_pooled =
            |worker: &WorkerTrust| worker.mode == TrustMode::Degraded && !worker.is_degraded_by_feed;
        let mut pool = Agreement::default();
        for worker in self.workers.iter().filter(|worker| is_pooled(worker)) {
            pool.merge(&worker.index);
        }
        let pooled = pool.gained_share();
        for worker in &mut self.workers {
            let own = worker.index.gained_share();
            let is_similar = is_pooled(worker) && (own - pooled).abs() <= SIMILAR_SHARES;
            worker.believed_share = worker.feed_share * if is_similar { pooled } else { own };
        }
    }

    /// What a price believes of the blocks that the index lists and placed requests predict. The second value says whether
    /// blocks in flight count as well.
    pub(crate) fn believed(
        &self,
        slot: Slot,
        listed: TierOverlap,
        placed_blocks: u32,
    ) -> (TierOverlap, bool) {
        match self.workers[slot.index()].belief() {
            Belief::All => (listed, true),
            Belief::Share(share) => (shortened(listed, share), true),
            Belief::Placed(share) => (shortened([placed_blocks, 0, 0], share), true),
            Belief::Nothing => ([0; 3], false),
        }
    }
}

/// The leading `share` of an overlap, rounded down to whole blocks.
fn shortened([device, host, disk]: TierOverlap, share: f64) -> TierOverlap {
    let all = f64::from(device) + f64::from(host) + f64::from(disk);
    let left = (all * share) as u32;
    let device = device.min(left);
    let host = host.min(left - device);
    [device, host, disk.min(left - device - host)]
}
