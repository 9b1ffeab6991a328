//! What the fleet tells its routers: KV events and reports of iterations, both late and lossy.

use super::{Fleet, engine_hash, local_hash, worker_id};
use crate::agenda::Event;
use crate::config::Role;
use crate::engine::CacheChange;
use crate::pool::NONE;
use crate::tier::TierChange;
use wardrop_core::latency::Pass;
use wardrop_core::{EngineHash, KvEvent, StoredBlock, Tier};

impl Fleet<'_> {
    /// Turn a worker's cache changes into KV events on their way to its router.
    pub(super) fn carry(&mut self, worker: u32) {
        let mut changes = std::mem::take(&mut self.desk.changes);
        if self.pools[self.pool_of[worker as usize]].role != Role::Decode {
            let mut at = 0;
            while at < changes.len() {
                let (event, used) = self.event(&changes[at..]);
                at += used;
                if let Some(event) = event {
                    self.send(worker, event);
                }
            }
        }
        changes.clear();
        self.desk.changes = changes;
    }

    /// The KV event for the first change; runs of removals become one event. Returns how many changes it covers.
    pub(super) fn event(&mut self, changes: &[CacheChange]) -> (Option<KvEvent>, usize) {
        match changes[0] {
            CacheChange::Stored { request, from, to } => {
                let (workload, naming) = (&*self.desk.workload, self.desk.naming);
                let mut blocks = std::mem::take(&mut self.spare_blocks);
                blocks.extend((from..to).map(|index| {
                    let block = naming.block(workload, request, index);
                    StoredBlock {
                        engine_hash: engine_hash(block),
                        local_hash: local_hash(block),
                    }
                }));
                let parent = (from > 0).then(|| engine_hash(naming.block(workload, request, from - 1)));
                (
                    Some(KvEvent::Stored {
                        parent,
                        blocks,
                        tier: Tier::Device,
                    }),
                    1,
                )
            }
            CacheChange::Removed { .. } => {
                let removed = changes.iter().map_while(|change| match change {
                    CacheChange::Removed { block } => Some(engine_hash(*block)),
                    _ => None,
                });
                let blocks: Vec<EngineHash> = removed.collect();
                let used = blocks.len();
                (
                    Some(KvEvent::Removed {
                        blocks,
                        tier: Tier::Device,
                    }),
                    used,
                )
            }
            CacheChange::Tier(change) => (Self::tier_event(change), 1),
        }
    }

    /// Host and disk are told; a network tier belongs to nobody, so no worker reports it.
    pub(super) fn tier_event(change: TierChange) -> Option<KvEvent> {
        let tier = |level| [Tier::Host, Tier::Disk].get(level).copied();
        match change {
            TierChange::Stored { level, block, parent } => tier(level).map(|tier| KvEvent::Stored {
                parent: (parent != NONE).then(|| engine_hash(parent)),
                blocks: vec![StoredBlock {
                    engine_hash: engine_hash(block),
                    local_hash: local_hash(block),
                }],
                tier,
            }),
            TierChange::Removed { level, block } => tier(level).map(|tier| KvEvent::Removed {
                blocks: vec![engine_hash(block)],
                tier,
            }),
        }
    }

    pub(super) fn send(&mut self, worker: u32, event: KvEvent) {
        self.desk.totals.events_sent += 1;
        if self.spec.feed.loss > 0.0 && self.rng.unit() < self.spec.feed.loss {
            self.desk.totals.events_lost += 1;
            return;
        }
        if self.spec.feed.delay_ms > 0.0 {
            let at_ms = self.now_ms + self.spec.feed.delay_ms;
            self.feed.push_back((at_ms, worker, event));
            self.agenda.push(at_ms, Event::Feed);
            return;
        }
        self.apply(worker, event);
    }

    pub(super) fn deliver(&mut self) {
        while self
            .feed
            .front()
            .is_some_and(|(at_ms, _, _)| *at_ms <= self.now_ms)
        {
            if let Some((_, worker, event)) = self.feed.pop_front() {
                self.apply(worker, event);
            }
        }
    }

    pub(super) fn apply(&mut self, worker: u32, event: KvEvent) {
        let pool = &mut self.pools[self.pool_of[worker as usize]];
        // Refusals are expected after a loss or a crash: they are counted, and the feed goes on.
        if pool.router.apply(worker_id(worker as usize), &event).is_err() {
            self.desk.totals.events_refused += 1;
        }
        if let KvEvent::Stored { mut blocks, .. } = event {
            blocks.clear();
            self.spare_blocks = blocks;
        }
    }

    // ── metrics ───────────────────────────────────────────────────────────────────────────────────────────────────────

    /// A worker's iteration is over: report it, if the fleet does.
    pub(super) fn report(&mut self, worker: u32) {
        if !self.spec.feed.metrics {
            return;
        }
        self.desk.totals.reports_sent += 1;
        if self.spec.feed.metrics_loss > 0.0 && self.rng.unit() < self.spec.feed.metrics_loss {
            self.desk.totals.reports_lost += 1;
            return;
        }
        let pass = *self.workers[worker as usize].last_pass();
        if self.spec.feed.metrics_delay_ms > 0.0 {
            let at_ms = self.now_ms + self.spec.feed.metrics_delay_ms;
            self.reports.push_back((at_ms, worker, pass));
            self.agenda.push(at_ms, Event::Metrics);
            return;
        }
        self.teach(worker, &pass);
    }

    pub(super) fn deliver_reports(&mut self) {
        while let Some((_, worker, pass)) = self
            .reports
            .front()
            .copied()
            .filter(|(at_ms, _, _)| *at_ms <= self.now_ms)
        {
            self.reports.pop_front();
            self.teach(worker, &pass);
        }
    }

    fn teach(&mut self, worker: u32, pass: &Pass) {
        let router = &self.pools[self.pool_of[worker as usize]].router;
        // A report may outlive its worker: then it teaches nobody.
        router.teach(worker_id(worker as usize), |curves, position| {
            curves.pass(position, pass);
        });
    }
}
