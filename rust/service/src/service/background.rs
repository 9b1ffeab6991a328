//! The service's background thread: the event loop of feeds, sweeps over the pools, and comparisons of token ids.
//!
//! No request runs on this thread. A sweep costs O(workers + bookings).
//!
//! Two threads: one for the event loop, and one for windows of the price of anarchy, which take too
//! long for the loop. Who starts it: [`Service::new`]; [`Service::stop`] ends both.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Service;
use crate::metrics::{Metrics, THREAD_PREFIX};
use crate::models::{Model, Models};
use crate::prompt::{HandoverLog, HandoverReport, TokenIdSource, keep_checked};
use crate::records::Recorder;
use crate::{Clock, ServiceError};

/// Threads for slow work of the event loop.
const BLOCKING_THREADS: usize = 2;
/// Time between two looks for the first worker of a model.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time between two sweeps over the pools: silence of workers, expired bookings, queues.
const SWEEP_EVERY: Duration = Duration::from_millis(200);

/// The running background thread.
pub(super) struct Background {
    /// Event loop of the thread.
    runtime: Handle,
    /// Signal that ends the loop.
    stop: watch::Sender<bool>,
    /// The thread, until a stop joins it.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ServiceError::Io`] when the operating system gives no thread or no event loop.
    pub fn start(
        models: Arc<Models>,
        metrics: Arc<Metrics>,
        records: Option<Arc<Recorder>>,
        clock: Clock,
    ) -> Result<Self, ServiceError> {
        let io = |source| ServiceError::Io {
            what: "starting the background thread".into(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name(format!("{THREAD_PREFIX}solve"))
            .build()
            .map_err(io)?;
        let handle = runtime.handle().clone();
        let (stop, mut stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name(format!("{THREAD_PREFIX}feeds"))
            .spawn(move || {
                runtime.block_on(async move {
                    let mut sweep = tokio::time::interval(SWEEP_EVERY);
                    // Solving a window takes longer than feeds may wait, so it runs on a thread of its own, one window at a time.
                    let mut solving = tokio::spawn(async {});
                    loop {
                        tokio::select! {
                            _ = sweep.tick() => {
                                sweep_pools(&models, &metrics, clock);
                                if solving.is_finished() {
                                    let (models, records) = (models.clone(), records.clone());
                                    let solve = move || solve_anarchy(&models, records.as_deref(), clock);
                                    solving = tokio::task::spawn_blocking(solve);
                                }
                            }
                            _ = stopped.changed() => return,
                        }
                    }
                });
                runtime.shutdown_background();
            })
            .map_err(io)?;
        Ok(Self {
            runtime: handle,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The event loop, for tasks of feeds and checks.
    pub fn runtime(&self) -> Handle {
        self.runtime.clone()
    }

    /// Ends the thread. A second call does nothing.
    ///
    /// Tasks of feeds are dropped with the loop; a window that is being solved ends on its own
    /// thread.
    pub fn stop(&self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// Reviews every pool: silent workers, expired bookings, suspect blocks, and requests that waited
/// long enough.
fn sweep_pools(models: &Models, metrics: &Metrics, clock: Clock) {
    let now_s = clock.now_s();
    for model in models.all() {
        for pool in model.pools() {
            let expired = pool.sweep(now_s);
            metrics.expired_bookings.inc_by(expired as u64);
        }
    }
}

/// Solves the windows of every pool, within each pool's own budget of CPU time.
fn solve_anarchy(models: &Models, records: Option<&Recorder>, clock: Clock) {
    for model in models.all() {
        if let Some(meter) = &model.bound {
            meter.solve(&model, clock.now_s(), records);
        }
        for pool in model.pools() {
            pool.solve_anarchy(clock.now_s());
        }
    }
}

impl Service {
    /// Compares the token ids of a model with those of the engine's frontend, in the background and as long as the model has these
    /// files. Token ids are handed over only while no comparison showed a difference.
    ///
    /// The task ends when the prompter is dropped: with the model, or with a change of its files.
    pub fn check_template(&self, model: &Model, source: impl TokenIdSource) {
        let Some(prompter) = &model.prompter else { return };
        let log = ModelLog {
            report: model.handover.clone(),
            metrics: self.metrics.clone(),
        };
        let (prompter, name) = (Arc::downgrade(prompter), model.spec.name.clone());
        let models = self.models.clone();
        self.background.runtime.spawn(async move {
            // No frontend answers for a model without workers, and invented models must not fill the frontends with dry runs.
            while !models.has_worker(&name) {
                if prompter.strong_count() == 0 {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            keep_checked(prompter, name, source, log).await;
        });
    }

    /// Compares the token ids of a registered model again, for example after its template changed upstream. Nothing is handed over
    /// until the comparison ends.
    ///
    /// # Errors
    /// [`ServiceError::UnknownModel`] when the model is not registered.
    pub fn recheck_template(&self, name: &str) -> Result<(), ServiceError> {
        if let Some(prompter) = &self.model(name)?.prompter {
            prompter.recheck();
        }
        Ok(())
    }
}

/// Where the comparisons of a model's token ids are reported.
struct ModelLog {
    /// Place of the latest report, which the model shares.
    report: Arc<Mutex<Option<HandoverReport>>>,
    /// Counter of differences.
    metrics: Arc<Metrics>,
}

impl HandoverLog for ModelLog {
    fn report(&self, report: HandoverReport) {
        *self.report.lock() = Some(report);
    }

    fn differed(&self) {
        self.metrics.handover_differences.inc();
    }
}
