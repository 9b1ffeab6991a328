//! A load driver: sends a plan of requests over HTTP and records when each answer's tokens came.
//!
//! * Open loop: a request leaves at its due time, regardless of how far the server lags. The next turn of a conversation
//!   leaves a think time after the end of the previous turn.
//! * Closed loop: a fixed number of requests is in flight; each answer releases the next request.
//!
//! The driver is bounded in count, time and memory, and stops by itself. It measures its own lateness, so that a slow
//! driver is not mistaken for a slow server. It runs on one thread of its own; the cost is O(1) per token.

mod exchange;
mod plan;
mod record;
mod sse;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use exchange::Wire;
pub use plan::{MAX_REQUESTS, Plan, Planned, Release};
pub use record::{Histogram, Outcome, Record, Report, Tallies};

/// Interval of the timer that measures how late the driver's own event loop wakes.
const LAG_PROBE: Duration = Duration::from_millis(10);

/// Errors of the driver itself. The error of a request is in its [`Record`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// A field of the plan is invalid; the text names it with the received and the expected value.
    #[error("load plan refused: {0}")]
    Plan(String),
    /// The driver's thread or runtime could not start.
    #[error("the load driver could not start: {0}")]
    Start(#[from] std::io::Error),
    /// The driver's thread ended without a report.
    #[error("the load driver ended without a report")]
    Lost,
    /// The caller asked for the report before the end of the run.
    #[error("the load driver is still running: wait for it, or stop it first")]
    Running,
}

/// Progress of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Seconds since the start; constant after the end.
    pub elapsed_s: f64,
    /// Requests in the plan.
    pub planned: usize,
    /// Requests sent so far.
    pub sent: usize,
    /// Requests that ended so far, with any outcome.
    pub ended: usize,
    /// Requests that ended so far with outcome `ok`.
    pub ok: usize,
    /// Tokens received.
    pub tokens: u64,
    /// Median TTFT so far, seconds; `None` before the first token.
    pub ttft_p50_s: Option<f64>,
    /// 95th percentile of the TTFT so far, seconds; `None` before the first token.
    pub ttft_p95_s: Option<f64>,
    /// Whether the run is over.
    pub finished: bool,
}

#[derive(Default)]
struct Counts {
    sent: AtomicUsize,
    ended: AtomicUsize,
    ok: AtomicUsize,
}

/// A run in progress, on its own thread.
pub struct Drive {
    wire: Arc<Wire>,
    counts: Arc<Counts>,
    planned: usize,
    stop: watch::Sender<bool>,
    done: watch::Receiver<Option<f64>>,
    thread: Mutex<Option<JoinHandle<Vec<Record>>>>,
}

impl Drive {
    /// Checks the plan and starts the clock.
    pub fn start(plan: Plan) -> Result<Self, DriveError> {
        let target = plan.check()?;
        let wire = Arc::new(Wire::new(target, plan.timeout_s));
        let counts = Arc::new(Counts::default());
        let planned = plan.requests.len();
        let (stop, stopped) = watch::channel(false);
        let (done_at, done) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let run = Run::new(plan, Arc::clone(&wire), Arc::clone(&counts), stopped);
        let clock = Arc::clone(&wire);
        let thread = std::thread::Builder::new()
            .name("wardrop-drive".into())
            .spawn(move || {
                let records = runtime.block_on(run.drive());
                // The caller may have dropped the run, and then the end time has no receiver.
                let _ = done_at.send(Some(clock.now_s()));
                records
            })?;
        Ok(Self {
            wire,
            counts,
            planned,
            stop,
            done,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Progress so far; cheap enough to poll ten times a second.
    pub fn progress(&self) -> Progress {
        let ended_at = *self.done.borrow();
        let (ttft_p50_s, ttft_p95_s) = {
            let tallies = self.wire.tallies.lock();
            (tallies.ttft.quantile_s(0.5), tallies.ttft.quantile_s(0.95))
        };
        Progress {
            elapsed_s: ended_at.unwrap_or_else(|| self.wire.now_s()),
            planned: self.planned,
            sent: self.counts.sent.load(Relaxed),
            ended: self.counts.ended.load(Relaxed),
            ok: self.counts.ok.load(Relaxed),
            tokens: self.wire.tokens.load(Relaxed),
            ttft_p50_s,
            ttft_p95_s,
            finished: self.over(),
        }
    }

    /// Sends no further request and ends the requests in flight.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether the run is over, by its end or by a panic of its thread.
    fn over(&self) -> bool {
        self.thread.lock().as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits at most `timeout`; returns whether the run is over.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.over() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// The report of a run that is over, with the text of its first error. It can be taken once.
    ///
    /// # Errors
    /// [`DriveError::Running`] before the end; [`DriveError::Lost`] after a panic or a second call.
    pub fn report(&self) -> Result<(Report, Option<String>), DriveError> {
        let mut slot = self.thread.lock();
        if slot.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Err(DriveError::Running);
        }
        let records = slot
            .take()
            .ok_or(DriveError::Lost)?
            .join()
            .map_err(|_| DriveError::Lost)?;
        let elapsed_s = self.done.borrow().ok_or(DriveError::Lost)?;
        let tallies = self.wire.tallies.lock();
        let report = Report::new(&records, &tallies, elapsed_s, self.wire.opened.load(Relaxed));
        Ok((report, self.wire.first_error.lock().clone()))
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.lock().take() {
            // The records are dropped with the run; the panic hook has printed a panic of the thread.
            let _ = thread.join();
        }
    }
}

/// Due time in nanoseconds and index of a request; a heap of this type yields the earliest first.
type Due = Reverse<(u64, usize)>;

struct Run {
    plan: Plan,
    wire: Arc<Wire>,
    counts: Arc<Counts>,
    stop: watch::Receiver<bool>,
    records: Vec<Record>,
    /// Requests that follow an earlier one: `followers[i]` leave after the end of request `i`.
    followers: Vec<Vec<usize>>,
    due: BinaryHeap<Due>,
    flights: JoinSet<(usize, Record)>,
}

impl Run {
    fn new(plan: Plan, wire: Arc<Wire>, counts: Arc<Counts>, stop: watch::Receiver<bool>) -> Self {
        let mut followers = vec![Vec::new(); plan.requests.len()];
        let mut due = BinaryHeap::new();
        for (index, planned) in plan.requests.iter().enumerate() {
            match planned.release {
                Release::At(s) => due.push(Reverse((nanos(s), index))),
                Release::After { request, .. } => followers[request].push(index),
            }
        }
        let records = vec![Record::default(); plan.requests.len()];
        Self {
            plan,
            wire,
            counts,
            stop,
            records,
            followers,
            due,
            flights: JoinSet::new(),
        }
    }

    async fn drive(mut self) -> Vec<Record> {
        let mut stop = self.stop.clone();
        let mut probe = tokio::time::interval(LAG_PROBE);
        probe.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        if self.plan.concurrency.is_some() {
            self.due = self
                .due
                .drain()
                .map(|Reverse((_, index))| Reverse((index as u64, index)))
                .collect();
        }
        loop {
            self.launch_due();
            if self.flights.is_empty() && self.next_due().is_none() {
                break;
            }
            let next = self.next_due();
            tokio::select! {
                biased;
                _ = stop.wait_for(|&stopped| stopped) => break,
                Some(landed) = self.flights.join_next() => self.land(landed),
                () = sleep_until(next), if next.is_some() => {}
                due = probe.tick() => self.wire.tallies.lock().loop_lag.add(due.elapsed().as_secs_f64()),
            }
        }
        while let Some(landed) = self.flights.join_next().await {
            self.land(landed);
        }
        self.records
    }

    /// Due time of the next request. `None` after the end of sending, and in a closed loop with all slots taken.
    fn next_due(&self) -> Option<Instant> {
        let &Reverse((ns, _)) = self.due.peek()?;
        let end = self.wire.start + Duration::from_secs_f64(self.plan.duration_s);
        if let Some(concurrency) = self.plan.concurrency {
            return (self.flights.len() < concurrency && Instant::now() < end).then(Instant::now);
        }
        let at = self.wire.start + Duration::from_nanos(ns);
        (at < end).then_some(at)
    }

    fn launch_due(&mut self) {
        while self.next_due().is_some_and(|at| at <= Instant::now()) {
            let Some(Reverse((ns, index))) = self.due.pop() else {
                break;
            };
            let due_s = self.plan.concurrency.is_none().then_some(ns as f64 * 1e-9);
            if due_s.is_some() && self.flights.len() >= self.plan.max_in_flight {
                self.records[index] = Record {
                    outcome: Outcome::Shed,
                    due_s,
                    ..Record::default()
                };
                self.counts.ended.fetch_add(1, Relaxed);
                continue;
            }
            let (wire, stop) = (Arc::clone(&self.wire), self.stop.clone());
            let body = self.plan.requests[index].body.clone();
            self.counts.sent.fetch_add(1, Relaxed);
            self.flights
                .spawn(async move { (index, wire.exchange(due_s, body, stop).await) });
        }
    }

    fn land(&mut self, landed: Result<(usize, Record), tokio::task::JoinError>) {
        let (index, record) = landed.expect("an exchange must not panic");
        self.counts.ended.fetch_add(1, Relaxed);
        self.records[index] = record;
        if record.outcome != Outcome::Ok {
            return;
        }
        self.counts.ok.fetch_add(1, Relaxed);
        for &follower in &self.followers[index] {
            if let Release::After { think_s, .. } = self.plan.requests[follower].release {
                let due_s = record.end_s.unwrap_or_else(|| self.wire.now_s()) + think_s;
                self.due.push(Reverse((nanos(due_s), follower)));
            }
        }
    }
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
