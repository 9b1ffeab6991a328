//! KV events from the workers to their router, with delay, loss and lies.

use wardrop_core::{EngineHash, KvEvent, LocalHash, StoredBlock, Tier};

use super::agenda::Event;
use super::ids::{engine_hash, local_hash, worker_id, wrong_hash};
use super::{Delayed, Fleet};
use crate::engine::CacheChange;
use crate::engine::block_pool::NONE;
use crate::engine::tiers::TierChange;
use crate::spec::{Lie, LieKind, Role};

impl Fleet<'_> {
    /// Turns the cache changes of a worker into KV events, and sends them to its router. Decode workers send none.
    pub(super) fn publish_changes(&mut self, worker: u32) {
        let mut changes = std::mem::take(&mut self.state.changes);
        if self.pools[self.pool_of[worker as usize]].role != Role::Decode {
            let mut at = 0;
            while at < changes.len() {
                at += self.publish_next(worker, &changes[at..]);
            }
        }
        changes.clear();
        self.state.changes = changes;
    }

    /// Sends the event for the first change, and returns the number of changes that the event covers.
    fn publish_next(&mut self, worker: u32, changes: &[CacheChange]) -> usize {
        match changes[0] {
            CacheChange::Stored { request, from, to } => {
                let event = self.stored_event(worker, request, from, to);
                self.send_event(worker, event);
                1
            }
            CacheChange::Removed { .. } => {
                let removed = changes.iter().map_while(|change| match change {
                    CacheChange::Removed { block } => Some(engine_hash(*block)),
                    _ => None,
                });
                let blocks: Vec<EngineHash> = removed.collect();
                let covered = blocks.len();
                let tier = Tier::Device;
                self.send_event(worker, KvEvent::Removed { blocks, tier });
                covered
            }
            CacheChange::Tier(change) => {
                if let Some(event) = self.tier_event(worker, change) {
                    self.send_event(worker, event);
                }
                1
            }
        }
    }

    fn stored_event(&mut self, worker: u32, request: u32, from: u32, to: u32) -> KvEvent {
        let mut blocks = std::mem::take(&mut self.spare_blocks);
        blocks.extend((from..to).map(|index| {
            let block = self.state.block(request, index);
            StoredBlock {
                engine_hash: engine_hash(block),
                local_hash: self.reported_hash(worker, block),
            }
        }));
        KvEvent::Stored {
            parent: (from > 0).then(|| engine_hash(self.state.block(request, from - 1))),
            blocks,
            tier: Tier::Device,
        }
    }

    fn send_event(&mut self, worker: u32, event: KvEvent) {
        self.state.totals.events_sent += 1;
        let feed = self.spec.feed;
        if (feed.loss > 0.0 && self.rng.unit() < feed.loss) || self.withholds(worker, &event) {
            self.state.totals.events_lost += 1;
            return;
        }
        if feed.delay_ms > 0.0 {
            let at_ms = self.now_ms + feed.delay_ms;
            self.delayed_events.push_back(Delayed {
                at_ms,
                worker,
                message: event,
            });
            self.agenda.push(at_ms, Event::Delivery);
            return;
        }
        self.apply_event(worker, event);
    }

    /// Delivers the delayed KV events that are due.
    pub(super) fn deliver_events(&mut self) {
        while let Some(delayed) = Delayed::pop_due(&mut self.delayed_events, self.now_ms) {
            self.apply_event(delayed.worker, delayed.message);
        }
    }

    fn apply_event(&mut self, worker: u32, event: KvEvent) {
        let worker = self.reported_worker(worker);
        let pool = &mut self.pools[self.pool_of[worker as usize]];
        // The router may refuse an event after a loss or a crash. Refusals are counted, and the run
        // continues.
        if pool.router.apply(worker_id(worker as usize), &event).is_err() {
            self.state.totals.events_refused += 1;
        }
        if let KvEvent::Stored { mut blocks, .. } = event {
            blocks.clear();
            self.spare_blocks = blocks;
        }
    }

    /// Whether a lie keeps an event of a worker from its router.
    fn withholds(&mut self, worker: u32, event: &KvEvent) -> bool {
        let mut lost_share = 0.0_f64;
        for lie in self
            .spec
            .lies
            .iter()
            .filter(|lie| lie.holds(worker as usize, self.now_ms))
        {
            match lie.kind {
                LieKind::LostEvents { share } => lost_share = lost_share.max(share),
                LieKind::Ghosts if matches!(event, KvEvent::Removed { .. }) => return true,
                _ => {}
            }
        }
        lost_share > 0.0 && self.rng.unit() < lost_share
    }

    /// The worker as which the router hears the events of a worker.
    fn reported_worker(&self, worker: u32) -> u32 {
        let now_ms = self.now_ms;
        let mut lies = self.spec.lies.iter();
        let crossed =
            lies.find(|lie| lie.kind == LieKind::CrossedFeeds && lie.holds(worker as usize, now_ms));
        crossed.map_or(worker, |lie| (worker + 1) % lie.workers as u32)
    }

    /// The local hash that a worker reports of a block.
    fn reported_hash(&self, worker: u32, block: u32) -> LocalHash {
        let lies = &self.spec.lies;
        let is_wrong =
            |lie: &Lie| lie.kind == LieKind::OtherHashes && lie.holds(worker as usize, self.now_ms);
        if lies.iter().any(is_wrong) {
            wrong_hash(block)
        } else {
            self.prompt_hash(block)
        }
    }

    /// The local hash of a block as the router computes it from a prompt.
    pub(super) fn prompt_hash(&self, block: u32) -> LocalHash {
        let salt = self.spec.lies.iter().find_map(|lie| match lie.kind {
            LieKind::IgnoredSalt { tenant_blocks } => Some(tenant_blocks),
            _ => None,
        });
        local_hash(salt.map_or(block, |tenant_blocks| block % tenant_blocks))
    }

    /// The KV event for a change of host or disk. A network tier is shared by all workers, so no worker reports it.
    fn tier_event(&self, worker: u32, change: TierChange) -> Option<KvEvent> {
        let tier = |level| [Tier::Host, Tier::Disk].get(level).copied();
        match change {
            TierChange::Stored { level, block, parent } => tier(level).map(|tier| KvEvent::Stored {
                parent: (parent != NONE).then(|| engine_hash(parent)),
                blocks: vec![StoredBlock {
                    engine_hash: engine_hash(block),
                    local_hash: self.reported_hash(worker, block),
                }],
                tier,
            }),
            TierChange::Removed { level, block } => tier(level).map(|tier| KvEvent::Removed {
                blocks: vec![engine_hash(block)],
                tier,
            }),
        }
    }
}
