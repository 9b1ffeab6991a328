//! Order of one worker's KV events: continuity, incarnations, and joining in mid-stream without counting a block twice.
//!
//! Event ids grow by one per worker. A hole means lost events; an id that falls back means a new incarnation. After a join in
//! mid-stream, or a hole, live events stay visible but are kept as well, until a dump of the whole index arrives: the dump plus the kept
//! events, applied as a *set*, is the truth, because the kept ones reach back to before the dump was taken.
//!
//! What a saved index told of a worker stands until its first event or dump: the next id proves it, a later one or a lower one
//! refutes it.

use std::collections::HashSet;

use wardrop_core::{EngineHash, KvEvent, StoredBlock, Tier};

use super::position::Coverage;

/// Blocks that are kept per worker while it waits for a dump. Above it the dump has to be asked for again.
const KEPT_BLOCKS_LIMIT: usize = 200_000;

/// What to do with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// In order: apply it.
    Apply,
    /// Seen before: drop it.
    Duplicate,
    /// The worker started again: forget what it held, then apply it.
    NewIncarnation,
    /// Events after the saved index are missing and nobody will tell them: forget what it held, then apply it.
    Forget,
}

/// What a worker's first event said of what a saved index told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestoreVerdict {
    /// It was the next one: exact.
    Exact,
    /// Events in between are missing.
    Outrun,
    /// The worker started anew.
    Restarted,
}

/// Where one worker's event stream stands.
#[derive(Debug, Default)]
pub(crate) struct EventCursor {
    last_id: Option<u64>,
    /// The index holds all that the worker holds.
    synced: bool,
    kept: Option<BufferedEvents>,
    /// What the index holds is from a file, and no event or dump has said yet whether it is true.
    restored: Option<Restored>,
    /// Holes seen.
    pub gaps: u64,
    /// Events in those holes.
    pub lost_events: u64,
    /// Events dropped as seen before.
    pub duplicates: u64,
    /// Restarts seen.
    pub incarnations: u64,
}

#[derive(Clone, Copy, Debug)]
struct Restored {
    /// What is missing can be read again.
    dump_follows: bool,
}

#[derive(Debug, Default)]
struct BufferedEvents {
    events: Vec<KvEvent>,
    blocks: usize,
    overflowed: bool,
}

impl EventCursor {
    /// The last event id seen.
    pub fn last_id(&self) -> Option<u64> {
        self.last_id
    }

    /// The index holds all that the worker holds.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What the index holds of this worker.
    pub fn coverage(&self) -> Coverage {
        match self.last_id {
            _ if !self.synced => Coverage::Partial,
            None => Coverage::Dumped,
            Some(last_id) => Coverage::UpTo(last_id),
        }
    }

    /// Events are known to be missing: a dump is needed.
    pub fn needs_resync(&self) -> bool {
        self.kept.is_some()
    }

    /// The index holds what a file told of this worker, whose feed stood at `last_id` then, where that was known.
    pub fn restore(&mut self, last_id: Option<u64>, dump_follows: bool) {
        *self = Self {
            last_id,
            restored: Some(Restored { dump_follows }),
            ..Self::default()
        };
    }

    /// What the index holds is from a file, and nothing has proved it yet.
    pub fn is_restored(&self) -> bool {
        self.restored.is_some()
    }

    /// The first event after a restore, with what it says of what was restored. Its feed's `publisher` is another one when
    /// the worker started anew.
    pub fn check_restored(&mut self, event_id: u64, same_publisher: bool) -> Option<(RestoreVerdict, Step)> {
        let restored = self.restored.take()?;
        let last = self.last_id.unwrap_or(1);
        if !same_publisher || event_id <= last {
            self.last_id = None;
            // Joined in mid-stream: what it told before is missing.
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

    /// Takes note of an event's id.
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

    /// Something may have been missed, for example while the feed was disconnected.
    pub fn miss(&mut self, lost_events: u64) {
        if lost_events > 0 {
            self.gaps += 1;
            self.lost_events += lost_events;
        }
        self.synced = false;
        self.restored = None;
        self.kept.get_or_insert_default();
    }

    /// Keeps an event for the dump, while one is waited for.
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

    /// A dump of this worker's blocks arrived. The events to apply to an empty worker, in order.
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
            self.miss(0);
        }
        out
    }
}

/// The set of blocks a worker holds, while a dump is joined with live events.
#[derive(Default)]
struct HeldBlocks(HashSet<(Tier, EngineHash)>);

impl HeldBlocks {
    /// Adds to `out` what `event` changes: stores of blocks that are held and removals of those that are not change nothing.
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

    /// Blocks held after `events`, counted; a second copy of a block would show as 2.
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
        /// A dump taken anywhere inside the kept stretch joins to the same blocks, each once.
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
