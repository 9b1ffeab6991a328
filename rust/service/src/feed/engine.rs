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
//! copies per block stay exact. An engine that restarts begins at 0 and says nothing: its former blocks would stay in the index. A
//! number cannot tell, because the new engine may have passed the last known number already. The bytes of the last frame can.
//!
//! Complexity: O(1) per frame beside its blocks; a replay holds at most 128 MiB.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use wardrop_core::WorkerId;
use wardrop_engines::{Feed as Decoder, Malformed};
use xxhash_rust::xxh3::xxh3_64;

use super::replay::{Replay, ReplayRequest, replay};
use super::subscription::{
    FIRST_PAUSE, FeedContext, FeedState, LONGEST_PAUSE, PingHistory, Subscription, reason,
};
use super::zmtp::{Subscriber, SubscriberLimits, ZmtpError};
use crate::pool::{ApplyCounts, EngineFrame, Trust, WorkerPool};

/// Interval between two looks at trust and silence.
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
/// Shortest time between two reads of a feed, as for other feeds of KV events.
const PACE: Duration = Duration::from_millis(2);

/// Place in the stream of one start of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Number of the next frame.
    next: u64,
    /// Hash of the last frame's payload.
    digest: u64,
}

/// Doubling pauses of one kind of replay.
struct Pauses {
    next_at: Instant,
    pause: Duration,
    first: Duration,
}

impl Pauses {
    fn new(first: Duration) -> Self {
        Self {
            next_at: Instant::now(),
            pause: first,
            first,
        }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.next_at
    }

    fn wait(&mut self) {
        self.next_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_REPLAY_PAUSE);
    }

    fn reset(&mut self) {
        self.next_at = Instant::now() + self.first;
        self.pause = self.first;
    }
}

/// The task of one feed.
pub(super) struct EngineFeed {
    subscription: Subscription,
    state: Arc<FeedState>,
    context: Arc<FeedContext>,
    worker: WorkerId,
    decoder: Decoder,
    /// `None` before the first frame of this start of the engine.
    place: Option<Place>,
    /// Frames below this number came by replay on this connection, and may come live as well.
    replayed_to: u64,
    /// Trust before the connection was lost.
    trust_before: Option<Trust>,
    /// No replay has shown the frames before the first live one.
    lacks_history: bool,
    rebuilds: Pauses,
    tail_checks: Pauses,
}

impl EngineFeed {
    pub fn new(
        subscription: Subscription,
        worker: WorkerId,
        state: Arc<FeedState>,
        context: Arc<FeedContext>,
    ) -> Self {
        let tail_check = Duration::from_millis(context.options.tail_check_ms);
        Self {
            subscription,
            state,
            context,
            worker,
            decoder: Decoder::new(),
            place: None,
            replayed_to: 0,
            trust_before: None,
            lacks_history: true,
            rebuilds: Pauses::new(FIRST_REBUILD_PAUSE),
            tail_checks: Pauses::new(tail_check),
        }
    }

    /// Follows the feed without end.
    pub async fn follow(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut pings = PingHistory::default();
        let deadline = Duration::from_millis(self.context.options.deadline_ms);
        loop {
            let limits = SubscriberLimits {
                frame_bytes: self.context.options.frame_bytes,
                deadline: pings.are_useful().then_some(deadline),
            };
            match Subscriber::connect(&self.subscription.endpoint, limits).await {
                Ok(mut subscriber) => {
                    pause = FIRST_PAUSE;
                    let error = self.read(&mut subscriber).await;
                    pings.record(subscriber.has_pong(), &error);
                    self.lose(&error);
                }
                Err(error) => {
                    tracing::debug!(publisher_id = self.subscription.publisher_id, %error, "feed not reached");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn pool(&self) -> Option<Arc<WorkerPool>> {
        let (model, _) = self.context.models.find(&self.subscription.model)?;
        Some(model.pool(self.subscription.role).clone())
    }

    /// Records a lost connection. A process that dies closes its sockets, so the worker has probably failed.
    fn lose(&mut self, error: &ZmtpError) {
        let now_s = self.context.clock.now_s();
        self.state.lost_connection(now_s);
        if let Some(pool) = self.pool() {
            self.trust_before = pool.trust(self.worker);
            pool.doubt_feed(self.worker);
            pool.lost(self.worker.instance, now_s);
        }
        self.context
            .metrics
            .reconnects
            .with_label_values(&[reason(error)])
            .inc();
        tracing::info!(publisher_id = self.subscription.publisher_id, %error, "feed lost, reconnecting");
    }

    async fn read(&mut self, subscriber: &mut Subscriber) -> ZmtpError {
        self.state.connected.store(true, Ordering::Relaxed);
        self.state.lost_since_ms.store(0, Ordering::Relaxed);
        self.replayed_to = 0;
        self.catch_up().await;
        let mut last_live = None;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let received = {
                let mut receive = std::pin::pin!(subscriber.receive());
                loop {
                    tokio::select! {
                        received = &mut receive => break received,
                        // The half-read message stays in `receive` while a replay runs.
                        _ = looks.tick() => self.look().await,
                    }
                }
            };
            match received {
                Ok(frames) => {
                    self.state.messages.fetch_add(1, Ordering::Relaxed);
                    self.state.seen(self.context.clock.now_s());
                    match split(&frames) {
                        Some((sequence, payload)) => self.live(sequence, payload, &mut last_live).await,
                        None => self.count_malformed("frames"),
                    }
                    if subscriber.is_drained() {
                        tokio::time::sleep(PACE).await;
                    }
                }
                Err(error) => {
                    if matches!(error, ZmtpError::TooLarge) {
                        self.count_malformed("too_large");
                    }
                    return error;
                }
            }
        }
    }

    /// Takes a live frame: fills the hole before it, and applies it unless a replay brought it.
    async fn live(&mut self, sequence: u64, payload: &[u8], last_live: &mut Option<u64>) {
        let falls_back = last_live.is_some_and(|last| sequence <= last);
        *last_live = Some(sequence);
        let next = self.place.map_or(0, |place| place.next);
        if falls_back || (sequence < next && sequence >= self.replayed_to) {
            self.restart();
        } else if sequence < next {
            self.state.duplicates.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.tail_checks.reset();
        let next = self.place.map_or(0, |place| place.next);
        if sequence > next && (self.place.is_some() || !self.lacks_history) {
            self.fill(next, sequence).await;
            // Without the first frames the worker's blocks are known in part, and a later replay supplies the rest.
            self.lacks_history |= self.place.is_none();
        }
        let next = self.place.map_or(sequence, |place| place.next);
        if sequence < next {
            return;
        }
        self.count_lost(sequence - next);
        self.apply(sequence, payload);
    }

    /// Asks for the frames `from` to `until`, and applies those that follow the known ones.
    async fn fill(&mut self, from: u64, until: u64) {
        if let Some(found) = self.ask(from, until).await {
            self.apply_following(&found);
        }
    }

    /// After a connection: finds out whether the engine is the known one, and applies what it sent meanwhile.
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
        if let (Some(pool), Some(trust)) = (self.pool(), self.trust_before.take()) {
            pool.confirm_feed(self.worker, trust);
        }
    }

    /// Reads all frames that the engine keeps, and replaces the worker's blocks by them.
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
        if let Some(pool) = self.pool() {
            pool.start_worker_anew(self.worker, false);
        }
        self.decoder = Decoder::new();
        self.place = None;
        for (number, payload) in &found.batches {
            self.apply(*number, payload);
        }
        self.replayed_to = self.place.map_or(0, |place| place.next);
    }

    /// Looks at trust and silence, and asks for a replay where one can help.
    async fn look(&mut self) {
        if self.subscription.replay.is_none() {
            return;
        }
        let trust = self.pool().and_then(|pool| pool.trust(self.worker));
        if self.lacks_history || trust == Some(Trust::Suspect) {
            if self.rebuilds.is_due() {
                self.rebuild().await;
            }
            return;
        }
        if trust == Some(Trust::Synced) {
            self.rebuilds.reset();
        }
        if !self.tail_checks.is_due() {
            return;
        }
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
                self.state.replayed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.replayed_to = self.place.map_or(0, |place| place.next);
    }

    /// Asks the replay socket; `None` without one, or without an answer.
    async fn ask(&self, from: u64, until: u64) -> Option<Replay> {
        let endpoint = self.subscription.replay.as_ref()?;
        let one_answer = Duration::from_millis(self.context.options.replay_timeout_ms);
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
            Ok(_permit) => replay(endpoint, request, self.context.options.frame_bytes).await,
            Err(_) => Err(ZmtpError::Timeout),
        };
        let result = match &found {
            Ok(found) if found.is_complete => "complete",
            Ok(_) => "with_holes",
            Err(_) => "failed",
        };
        self.context.metrics.replays.with_label_values(&[result]).inc();
        found
            .inspect_err(|error| {
                tracing::debug!(publisher_id = self.subscription.publisher_id, %error, "no replay");
            })
            .ok()
    }

    /// The engine began anew, with an empty cache.
    fn restart(&mut self) {
        self.state.restarts.fetch_add(1, Ordering::Relaxed);
        self.decoder = Decoder::new();
        self.place = None;
        self.replayed_to = 0;
        self.trust_before = None;
        self.lacks_history = true;
        if let Some(pool) = self.pool() {
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
        let Some(pool) = self.pool() else { return };
        let counters = self.decoder.counters;
        let taken = match self.decoder.take(&pool.hasher(), sequence, payload) {
            Ok(taken) => taken,
            Err(malformed) => {
                // The pool never sees this number, so the next frame shows a gap and makes the blocks suspect.
                self.count_malformed(label(malformed));
                return;
            }
        };
        if sequence == 0 {
            self.lacks_history = false;
        }
        // An engine that is one of several behind other addresses may name a rank of its own group.
        let is_foreign =
            pool.ranks(self.worker) > 1 && taken.dp_rank.is_some_and(|rank| rank != self.worker.dp_rank);
        let counts = if is_foreign {
            ApplyCounts {
                foreign: taken.changes.len() as u64,
                ..ApplyCounts::default()
            }
        } else {
            let frame = EngineFrame {
                publisher: self.subscription.publisher_id,
                sequence,
                changes: taken.changes,
            };
            pool.apply_frame(self.worker, frame, self.context.clock.now_s())
        };
        let now = self.decoder.counters;
        let events = &self.context.metrics.events;
        for (name, count) in [
            ("applied", counts.applied),
            ("refused", counts.refused),
            ("foreign", counts.foreign),
            ("duplicate", counts.duplicates),
            ("superseded", counts.superseded),
            ("passed_over", now.skipped - counters.skipped),
            ("unreadable", now.unusable - counters.unusable),
        ] {
            if count > 0 {
                events.with_label_values(&[name]).inc_by(count);
            }
        }
    }

    fn count_lost(&self, lost: u64) {
        if lost > 0 {
            self.state.lost.fetch_add(lost, Ordering::Relaxed);
            self.context
                .metrics
                .events
                .with_label_values(&["lost"])
                .inc_by(lost);
        }
    }

    fn count_malformed(&self, label: &str) {
        self.state.malformed.fetch_add(1, Ordering::Relaxed);
        self.context.metrics.malformed.with_label_values(&[label]).inc();
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

const fn label(malformed: Malformed) -> &'static str {
    match malformed {
        Malformed::Limit { .. } => "too_large",
        _ => "payload",
    }
}
