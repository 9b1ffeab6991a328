//! The thread that simulates: it looks ten times a second, and never works more than its share.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Shadows;
use super::feed::Event;
use super::keeper::Keeper;
use super::report::ModelShadowReport;
use crate::GatewayError;
use crate::metrics::THREAD_PREFIX;
use crate::proxy::Shared;

/// Time between two looks at the queue.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time between two looks at the fleet, and between two reports, s.
const FOLLOW_EVERY_S: f64 = 1.0;

/// The running thread; it ends when this is stopped or dropped.
pub struct ShadowThread {
    stop: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl ShadowThread {
    /// Starts the thread of the gateway's shadows, if it has any.
    ///
    /// # Errors
    /// [`GatewayError::Io`] when no thread can be had.
    pub fn start(shared: &Arc<Shared>) -> Result<Option<Self>, GatewayError> {
        let Some(events) = shared
            .shadows
            .as_ref()
            .and_then(|shadows| shadows.events.lock().take())
        else {
            return Ok(None);
        };
        let (stop, stopped) = sync_channel(1);
        let shared = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("{THREAD_PREFIX}shadows"))
            .spawn(move || {
                let whole = catch_unwind(AssertUnwindSafe(|| run(&shared, &events, &stopped)));
                if let (Err(_), Some(shadows)) = (whole, &shared.shadows) {
                    tracing::error!(
                        "the shadows' thread broke: there are none until the gateway is started again"
                    );
                    shadows.feed.set_closed(true);
                    *shadows.reports.lock() = Arc::from([]);
                }
            })
            .map_err(|source| GatewayError::Io {
                what: "starting the shadows' thread".into(),
                source,
            })?;
        Ok(Some(Self {
            stop,
            thread: Some(thread),
        }))
    }

    /// Ends the thread; at the latest after the step that it is at.
    pub fn stop(&mut self) {
        let _ = self.stop.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ShadowThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// CPU seconds of the calling thread; where there is no `/proc`, time that passed, which is no less.
struct CpuClock {
    since: Instant,
    last_s: f64,
}

impl CpuClock {
    fn new() -> Self {
        let mut clock = Self {
            since: Instant::now(),
            last_s: 0.0,
        };
        clock.lap();
        clock
    }

    /// Seconds since the last call.
    fn lap(&mut self) -> f64 {
        let now_s = std::fs::read_to_string("/proc/thread-self/schedstat")
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
            .map_or_else(|| self.since.elapsed().as_secs_f64(), |ns| ns / 1e9);
        (now_s - std::mem::replace(&mut self.last_s, now_s)).max(0.0)
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    shadows: &'a Shadows,
    keepers: BTreeMap<Arc<str>, Keeper>,
    cpu: CpuClock,
    followed_s: f64,
}

fn run(shared: &Shared, events: &Receiver<Event>, stopped: &Receiver<()>) {
    let Some(shadows) = &shared.shadows else { return };
    let mut worker = Worker {
        shared,
        shadows,
        keepers: BTreeMap::new(),
        cpu: CpuClock::new(),
        followed_s: f64::NEG_INFINITY,
    };
    while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        worker.look(events);
    }
}

impl Worker<'_> {
    fn look(&mut self, events: &Receiver<Event>) {
        // What comes in while this is emptied waits for the next look.
        for _ in 0..self.shadows.options.max_events {
            let Ok(event) = events.try_recv() else { break };
            self.shadows.feed.received(&event);
            let (Event::Arrived { model, .. }
            | Event::FirstToken { model, .. }
            | Event::Ended { model, .. }
            | Event::Failed { model, .. }) = &event;
            if let Some(keeper) = self.keepers.get_mut(model) {
                keeper.take(event);
            } else if matches!(event, Event::Arrived { .. }) {
                self.shared.metrics.shadows.count(model, "passed_over", 1);
            }
        }
        if let Some(lost) = self.shadows.feed.take_lost() {
            let tick_s = self.shadows.options.tick_s;
            self.keepers
                .values_mut()
                .for_each(|keeper| keeper.lost(lost, tick_s));
        }
        let now_s = self.shared.now_s();
        if now_s - self.followed_s >= FOLLOW_EVERY_S {
            self.followed_s = now_s;
            self.follow(now_s);
            self.publish(now_s);
        }
        self.simulate(now_s);
        let takes = self.keepers.values().any(Keeper::takes);
        self.shadows.feed.set_closed(!takes);
    }

    fn share(&self) -> f64 {
        self.shadows.options.cpu_share / self.keepers.len().max(1) as f64
    }

    /// What was not simulating is everybody's, then each model's shadows have their own account.
    fn simulate(&mut self, now_s: f64) {
        let share = self.share();
        let common_s = self.cpu.lap() / self.keepers.len().max(1) as f64;
        for keeper in self.keepers.values_mut() {
            keeper.charge(common_s, share, now_s);
            while keeper.advance(now_s) {
                keeper.charge(self.cpu.lap(), share, now_s);
                if !keeper.is_due(now_s) {
                    break;
                }
            }
        }
    }

    fn follow(&mut self, now_s: f64) {
        let routing = self.shared.routing.lock().clone();
        let models = self.shared.registry.all();
        self.keepers
            .retain(|name, _| models.iter().any(|model| *model.spec.name == **name));
        for model in &models {
            let name = &model.pools()[0].model;
            let keeper = self
                .keepers
                .entry(name.clone())
                .or_insert_with(|| Keeper::new(name.clone()));
            keeper.follow(model, &routing, &self.shadows.options, now_s);
        }
    }

    fn publish(&mut self, now_s: f64) {
        let metrics = &self.shared.metrics.shadows;
        for keeper in self.keepers.values_mut() {
            let fresh = keeper.fresh();
            metrics.count(&keeper.model, "fed", fresh.fed);
            metrics.count(&keeper.model, "dropped", fresh.dropped);
            metrics.count(&keeper.model, "passed_over", fresh.passed_over);
            metrics.count_cpu(&keeper.model, fresh.cpu_s);
        }
        let keepers = self.keepers.values();
        let reports: Vec<ModelShadowReport> = keepers
            .map(|keeper| keeper.report(&self.shadows.options, now_s))
            .collect();
        *self.shadows.reports.lock() = reports.into();
    }
}
