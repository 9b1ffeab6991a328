//! One feed of an engine without Dynamo: numbered frames of one worker, with holes that a replay fills.
//!
//! ```text
//! frame with the next number ─▶ apply
//! frame with a later number  ─▶ replay from the first missing number, then apply; still a hole: blocks suspect
//! connected again            ─▶ replay from the last known frame: same bytes, same engine; otherwise the worker starts anew
//! blocks suspect             ─▶ replay from 0 replaces them; without one the pool forgets them after `distrust_ms`
//! silence                    ─▶ replay from the last known frame finds a lost end of the stream
//! ```
//!
//! While a replay runs, live frames wait in the socket for at most `replay_timeout_ms`. A replay is applied in order, so the counts of
//! copies per block stay exact. An engine that restarts begins at 0 without a notice, and its former blocks would stay in the index. A
//! number cannot show the restart, because the new engine may have passed the last known number already. The bytes of the last frame
//! can.
//!
//! Complexity: O(1) per frame beside its blocks; a replay holds at most 128 MiB.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use wardrop_core::WorkerId;
use wardrop_engines::{Feed as Decoder, Malformed};
use xxhash_rust::xxh3::xxh3_64;

use super::link::{FeedLink, FeedReader};
use super::replay::{Replay, ReplayRequest, replay};
use super::zmtp::ZmtpError;
use crate::pool::{ApplyCounts, EngineFrame, StreamState};

/// Interval between two looks at the state of the feed.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Pause after the first replay that replaced the blocks, or failed to; each further one doubles it.
const FIRST_REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two replays of one kind.
const LONGEST_REPLAY_PAUSE: Duration = Duration::from_secs(60);
/// Replays at one time over all feeds. Each holds at most 128 MiB.
const REPLAYS_MAX: usize = 8;
static REPLAYS: Semaphore = Semaphore::const_new(REPLAYS_MAX);
/// Times that a replay of everything may take longer than a replay of a hole.
const WHOLE_REPLAY_FACTOR: u32 = 5;

/// Place in the stream of one start of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Number of the next frame.
    next: u64,
    /// Hash of the last frame's payload.
    digest: u64,
}

/// Doubling pauses of one kind of replay, so that an engine that cannot answer is asked ever less
/// often.
struct Pauses {
    /// Earliest time of the next replay.
    next_at: Instant,
    /// Pause after the next replay; at most [`LONGEST_REPLAY_PAUSE`].
    pause: Duration,
    /// Pause after a success, and the value from which the doubling starts.
    first: Duration,
}

impl Pauses {
    /// Pauses of which the first replay is due at once.
    fn new(first: Duration) -> Self {
        Self {
            next_at: Instant::now(),
            pause: first,
            first,
        }
    }

    /// Whether a replay may run now.
    fn is_due(&self) -> bool {
        Instant::now() >= self.next_at
    }

    /// Records a replay: the next one waits for the pause, and the pause doubles.
    fn wait(&mut self) {
        self.next_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_REPLAY_PAUSE);
    }

    /// Records a success: the doubling begins again.
    fn reset(&mut self) {
        self.next_at = Instant::now() + self.first;
        self.pause = self.first;
    }
}

/// Reader of one engine's feed.
pub(super) struct EngineFeed {
    /// The subscription, its counts, and the service around the feed.
    link: FeedLink,
    /// The one worker whose blocks the feed changes, regardless of the rank that a frame names.
    worker: WorkerId,
    /// Decoder of this start of the engine; it remembers block sizes and counts refused events. A
    /// restart gets a new one.
    decoder: Decoder,
    /// Place after the last applied frame; `None` before the first frame of this start of the engine.
    place: Option<Place>,
    /// Number of the last frame that came live on this connection.
    last_live: Option<u64>,
    /// Frames below this number came by replay on this connection, and may come live as well.
    replayed_to: u64,
    /// State of the stream before the connection was lost.
    state_before: Option<StreamState>,
    /// No replay has shown the frames before the first live one.
    lacks_history: bool,
    /// Pauses between replays of everything.
    rebuilds: Pauses,
    /// Pauses between replays that look for a lost end of the stream.
    tail_checks: Pauses,
}

impl EngineFeed {
    /// A reader that knows no frame yet, so the first look or connection asks for a replay of
    /// everything.
    pub fn new(link: FeedLink, worker: WorkerId) -> Self {
        let tail_check = Duration::from_millis(link.context.options.tail_check_ms);
        Self {
            link,
            worker,
            decoder: Decoder::new(),
            place: None,
            last_live: None,
            replayed_to: 0,
            state_before: None,
            lacks_history: true,
            rebuilds: Pauses::new(FIRST_REBUILD_PAUSE),
            tail_checks: Pauses::new(tail_check),
        }
    }

    /// Takes a live frame: fills the hole before it, and applies it unless a replay brought it.
    async fn live(&mut self, sequence: u64, payload: &[u8]) {
        // Within one connection, live numbers only rise. A number that falls back shows a restart
        // behind the same address, and so does an old number that no replay brought.
        let falls_back = self.last_live.is_some_and(|last| sequence <= last);
        self.last_live = Some(sequence);
        let next = self.place.map_or(0, |place| place.next);
        if falls_back || (sequence < next && sequence >= self.replayed_to) {
            self.restart();
        } else if sequence < next {
            self.link.counts.duplicates.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.tail_checks.reset();
        let next = self.place.map_or(0, |place| place.next);
        // A feed that lacks its history knows no frame to continue from. The next look asks for the
        // whole stream.
        if sequence > next && (self.place.is_some() || !self.lacks_history) {
            self.fill(next, sequence).await;
            // Without the first frames the worker's blocks are known in part, and a later replay supplies the rest.
            self.lacks_history |= self.place.is_none();
        }
        let next = self.place.map_or(sequence, |place| place.next);
        if sequence < next {
            return;
        }
        self.link.count_lost(sequence - next);
        self.apply(sequence, payload);
    }

    /// Asks for the frames `from` to `until`, and applies those that follow the known ones.
    async fn fill(&mut self, from: u64, until: u64) {
        if let Some(found) = self.ask(from, until).await {
            self.apply_following(&found);
        }
    }

    /// After a connection: finds out whether the engine is the known one, and applies what it sent meanwhile.
    ///
    /// The engine is the known one when it still holds the last known frame with the same bytes.
    /// Then the state that the stream had before the loss is restored, without a replay of
    /// everything. No answer leaves the blocks suspect, and a later look tries again.
    async fn catch_up(&mut self) {
        let Some(place) = self.place else {
            self.rebuild().await;
            return;
        };
        let Some(found) = self.ask(place.next - 1, place.next).await else {
            return;
        };
        let is_same = found
            .batches
            .first()
            .is_some_and(|(number, payload)| *number == place.next - 1 && xxh3_64(payload) == place.digest);
        if !is_same {
            self.restart();
            self.rebuild().await;
            return;
        }
        self.apply_following(&found);
        if let (Some(pool), Some(state)) = (self.link.pool(), self.state_before.take()) {
            pool.confirm_feed(self.worker, state);
        }
    }

    /// Reads all frames that the engine keeps, and replaces the worker's blocks by them.
    ///
    /// An incomplete replay changes nothing: blocks that the index holds already are worth more
    /// than a part of the stream. An empty complete replay shows an engine without events, so
    /// nothing is replaced either.
    async fn rebuild(&mut self) {
        self.rebuilds.wait();
        let known_end = self.place.map_or(0, |place| place.next);
        let Some(found) = self.ask(0, known_end).await.filter(|found| found.is_complete) else {
            return;
        };
        self.lacks_history = false;
        if found.batches.is_empty() {
            return;
        }
        if let Some(pool) = self.link.pool() {
            pool.start_worker_anew(self.worker, false);
        }
        self.decoder = Decoder::new();
        self.place = None;
        for (number, payload) in &found.batches {
            self.apply(*number, payload);
        }
        self.replayed_to = self.place.map_or(0, |place| place.next);
    }

    /// Asks for frames after the last known one: the end of a stream can be lost without a gap that shows it.
    async fn check_tail(&mut self) {
        self.tail_checks.wait();
        let (from, until) = self.place.map_or((0, 0), |place| (place.next - 1, place.next));
        if let Some(found) = self.ask(from, until).await {
            let before = self.place;
            self.apply_following(&found);
            if self.place != before {
                self.tail_checks.reset();
            }
        }
    }

    /// Applies the batches that follow the known frames without a hole.
    fn apply_following(&mut self, found: &Replay) {
        for (number, payload) in &found.batches {
            let next = self.place.map_or(0, |place| place.next);
            if *number == next {
                self.apply(*number, payload);
                self.link.counts.replayed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.replayed_to = self.place.map_or(0, |place| place.next);
    }

    /// Asks the replay socket; `None` without one, or without an answer.
    ///
    /// A permit of [`REPLAYS`] bounds the memory of all replays together; the wait for it counts
    /// against the deadline.
    async fn ask(&self, from: u64, until: u64) -> Option<Replay> {
        let endpoint = self.link.subscription.replay.as_ref()?;
        let one_answer = Duration::from_millis(self.link.context.options.replay_timeout_ms);
        let request = ReplayRequest {
            from,
            until,
            deadline: if from == 0 {
                one_answer * WHOLE_REPLAY_FACTOR
            } else {
                one_answer
            },
        };
        let found = match tokio::time::timeout(request.deadline, REPLAYS.acquire()).await {
            Ok(_permit) => replay(endpoint, request, self.link.context.options.frame_bytes).await,
            Err(_) => Err(ZmtpError::Timeout),
        };
        let result = match &found {
            Ok(found) if found.is_complete => "complete",
            Ok(_) => "with_holes",
            Err(_) => "failed",
        };
        self.link
            .context
            .metrics
            .feeds
            .replays
            .with_label_values(&[result])
            .inc();
        found
            .inspect_err(|error| {
                tracing::debug!(publisher_id = self.link.subscription.publisher_id, %error, "no replay");
            })
            .ok()
    }

    /// The engine began anew, with an empty cache.
    ///
    /// The pool empties the worker's blocks and begins a new incarnation, whose trust starts anew.
    fn restart(&mut self) {
        self.link.counts.restarts.fetch_add(1, Ordering::Relaxed);
        self.decoder = Decoder::new();
        self.place = None;
        self.replayed_to = 0;
        self.state_before = None;
        self.lacks_history = true;
        if let Some(pool) = self.link.pool() {
            pool.start_worker_anew(self.worker, true);
        }
        tracing::info!(
            worker_id = self.worker.instance,
            dp_rank = self.worker.dp_rank,
            "the engine restarted: its feed began anew"
        );
    }

    /// Applies one frame, which follows the known ones or leaves a hole that cannot be filled.
    fn apply(&mut self, sequence: u64, payload: &[u8]) {
        self.place = Some(Place {
            next: sequence + 1,
            digest: xxh3_64(payload),
        });
        let Some(pool) = self.link.pool() else { return };
        let counters = self.decoder.counters;
        let taken = match self.decoder.take(&pool.hasher(), sequence, payload) {
            Ok(taken) => taken,
            Err(malformed) => {
                // The pool never sees this number, so the next frame shows a gap and makes the blocks suspect.
                self.link.count_malformed(reason(malformed));
                return;
            }
        };
        if sequence == 0 {
            self.lacks_history = false;
        }
        // An engine that is one of several behind other addresses may name a rank of its own group.
        let is_foreign =
            pool.ranks(self.worker) > 1 && taken.dp_rank.is_some_and(|rank| rank != self.worker.dp_rank);
        let mut counts = if is_foreign {
            ApplyCounts {
                foreign: taken.changes.len() as u64,
                ..ApplyCounts::default()
            }
        } else {
            let frame = EngineFrame {
                publisher: self.link.subscription.publisher_id,
                sequence,
                changes: taken.changes,
            };
            pool.apply_frame(self.worker, frame, self.link.context.clock.now_s())
        };
        let now = self.decoder.counters;
        counts.passed_over += now.skipped - counters.skipped;
        self.link
            .context
            .metrics
            .feeds
            .count_events(&counts, now.unusable - counters.unusable);
    }
}

impl FeedReader for EngineFeed {
    const LOOK_EVERY: Option<Duration> = Some(LOOK_EVERY);

    fn link(&self) -> &FeedLink {
        &self.link
    }

    /// Finds out whether the engine is the known one, and applies what it sent meanwhile.
    async fn connected(&mut self) {
        self.last_live = None;
        self.replayed_to = 0;
        self.catch_up().await;
    }

    async fn take(&mut self, frames: &[Vec<u8>], _now_s: f64) -> Result<(), &'static str> {
        let (sequence, payload) = split(frames).ok_or("frames")?;
        self.live(sequence, payload).await;
        Ok(())
    }

    /// Looks at the state and the silence of the feed, and asks for a replay where one can help.
    async fn look(&mut self) {
        if self.link.subscription.replay.is_none() {
            return;
        }
        let state = self.link.pool().and_then(|pool| pool.feed_state(self.worker));
        if self.lacks_history || state == Some(StreamState::Suspect) {
            if self.rebuilds.is_due() {
                self.rebuild().await;
            }
            return;
        }
        if state == Some(StreamState::Synced) {
            self.rebuilds.reset();
        }
        if self.tail_checks.is_due() {
            self.check_tail().await;
        }
    }

    /// A process that dies closes its sockets, so the worker has probably failed.
    fn lost(&mut self, now_s: f64) {
        if let Some(pool) = self.link.pool() {
            self.state_before = pool.feed_state(self.worker);
            pool.doubt_feed(self.worker);
            pool.lost(self.worker.instance, now_s);
        }
    }
}

/// Number and payload of a live message: topic, number, payload.
fn split(frames: &[Vec<u8>]) -> Option<(u64, &[u8])> {
    let [_topic, sequence, payload] = frames else {
        return None;
    };
    let sequence = <[u8; 8]>::try_from(sequence.as_slice()).ok()?;
    // The highest number ends a replay; no stream reaches it.
    let sequence = u64::from_be_bytes(sequence);
    (sequence < u64::MAX).then_some((sequence, payload))
}

/// Metric label of a refused payload.
const fn reason(malformed: Malformed) -> &'static str {
    match malformed {
        Malformed::Limit { .. } => "too_large",
        _ => "payload",
    }
}
