//! Order of one worker's KV events: publishers, incarnations, gaps, and the join of a dump with live events.
//!
//! Event ids of one worker and publisher grow by one. A gap means lost events. A lower id, or an id of another publisher,
//! means a new incarnation of the worker, which starts with an empty cache. A former publisher can no longer write.
//!
//! ```text
//! first event is the first of its life ──▶ Synced ◀── dump joined with every event since its start
//! join in mid-stream ──▶ Partial            │ gap, lost feed, former publisher, over-prediction
//!        ▲                                  ▼
//!        └── blocks forgotten ◀── too long ── Suspect
//! ```
//!
//! [`EventCursor::begin_dump`] precedes the reading of a dump. From then on the cursor keeps a copy of each event. Dump and
//! kept events overlap, so the cursor joins both as a *set* of blocks: a second store of a block changes nothing. A gap,
//! an overflow or a new incarnation while the dump is read makes the dump useless, and the worker needs another dump.
//!
//! Blocks from a saved index stay valid until the worker's first event or dump. The next event id confirms the blocks.
//! A later id shows lost events; a lower id shows a restart.
//!
//! Complexity: O(1) per event id, O(blocks) per kept event and per dump. [`KEPT_BLOCKS_LIMIT`] bounds the kept events of a
//! worker, [`KeptBudget`] those of a pool. Without a dump under way nothing is kept.

use wardrop_core::KvEvent;

use super::health::TrustOptions;
use super::position::Coverage;

/// Limit of blocks in kept events per worker. Above the limit the dump that is being read becomes useless.
const KEPT_BLOCKS_LIMIT: usize = 200_000;
/// Limit of blocks in kept events of all workers of a pool: about 100 MB.
const POOL_KEPT_BLOCKS_LIMIT: usize = 4_000_000;
/// Highest number of former publishers that a worker remembers.
const FORMER_PUBLISHERS_LIMIT: usize = 8;

/// Action for one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The event is usable: apply it.
    Apply,
    /// The event has the id of the last event: drop it.
    Duplicate,
    /// A publisher of a former incarnation sent the event: drop it.
    Superseded,
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

/// What the order of a worker's events says of its blocks in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StreamState {
    /// The index holds exactly the blocks that the worker holds.
    Synced,
    /// The index may lack blocks; every block in it is held.
    #[default]
    Partial,
    /// The blocks come from a saved index that no event or dump has confirmed.
    Restored,
    /// The index may hold blocks that the worker dropped. After `distrust_s` the pool forgets the blocks.
    Suspect,
}

/// Position in one worker's event stream, and what it says of the blocks in the index.
#[derive(Debug, Default)]
pub(crate) struct EventCursor {
    /// Publisher of the current incarnation; `None` before the first event.
    publisher: Option<u64>,
    /// Publishers of former incarnations, oldest first. They can no longer write.
    former: Vec<u64>,
    /// Id of the last event; `None` before the first event.
    last_id: Option<u64>,
    /// What the events so far say of the worker's blocks in the index.
    state: StreamState,
    /// Recent events by their fate, for the share that was heard.
    recent: RecentEvents,
    /// Time since which `state` is [`StreamState::Suspect`], as the first review after the change saw it.
    suspect_since_s: Option<f64>,
    /// Whether events are missing that only a dump can replace.
    needs_dump: bool,
    /// Whether a dump must confirm that the end of the stream is not lost.
    tail_unchecked: bool,
    /// Events since the start of a dump; `Some` exactly while a dump is read or loaded.
    kept: Option<KeptEvents>,
    /// Set while the pool replaces the worker's blocks. Live events are then kept, and not applied.
    loading: Option<Loading>,
    /// Number of replacements of the worker's blocks. A slice of an event belongs to one epoch.
    epoch: u64,
    /// Whether a dump gave the worker blocks before its first event.
    holds_dump: bool,
    /// Set while the index holds blocks from a file that no event or dump has confirmed.
    restored: Option<Restored>,
    /// Number of gaps in the event ids.
    pub gaps: u64,
    /// Number of events lost in gaps.
    pub lost_events: u64,
    /// Number of events dropped as duplicates.
    pub duplicates: u64,
    /// Number of events dropped because a publisher of a former incarnation sent them.
    pub superseded: u64,
    /// Number of restarts of the worker that the event stream showed.
    pub incarnations: u64,
    /// Number of times that the pool forgot the worker's blocks because no dump came in time.
    pub forgotten: u64,
}

/// Decayed counts of a worker's events. Each event weighs 1023/1024 of the event after it.
#[derive(Clone, Copy, Debug, Default)]
struct RecentEvents {
    /// Decayed count of the events that arrived; at most 1024.
    heard: f64,
    /// Events in the gaps of the event ids.
    lost: f64,
}

impl RecentEvents {
    /// Counts an event that arrived. Losses decay with arrivals alone, so a silent worker keeps its
    /// share.
    fn hear(&mut self) {
        const KEPT: f64 = 1023.0 / 1024.0;
        self.heard = self.heard * KEPT + 1.0;
        self.lost *= KEPT;
    }
}

/// State of blocks from a saved index before their check.
#[derive(Clone, Copy, Debug)]
struct Restored {
    /// Whether a dump can replace the blocks when events are lost.
    dump_follows: bool,
}

/// A replacement of the worker's blocks that is under way.
#[derive(Clone, Copy, Debug)]
struct Loading {
    /// State of the stream after the replacement, unless events are lost meanwhile.
    outcome: StreamState,
}

/// Copies of live events for the join with a dump.
#[derive(Debug, Default)]
struct KeptEvents {
    /// Events in their order of arrival.
    events: Vec<KvEvent>,
    /// Blocks in `events`, which the pool's budget counts.
    blocks: usize,
    /// Whether events are missing in `events`, so that the dump cannot be joined.
    is_broken: bool,
    /// Time of the start of the dump, as the first review after it saw it.
    since_s: Option<f64>,
}

/// Blocks in kept events of all workers of a pool.
#[derive(Debug, Default)]
pub(crate) struct KeptBudget {
    /// Sum over all cursors of the blocks in their kept events.
    blocks: usize,
}

impl EventCursor {
    /// Id of the last event; `None` before the first event.
    pub fn last_id(&self) -> Option<u64> {
        self.last_id
    }

    /// Publisher of the current incarnation; `None` before the first event.
    pub fn publisher(&self) -> Option<u64> {
        self.publisher
    }

    /// What the order of the events says of the blocks in the index.
    pub fn state(&self) -> StreamState {
        self.state
    }

    /// Share of the worker's recent events that arrived, above 0 and at most 1.
    pub fn heard_share(&self) -> f64 {
        let RecentEvents { heard, lost } = self.recent;
        (heard.max(1.0) / (heard.max(1.0) + lost)).min(1.0)
    }

    /// Whether the index holds every block that the worker holds.
    pub fn is_synced(&self) -> bool {
        self.state == StreamState::Synced
    }

    /// How much of the worker's cache the index holds.
    pub fn coverage(&self) -> Coverage {
        match self.last_id {
            _ if !self.is_synced() || self.loading.is_some() => Coverage::Partial,
            None => Coverage::Dumped,
            Some(last_id) => Coverage::UpTo(last_id),
        }
    }

    /// Whether events are missing, so that the worker needs a dump.
    pub fn needs_resync(&self) -> bool {
        self.needs_dump
    }

    /// Whether the stream ended and a dump has not confirmed its end yet.
    pub fn tail_unchecked(&self) -> bool {
        self.tail_unchecked
    }

    /// Resets the cursor for blocks from a saved index.
    ///
    /// `last_id` is the last event id in the saved index; `None` when only a dump filled the index.
    ///
    /// The epoch grows, so slices of an older event cannot reach the restored blocks.
    pub fn restore(&mut self, publisher: u64, last_id: Option<u64>, dump_follows: bool) {
        *self = Self {
            publisher: Some(publisher),
            last_id,
            state: StreamState::Restored,
            restored: Some(Restored { dump_follows }),
            epoch: self.epoch + 1,
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
    pub fn check_restored(&mut self, publisher: u64, event_id: u64) -> Option<(RestoreVerdict, Step)> {
        let restored = self.restored.take()?;
        let last = self.last_id.unwrap_or(1);
        if self.publisher != Some(publisher) || event_id <= last {
            self.begin_incarnation(publisher, event_id);
            return Some((RestoreVerdict::Restarted, Step::NewIncarnation));
        }
        if self.last_id.is_some() && event_id == last + 1 {
            self.state = StreamState::Synced;
            self.last_id = Some(event_id);
            return Some((RestoreVerdict::Exact, Step::Apply));
        }
        // Without a last id, nothing shows which events are lost.
        match self.last_id {
            Some(last) => self.miss(event_id - last - 1),
            None => self.miss(0),
        }
        self.last_id = Some(event_id);
        if restored.dump_follows {
            return Some((RestoreVerdict::Outrun, Step::Apply));
        }
        Some((RestoreVerdict::Outrun, Step::Forget))
    }

    /// Advances to an event of `publisher` and returns the action for the event. O(1).
    ///
    /// `followed` is the publisher that discovery listed for the worker first. Before the first event it shows whether
    /// blocks of a dump belong to a former incarnation.
    pub fn advance(&mut self, publisher: u64, event_id: u64, followed: Option<u64>) -> Step {
        self.recent.hear();
        let Some(current) = self.publisher else {
            let is_other = followed.is_some_and(|followed| followed != publisher);
            if self.holds_dump && (is_other || event_id <= 1) {
                self.begin_incarnation(publisher, event_id);
                return Step::NewIncarnation;
            }
            self.publisher = Some(publisher);
            return self.join(event_id);
        };
        if current != publisher {
            if self.former.contains(&publisher) {
                self.superseded += 1;
                // Two processes write about one worker, and one of them is not heard.
                self.suspect();
                return Step::Superseded;
            }
            self.begin_incarnation(publisher, event_id);
            return Step::NewIncarnation;
        }
        let Some(last) = self.last_id else {
            return self.join(event_id);
        };
        if event_id == last {
            self.duplicates += 1;
            return Step::Duplicate;
        }
        if event_id < last {
            self.begin_incarnation(publisher, event_id);
            return Step::NewIncarnation;
        }
        if event_id > last + 1 {
            self.miss(event_id - last - 1);
        }
        self.last_id = Some(event_id);
        Step::Apply
    }

    /// Takes the first event of a stream that has no past.
    ///
    /// An id of 0 or 1 begins a stream, so nothing is missing. A later id joins in mid-stream, and
    /// a dump has to supply the blocks before it.
    fn join(&mut self, event_id: u64) -> Step {
        self.last_id = Some(event_id);
        if event_id <= 1 && self.state == StreamState::Partial {
            self.state = StreamState::Synced;
            self.needs_dump = false;
        } else if !self.is_synced() {
            self.needs_dump = true;
        }
        Step::Apply
    }

    /// Starts a new incarnation at its first known event. The pool then clears the worker's blocks.
    ///
    /// At most [`FORMER_PUBLISHERS_LIMIT`] former publishers are remembered; the oldest is
    /// forgotten first.
    fn begin_incarnation(&mut self, publisher: u64, event_id: u64) {
        if let Some(current) = self.publisher.replace(publisher)
            && current != publisher
        {
            if self.former.len() == FORMER_PUBLISHERS_LIMIT {
                self.former.remove(0);
            }
            self.former.push(current);
        }
        self.former.retain(|&former| former != publisher);
        self.incarnations += 1;
        self.last_id = Some(event_id);
        self.holds_dump = false;
        self.restored = None;
        self.suspect_since_s = None;
        // A dump that is being read may hold blocks of the former incarnation.
        self.break_kept();
        let is_first = event_id <= 1;
        self.state = if is_first {
            StreamState::Synced
        } else {
            StreamState::Partial
        };
        self.needs_dump = !is_first;
        if !is_first {
            self.gaps += 1;
            self.lost_events += event_id - 1;
        }
    }

    /// Lets a publisher write again, because discovery lists it as a feed of this worker.
    pub fn allow(&mut self, publisher: u64) {
        self.former.retain(|&former| former != publisher);
    }

    /// Records lost events.
    ///
    /// `lost_events` is 0 when the number of lost events is unknown, for example after a disconnect.
    pub fn miss(&mut self, lost_events: u64) {
        if lost_events > 0 {
            self.gaps += 1;
            self.lost_events += lost_events;
            self.recent.lost += lost_events as f64;
        }
        self.suspect();
    }

    /// Marks the blocks as suspect until a dump replaces them. A worker without blocks only needs a dump.
    pub fn suspect(&mut self) {
        let holds_blocks = self.last_id.is_some() || self.state != StreamState::Partial;
        if holds_blocks && self.state != StreamState::Suspect {
            self.state = StreamState::Suspect;
            self.suspect_since_s = None;
        }
        self.restored = None;
        self.needs_dump = true;
        match &mut self.loading {
            Some(loading) => loading.outcome = StreamState::Suspect,
            None => self.break_kept(),
        }
    }

    /// Forgets the place in the stream, so that the next event begins it. `restarted` counts a restart of the worker.
    ///
    /// The caller then clears the worker's blocks.
    pub fn start_anew(&mut self, restarted: bool) {
        self.incarnations += u64::from(restarted);
        self.last_id = None;
        self.holds_dump = false;
        self.restored = None;
        self.break_kept();
    }

    /// Ends the doubt about the blocks: no event of the stream is missing after all.
    ///
    /// An engine's replay proves it; blocks that are not suspect keep their state.
    pub fn confirm(&mut self, state: StreamState) {
        if self.state == StreamState::Suspect && state != StreamState::Suspect {
            self.state = state;
            self.suspect_since_s = None;
            self.needs_dump = state != StreamState::Synced;
        }
        self.tail_unchecked = false;
    }

    /// Marks the end of a silent stream as unchecked. Lost events at the end of a stream leave no gap behind.
    pub fn check_tail(&mut self) {
        self.tail_unchecked = self.is_synced();
    }

    /// Reviews the cursor at a moment: drops a dump that did not come within its deadline. Returns whether the
    /// worker has been suspect for too long, so that the pool must forget its blocks.
    pub fn review(&mut self, now_s: f64, limits: TrustOptions, budget: &mut KeptBudget) -> bool {
        if self.loading.is_none()
            && let Some(kept) = &mut self.kept
        {
            let since_s = *kept.since_s.get_or_insert(now_s);
            if now_s - since_s > limits.dump_deadline_s {
                self.drop_kept(budget);
            }
        }
        if self.state != StreamState::Suspect || self.loading.is_some() {
            return false;
        }
        now_s - *self.suspect_since_s.get_or_insert(now_s) > limits.distrust_s
    }

    /// Begins to keep events, before a dump is read. Returns whether the worker takes the dump.
    ///
    /// A dump that began earlier and was not loaded is given up. A synced worker with a checked end
    /// needs none.
    pub fn begin_dump(&mut self, budget: &mut KeptBudget) -> bool {
        if self.loading.is_some() {
            return false;
        }
        self.drop_kept(budget);
        if self.is_synced() && !self.tail_unchecked {
            return false;
        }
        self.kept = Some(KeptEvents::default());
        true
    }

    /// Whether a dump for this worker is being read.
    pub fn awaits_dump(&self) -> bool {
        self.kept.is_some() && self.loading.is_none()
    }

    /// Keeps a copy of an event while a dump is read or blocks are replaced.
    pub fn keep(&mut self, event: &KvEvent, budget: &mut KeptBudget) {
        let Some(kept) = &mut self.kept else { return };
        if kept.is_broken {
            return;
        }
        let blocks = block_count(event).max(1);
        let worker_blocks = kept.blocks + blocks;
        // A dump beyond the budget is broken, not the index: live events are still applied outside
        // of a load.
        if worker_blocks > KEPT_BLOCKS_LIMIT || budget.blocks + blocks > POOL_KEPT_BLOCKS_LIMIT {
            if self.loading.is_some() {
                self.miss(0); // the event reaches neither the index nor the kept events
            } else {
                self.break_kept();
            }
            self.release_broken(budget);
            return;
        }
        kept.blocks = worker_blocks;
        budget.blocks += blocks;
        kept.events.push(event.clone());
    }

    /// Drops the kept events of a broken dump.
    fn release_broken(&mut self, budget: &mut KeptBudget) {
        if let Some(kept) = &mut self.kept
            && kept.is_broken
        {
            budget.blocks -= std::mem::take(&mut kept.blocks);
            kept.events = Vec::new();
        }
    }

    /// Marks the kept events as incomplete.
    fn break_kept(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.is_broken = true;
        }
    }

    /// Ends the keeping of events.
    pub fn drop_kept(&mut self, budget: &mut KeptBudget) {
        if let Some(kept) = self.kept.take() {
            budget.blocks -= kept.blocks;
        }
    }

    /// Begins to replace the worker's blocks by a dump. `None` when the dump cannot be joined with the live events.
    pub fn begin_load(&mut self, has_blocks: bool, budget: &mut KeptBudget) -> Option<u64> {
        if self.loading.is_some() || self.kept.as_ref().is_none_or(|kept| kept.is_broken) {
            self.drop_kept(budget);
            self.needs_dump |= !self.is_synced();
            return None;
        }
        self.holds_dump = has_blocks;
        Some(self.start_loading(StreamState::Synced))
    }

    /// Begins to clear the worker's blocks, after which `outcome` holds.
    ///
    /// Returns the epoch of the replacement.
    pub fn begin_clear(&mut self, outcome: StreamState, budget: &mut KeptBudget) -> u64 {
        self.drop_kept(budget);
        self.kept = Some(KeptEvents::default());
        self.start_loading(outcome)
    }

    /// Begins a replacement and returns its epoch. The state changes at once: from here on the
    /// index holds a part of the final blocks only, and [`EventCursor::coverage`] says so.
    fn start_loading(&mut self, outcome: StreamState) -> u64 {
        self.epoch += 1;
        self.loading = Some(Loading { outcome });
        self.needs_dump = outcome != StreamState::Synced;
        self.recent.lost = 0.0;
        self.tail_unchecked = false;
        self.restored = None;
        self.state = outcome;
        self.suspect_since_s = None;
        self.epoch
    }

    /// Whether the pool replaces the worker's blocks now. Live events are then only kept.
    pub fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// Number of replacements of the worker's blocks.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes the events that were kept since the last call of this load. `None` ends the load, when there are none.
    pub fn take_kept(&mut self, budget: &mut KeptBudget) -> Option<Vec<KvEvent>> {
        if let Some(kept) = &mut self.kept
            && !kept.events.is_empty()
        {
            budget.blocks -= std::mem::take(&mut kept.blocks);
            return Some(std::mem::take(&mut kept.events));
        }
        self.drop_kept(budget);
        if let Some(loading) = self.loading.take() {
            self.state = loading.outcome;
            self.needs_dump = loading.outcome != StreamState::Synced;
        }
        None
    }
}

/// Number of blocks in an event.
///
/// 0 for a clear, whose cost does not show in its size.
pub(super) fn block_count(event: &KvEvent) -> usize {
    match event {
        KvEvent::Stored { blocks, .. } => blocks.len(),
        KvEvent::Removed { blocks, .. } => blocks.len(),
        KvEvent::Cleared => 0,
    }
}

#[cfg(test)]
mod tests;
