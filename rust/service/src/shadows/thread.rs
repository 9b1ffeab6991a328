//! The shadow thread: it reads the event queue ten times a second and stays within its share of a core.
//!
//! Cost: at most `shadows.cpu_share` of a core over all models; the account of each model lets it
//! work in bursts. A panic ends the shadows and nothing else.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wardrop_core::control::Routing;

use super::Shadows;
use super::events::Event;
use super::model::ModelShadows;
use super::report::ModelShadowReport;
use crate::metrics::THREAD_PREFIX;
use crate::models::Models;
use crate::{Clock, ServiceError};

/// Time between two reads of the event queue.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time between two updates from the fleet, and between two reports, in seconds.
const FOLLOW_EVERY_S: f64 = 1.0;

/// Shared state that the shadow thread reads and writes.
pub(crate) struct ShadowSources {
    /// Options, arrivals and reports of the shadows.
    pub shadows: Arc<Shadows>,
    /// Models and workers to shadow.
    pub models: Arc<Models>,
    /// Policy and queue in force.
    pub routing: Arc<Mutex<Routing>>,
    /// Time base of the arrivals.
    pub clock: Clock,
}

/// Handle of the shadow thread; the thread ends on `stop` or on drop.
pub(crate) struct ShadowThread {
    /// Signal that ends the thread.
    stop: SyncSender<()>,
    /// The thread, until it is joined.
    thread: Option<JoinHandle<()>>,
}

impl ShadowThread {
    /// Starts the shadows' thread.
    ///
    /// # Errors
    /// [`ServiceError::Io`] when the operating system gives no thread, [`ServiceError::State`] when the thread runs already.
    pub fn start(sources: ShadowSources) -> Result<Self, ServiceError> {
        let receiver = sources.shadows.receiver.lock().take();
        let Some(receiver) = receiver else {
            return Err(ServiceError::State("the shadows' thread runs already".into()));
        };
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("{THREAD_PREFIX}shadows"))
            .spawn(move || {
                let whole = catch_unwind(AssertUnwindSafe(|| run(&sources, &receiver, &stopped)));
                if whole.is_err() {
                    tracing::error!(
                        "the shadow thread panicked; shadows stay off until the service restarts"
                    );
                    sources.shadows.events.set_closed(true);
                    *sources.shadows.reports.lock() = Arc::from([]);
                }
            })
            .map_err(|source| ServiceError::Io {
                what: "starting the shadows' thread".into(),
                source,
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the thread after its current step, and waits for the end.
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

/// CPU time of the calling thread. Without `/proc` it measures elapsed time, an upper bound.
struct CpuClock {
    /// Start of the measurement, for a system without `/proc`.
    since: Instant,
    /// Reading at the last lap, in seconds.
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

    /// Returns the seconds since the last call.
    fn lap(&mut self) -> f64 {
        let now_s = std::fs::read_to_string("/proc/thread-self/schedstat")
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
            .map_or_else(|| self.since.elapsed().as_secs_f64(), |ns| ns / 1e9);
        (now_s - std::mem::replace(&mut self.last_s, now_s)).max(0.0)
    }
}

/// State of the thread.
struct Worker<'a> {
    /// What the thread reads.
    sources: &'a ShadowSources,
    /// Where it takes events and leaves reports.
    shadows: &'a Shadows,
    /// Shadows by model.
    models: BTreeMap<Arc<str>, ModelShadows>,
    /// CPU time of this thread.
    cpu: CpuClock,
    /// Time of the last update from the fleet, in seconds.
    followed_s: f64,
}

/// Looks at the queue ten times a second until the stop signal comes.
fn run(sources: &ShadowSources, events: &Receiver<Event>, stopped: &Receiver<()>) {
    let mut worker = Worker {
        sources,
        shadows: &sources.shadows,
        models: BTreeMap::new(),
        cpu: CpuClock::new(),
        followed_s: f64::NEG_INFINITY,
    };
    while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        worker.look(events);
    }
}

impl Worker<'_> {
    /// Takes events, follows the fleet once a second, and simulates as far as the account allows.
    fn look(&mut self, events: &Receiver<Event>) {
        // The bound leaves events that arrive during this loop to the next read.
        for _ in 0..self.shadows.options.max_events {
            let Ok(event) = events.try_recv() else { break };
            self.shadows.events.received(&event);
            let (Event::Arrived { model, .. }
            | Event::FirstToken { model, .. }
            | Event::Ended { model, .. }
            | Event::Failed { model, .. }) = &event;
            if let Some(shadows) = self.models.get_mut(model) {
                shadows.take(event);
            } else if matches!(event, Event::Arrived { .. }) {
                self.shadows.metrics.count(model, "passed_over", 1);
            }
        }
        if let Some(lost) = self.shadows.events.take_lost() {
            let tick_s = self.shadows.options.tick_s;
            self.models
                .values_mut()
                .for_each(|model| model.lost(lost, tick_s));
        }
        let now_s = self.sources.clock.now_s();
        if now_s - self.followed_s >= FOLLOW_EVERY_S {
            self.followed_s = now_s;
            self.follow(now_s);
            self.publish(now_s);
        }
        self.simulate(now_s);
        let takes = self.models.values().any(ModelShadows::takes);
        self.shadows.events.set_closed(!takes);
    }

    /// Share of a core for each model; all models get the same.
    fn share(&self) -> f64 {
        self.shadows.options.cpu_share / self.models.len().max(1) as f64
    }

    /// Simulates all models. Each model pays an equal part of the common CPU time, and its own simulation.
    fn simulate(&mut self, now_s: f64) {
        let share = self.share();
        let common_s = self.cpu.lap() / self.models.len().max(1) as f64;
        for model in self.models.values_mut() {
            model.charge(common_s, share, now_s);
            while model.advance(now_s) {
                model.charge(self.cpu.lap(), share, now_s);
                if !model.is_due(now_s) {
                    break;
                }
            }
        }
    }

    /// Takes over models, workers, policy and queue. Shadows of removed models are dropped.
    fn follow(&mut self, now_s: f64) {
        let routing = self.sources.routing.lock().clone();
        let models = self.sources.models.all();
        self.models
            .retain(|name, _| models.iter().any(|model| *model.spec.name == **name));
        for model in &models {
            let name = &model.pools()[0].model;
            let shadows = self
                .models
                .entry(name.clone())
                .or_insert_with(|| ModelShadows::new(name.clone()));
            shadows.follow(model, &routing, &self.shadows.options, now_s);
        }
    }

    /// Counts what happened since the last report, and replaces the reports.
    fn publish(&mut self, now_s: f64) {
        let metrics = &self.shadows.metrics;
        for model in self.models.values_mut() {
            let new = model.take_new_counts();
            metrics.count(&model.model, "fed", new.fed);
            metrics.count(&model.model, "dropped", new.dropped);
            metrics.count(&model.model, "passed_over", new.passed_over);
            metrics.count_cpu(&model.model, new.cpu_s);
        }
        let models = self.models.values();
        let reports: Vec<ModelShadowReport> = models
            .map(|model| model.report(&self.shadows.options, now_s))
            .collect();
        *self.shadows.reports.lock() = reports.into();
    }
}
