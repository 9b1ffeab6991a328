//! Order of one worker's KV events: gaps, incarnations, and a join in mid-stream that counts no block twice.
//!
//! Event ids of one worker grow by one. A gap means lost events. A lower id means a new incarnation of the worker,
//! which starts with an empty cache.
//!
//! After a gap or a join in mid-stream, the router still applies live events. The cursor also keeps a copy of each event
//! until a dump of the worker's blocks arrives. The kept events begin before the dump was taken, so dump and kept events
//! overlap. The cursor therefore joins both as a *set* of blocks: a second store of a block changes nothing.
//!
//! Blocks from a saved index stay valid until the worker's first event or dump. The next event id confirms the blocks.
//! A later id shows lost events; a lower id shows a restart.
//!
//! Complexity: O(1) per event id, O(blocks) per kept event and per dump. Memory is bounded by [`KEPT_BLOCKS_LIMIT`].

use std::collections::HashSet;

use wardrop_core::{EngineHash, KvEvent, StoredBlock, Tier};

use super::position::Coverage;

/// Limit of blocks in kept events per worker. Above the limit the cursor drops the events and needs a second dump.
const KEPT_BLOCKS_LIMIT: usize = 200_000;

/// Action for one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The event is usable: apply it.
    Apply,
    /// The event has the id of the last event: drop it.
    Duplicate,
    /// The worker restarted: clear its blocks in the index, then apply the event.
    NewIncarnation,
    /// Events after the saved index are lost and no dump follows: clear the worker's blocks, then apply the event.
    Forget,
}

/// Result of the check of restored blocks against the worker's first event.
///
/// The discriminant is the position in `ApplyCounts::restored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestoreVerdict {
    /// The event has the next id, so the restored blocks are exact.
    Exact,
    /// Events between the saved index and this event are lost.
    Outrun,
    /// The worker restarted after the index was saved.
    Restarted,
}

/// Position in one worker's event stream, and whether the index is complete for the worker.
#[derive(Debug, Default)]
pub(crate) struct EventCursor {
    /// Id of the last event; `None` before the first event.
    last_id: Option<u64>,
    /// Whether the index holds every block that the worker holds.
    synced: bool,
    /// Events since the gap or join; `Some` exactly while the worker needs a dump.
    kept: Option<BufferedEvents>,
    /// Set while the index holds blocks from a file that no event or dump has confirmed.
    restored: Option<Restored>,
    /// Number of gaps in the event ids.
    pub gaps: u64,
    /// Number of events lost in gaps.
    pub lost_events: u64,
    /// Number of events dropped as duplicates.
    pub duplicates: u64,
    /// Number of restarts of the worker that the event stream showed.
    pub incarnations: u64,
}

/// State of blocks from a saved index before their check.
#[derive(Clone, Copy, Debug)]
struct Restored {
    /// Whether a dump can replace the blocks when events are lost.
    dump_follows: bool,
}

/// Copies of live events for the join with a dump.
#[derive(Debug, Default)]
struct BufferedEvents {
    /// Events in their order of arrival.
    events: Vec<KvEvent>,
    /// Blocks in all events, dropped events included.
    blocks: usize,
    /// Whether the limit was exceeded, so that `events` is incomplete and the next dump is not enough.
    overflowed: bool,
}

impl EventCursor {
    /// Id of the last event; `None` before the first event.
    pub fn last_id(&self) -> Option<u64> {
        self.last_id
    }

    /// Whether the index holds every block that the worker holds.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// How much of the worker's cache the index holds.
    pub fn coverage(&self) -> Coverage {
        match self.last_id {
            _ if !self.synced => Coverage::Partial,
            None => Coverage::Dumped,
            Some(last_id) => Coverage::UpTo(last_id),
        }
    }

    /// Whether events are missing, so that the worker needs a dump.
    pub fn needs_resync(&self) -> bool {
        self.kept.is_some()
    }

    /// Resets the cursor for blocks from a saved index.
    ///
    /// `last_id` is the last event id in the saved index; `None` when only a dump filled the index.
    pub fn restore(&mut self, last_id: Option<u64>, dump_follows: bool) {
        *self = Self {
            last_id,
            restored: Some(Restored { dump_follows }),
            ..Self::default()
        };
    }

    /// Whether the index holds blocks from a file that no event or dump has confirmed.
    pub fn is_restored(&self) -> bool {
        self.restored.is_some()
    }

    /// Checks restored blocks against the worker's first event, and advances the cursor. `None` when no check is due.
    ///
    /// A restarted worker publishes under a new publisher id, so a different publisher also means a restart.
    pub fn check_restored(&mut self, event_id: u64, same_publisher: bool) -> Option<(RestoreVerdict, Step)> {
        let restored = self.restored.take()?;
        let last = self.last_id.unwrap_or(1);
        if !same_publisher || event_id <= last {
            self.last_id = None;
            // The new incarnation may have published before this event; without a last id `advance` treats that as a join.
            let step = self.advance(event_id);
            debug_assert_eq!(step, Step::Apply, "a stream without a past has no holes");
            self.incarnations += 1;
            return Some((RestoreVerdict::Restarted, Step::NewIncarnation));
        }
        if self.last_id.is_some() && event_id == last + 1 {
            self.synced = true;
            self.last_id = Some(event_id);
            return Some((RestoreVerdict::Exact, Step::Apply));
        }
        let step = self.advance(event_id);
        let step = if restored.dump_follows { step } else { Step::Forget };
        Some((RestoreVerdict::Outrun, step))
    }

    /// Advances to an event id and returns the action for the event. O(1).
    pub fn advance(&mut self, event_id: u64) -> Step {
        match self.last_id {
            Some(last) if event_id == last => {
                self.duplicates += 1;
                return Step::Duplicate;
            }
            Some(last) if event_id < last => {
                self.incarnations += 1;
                self.last_id = Some(event_id);
                self.kept = None;
                self.synced = true;
                if event_id > 1 {
                    self.miss(event_id - 1);
                }
                return Step::NewIncarnation;
            }
            Some(last) if event_id > last + 1 => self.miss(event_id - last - 1),
            None if event_id <= 1 => self.synced = true,
            None if !self.synced => self.miss(0),
            _ => {}
        }
        self.last_id = Some(event_id);
        Step::Apply
    }

    /// Marks the stream as incomplete and begins to keep events.
    ///
    /// `lost_events` is 0 when the number of lost events is unknown, for example after a disconnect.
    pub fn miss(&mut self, lost_events: u64) {
        if lost_events > 0 {
            self.gaps += 1;
            self.lost_events += lost_events;
        }
        self.synced = false;
        self.restored = None;
        self.kept.get_or_insert_default();
    }

    /// Keeps a copy of an event while the worker needs a dump.
    pub fn keep(&mut self, event: &KvEvent) {
        let Some(kept) = &mut self.kept else { return };
        kept.blocks += match event {
            KvEvent::Stored { blocks, .. } => blocks.len(),
            KvEvent::Removed { blocks, .. } => blocks.len(),
            KvEvent::Cleared => 1,
        };
        if kept.blocks > KEPT_BLOCKS_LIMIT {
            kept.events = Vec::new();
            kept.overflowed = true;
        } else {
            kept.events.push(event.clone());
        }
    }

    /// Joins a dump of the worker's blocks with the kept events. Returns the events to apply to an empty worker, in order.
    pub fn load_dump(&mut self, dump: Vec<KvEvent>) -> Vec<KvEvent> {
        let kept = self.kept.take().unwrap_or_default();
        let mut held = HeldBlocks::default();
        let mut out = Vec::with_capacity(dump.len() + kept.events.len());
        for event in dump.into_iter().chain(kept.events) {
            held.apply(event, &mut out);
        }
        self.synced = true;
        self.restored = None;
        if kept.overflowed {
            // The dropped events may be newer than the dump, so the worker needs a second dump.
            self.miss(0);
        }
        out
    }
}

/// The set of blocks a worker holds, while a dump is joined with live events.
#[derive(Default)]
struct HeldBlocks(HashSet<(Tier, EngineHash)>);

impl HeldBlocks {
    /// Appends the effective part of `event` to `out`.
    ///
    /// A store of a held block and a removal of an absent block have no effect. A held block in the middle of a store
    /// splits the store in two, because each store is one chain of new blocks below a parent.
    fn apply(&mut self, event: KvEvent, out: &mut Vec<KvEvent>) {
        match event {
            KvEvent::Stored { parent, blocks, tier } => {
                let mut above = parent;
                let mut run: Vec<StoredBlock> = Vec::new();
                let mut run_parent = parent;
                for block in blocks {
                    if self.0.insert((tier, block.engine_hash)) {
                        if run.is_empty() {
                            run_parent = above;
                        }
                        run.push(block);
                    } else if !run.is_empty() {
                        out.push(KvEvent::Stored {
                            parent: run_parent,
                            blocks: std::mem::take(&mut run),
                            tier,
                        });
                    }
                    above = Some(block.engine_hash);
                }
                if !run.is_empty() {
                    out.push(KvEvent::Stored {
                        parent: run_parent,
                        blocks: run,
                        tier,
                    });
                }
            }
            KvEvent::Removed { mut blocks, tier } => {
                blocks.retain(|block| self.0.remove(&(tier, *block)));
                if !blocks.is_empty() {
                    out.push(KvEvent::Removed { blocks, tier });
                }
            }
            KvEvent::Cleared => {
                self.0.clear();
                out.push(KvEvent::Cleared);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wardrop_core::LocalHash;

    fn store(parent: Option<u64>, hashes: &[u64]) -> KvEvent {
        let blocks = hashes
            .iter()
            .map(|&h| StoredBlock {
                engine_hash: EngineHash(h),
                local_hash: LocalHash(h),
            })
            .collect();
        KvEvent::Stored {
            parent: parent.map(EngineHash),
            blocks,
            tier: Tier::Device,
        }
    }

    fn remove(hashes: &[u64]) -> KvEvent {
        KvEvent::Removed {
            blocks: hashes.iter().map(|&h| EngineHash(h)).collect(),
            tier: Tier::Device,
        }
    }

    #[test]
    fn stream_from_its_start_is_synced() {
        let mut cursor = EventCursor::default();
        assert_eq!(cursor.advance(1), Step::Apply);
        assert_eq!(cursor.advance(2), Step::Apply);
        assert!(cursor.is_synced() && !cursor.needs_resync());
    }

    #[test]
    fn joining_in_mid_stream_needs_a_dump() {
        let mut cursor = EventCursor::default();
        assert_eq!(cursor.advance(17), Step::Apply);
        assert!(cursor.needs_resync());
        cursor.load_dump(Vec::new());
        assert!(cursor.is_synced() && !cursor.needs_resync());
        assert_eq!(cursor.gaps, 0);
    }

    #[test]
    fn hole_is_counted_and_needs_a_dump() {
        let mut cursor = EventCursor::default();
        cursor.advance(1);
        assert_eq!(cursor.advance(4), Step::Apply);
        assert_eq!((cursor.gaps, cursor.lost_events), (1, 2));
        assert!(cursor.needs_resync());
    }

    #[test]
    fn falling_id_is_a_new_incarnation_that_starts_empty() {
        let mut cursor = EventCursor::default();
        cursor.advance(1);
        cursor.advance(2);
        assert_eq!(cursor.advance(1), Step::NewIncarnation);
        assert!(cursor.is_synced());
        assert_eq!(cursor.advance(1), Step::Duplicate);
        assert_eq!(cursor.advance(2), Step::Apply);
    }

    #[test]
    fn idle_worker_that_was_dumped_may_go_on_at_any_id() {
        let mut cursor = EventCursor::default();
        cursor.load_dump(vec![store(None, &[1])]);
        assert_eq!(cursor.advance(500), Step::Apply);
        assert!(cursor.is_synced());
    }

    #[test]
    fn block_in_dump_and_in_kept_event_is_counted_once() {
        let mut cursor = EventCursor::default();
        cursor.advance(9);
        cursor.keep(&store(Some(1), &[2, 3]));
        let events = cursor.load_dump(vec![store(None, &[1]), store(Some(1), &[2])]);
        assert_eq!(
            events,
            vec![store(None, &[1]), store(Some(1), &[2]), store(Some(2), &[3])]
        );
    }

    fn restored(dump_follows: bool) -> EventCursor {
        let mut cursor = EventCursor::default();
        cursor.restore(Some(40), dump_follows);
        assert!(cursor.is_restored() && !cursor.is_synced() && !cursor.needs_resync());
        cursor
    }

    #[test]
    fn next_event_proves_what_was_restored() {
        let mut cursor = restored(true);
        assert_eq!(
            cursor.check_restored(41, true),
            Some((RestoreVerdict::Exact, Step::Apply))
        );
        assert!(cursor.is_synced() && !cursor.is_restored());
        assert_eq!(cursor.check_restored(42, true), None, "it is judged once");
        assert_eq!(cursor.advance(42), Step::Apply);
    }

    #[test]
    fn later_event_asks_for_a_dump_or_forgets_where_none_can_come() {
        let mut cursor = restored(true);
        assert_eq!(
            cursor.check_restored(44, true),
            Some((RestoreVerdict::Outrun, Step::Apply))
        );
        assert!(cursor.needs_resync());
        assert_eq!(cursor.lost_events, 3);
        let mut cursor = restored(false);
        assert_eq!(
            cursor.check_restored(44, true),
            Some((RestoreVerdict::Outrun, Step::Forget))
        );
    }

    #[test]
    fn lower_equal_or_other_publishers_event_is_a_restart_that_starts_empty() {
        for (event_id, same_publisher) in [(1, true), (40, true), (41, false), (1, false)] {
            let mut cursor = restored(true);
            let checked = cursor.check_restored(event_id, same_publisher);
            assert_eq!(checked, Some((RestoreVerdict::Restarted, Step::NewIncarnation)));
            assert_eq!(
                (cursor.is_synced(), cursor.last_id()),
                (event_id == 1, Some(event_id))
            );
            assert_eq!(cursor.needs_resync(), event_id > 1);
        }
    }

    #[test]
    fn worker_that_had_told_nothing_is_proved_by_a_dump_only() {
        let mut cursor = EventCursor::default();
        cursor.restore(None, true);
        assert_eq!(
            cursor.check_restored(2, true),
            Some((RestoreVerdict::Outrun, Step::Apply))
        );
        assert!(cursor.needs_resync());
        cursor.restore(None, true);
        assert_eq!(
            cursor.check_restored(1, true),
            Some((RestoreVerdict::Restarted, Step::NewIncarnation))
        );
        cursor.restore(None, true);
        cursor.load_dump(Vec::new());
        assert_eq!(cursor.coverage(), Coverage::Dumped);
    }

    #[test]
    fn dump_settles_what_was_restored() {
        let mut cursor = restored(true);
        assert_eq!(cursor.load_dump(vec![store(None, &[1])]).len(), 1);
        assert!(cursor.is_synced() && !cursor.is_restored());
    }

    #[test]
    fn overflow_asks_for_another_dump() {
        let mut cursor = EventCursor::default();
        cursor.advance(9);
        let hashes: Vec<u64> = (0..=KEPT_BLOCKS_LIMIT as u64).collect();
        cursor.keep(&store(None, &hashes));
        cursor.load_dump(Vec::new());
        assert!(cursor.needs_resync());
    }

    /// Counts the copies of each block after `events`; a block that is stored twice counts 2.
    fn count(events: &[KvEvent]) -> std::collections::BTreeMap<u64, i32> {
        let mut held = std::collections::BTreeMap::new();
        for event in events {
            match event {
                KvEvent::Stored { blocks, .. } => {
                    for block in blocks {
                        *held.entry(block.engine_hash.0).or_insert(0) += 1;
                    }
                }
                KvEvent::Removed { blocks, .. } => {
                    for block in blocks {
                        *held.entry(block.0).or_insert(0) -= 1;
                    }
                }
                KvEvent::Cleared => held.clear(),
            }
        }
        held.retain(|_, n| *n != 0);
        held
    }

    proptest! {
        /// A dump from any point of the kept events joins to the same blocks, each counted once.
        #[test]
        fn any_overlap_of_dump_and_live_events_joins_exactly(ops in prop::collection::vec((any::<bool>(), 0u64..12), 1..60), from in 0usize..60, taken in 0usize..60) {
            // The true stream: a block is stored only while absent and removed only while present.
            let mut held = std::collections::BTreeSet::new();
            let mut stream = Vec::new();
            for (add, block) in ops {
                if add && held.insert(block) { stream.push(store(None, &[block])); }
                if !add && held.remove(&block) { stream.push(remove(&[block])); }
            }
            let from = from % (stream.len() + 1);
            let taken = from + taken % (stream.len() - from + 1);
            let dump: Vec<KvEvent> = count(&stream[..taken]).into_keys().map(|b| store(None, &[b])).collect();
            let mut cursor = EventCursor::default();
            cursor.miss(0);
            for event in &stream[from..] { cursor.keep(event); }
            let joined = count(&cursor.load_dump(dump));
            prop_assert!(joined.values().all(|&n| n == 1));
            prop_assert_eq!(joined, count(&stream));
        }
    }
}
