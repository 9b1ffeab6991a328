//! The service's background thread: the event loop of feeds, sweeps over the pools, and template checks.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Service;
use crate::metrics::{Metrics, THREAD_PREFIX};
use crate::models::{Model, Models};
use crate::prompt::{TokenIdSource, check_handover};
use crate::{Clock, ServiceError};

/// Threads for slow work of the event loop.
const BLOCKING_THREADS: usize = 2;
/// Time between two sweeps over the pools: silence of workers, expired bookings, queues.
const SWEEP_EVERY: Duration = Duration::from_millis(200);
/// Pause between attempts of a template check while the engine's frontend can not answer.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
const CHECK_ATTEMPTS: u32 = 600;

/// The running background thread.
pub(super) struct Background {
    runtime: Handle,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Background {
    /// Starts the thread.
    pub fn start(models: Arc<Models>, metrics: Arc<Metrics>, clock: Clock) -> Result<Self, ServiceError> {
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
                                    let models = models.clone();
                                    solving = tokio::task::spawn_blocking(move || solve_anarchy(&models, clock));
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
    pub fn stop(&self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn sweep_pools(models: &Models, metrics: &Metrics, clock: Clock) {
    let now_s = clock.now_s();
    for model in models.all() {
        for pool in model.pools() {
            let expired = pool.sweep(now_s);
            metrics.expired_bookings.inc_by(expired as u64);
        }
    }
}

fn solve_anarchy(models: &Models, clock: Clock) {
    for model in models.all() {
        for pool in model.pools() {
            pool.solve_anarchy(clock.now_s());
        }
    }
}

impl Service {
    /// Compares the template and tokeniser of a model with the engine's frontend in the background, until the frontend answers or the
    /// model is gone. Token ids are handed over only for prompt shapes without a difference.
    pub fn check_template(&self, model: Arc<Model>, source: impl TokenIdSource) {
        let models = self.models.clone();
        self.background
            .runtime
            .spawn(check_template(models, model, source));
    }

    /// Checks the template of a registered model again, for example after the template changed upstream.
    ///
    /// # Errors
    /// [`ServiceError::UnknownModel`] when the model is not registered.
    pub fn recheck_template(&self, name: &str, source: impl TokenIdSource) -> Result<(), ServiceError> {
        self.check_template(self.model(name)?, source);
        Ok(())
    }
}

async fn check_template(models: Arc<Models>, model: Arc<Model>, source: impl TokenIdSource) {
    let Some(prompter) = model.prompter.clone() else {
        return;
    };
    for attempt in 0..CHECK_ATTEMPTS {
        let current = models.find(&model.spec.name).map(|(current, _)| current);
        let Some(current) =
            current.filter(|c| c.prompter.as_ref().is_some_and(|p| Arc::ptr_eq(p, &prompter)))
        else {
            return;
        };
        match check_handover(&prompter, &model.spec.name, &source).await {
            Ok(report) => {
                for shape in &report.shapes {
                    if shape.handed_over {
                        tracing::info!(model = %model.spec.name, shape = shape.shape, samples = shape.samples, "token ids equal Dynamo's: handed over");
                    } else {
                        tracing::warn!(model = %model.spec.name, shape = shape.shape, samples = shape.samples, equal = shape.equal, note = shape.note.as_deref(), "token ids differ from Dynamo's: used as a hint only");
                    }
                }
                *current.handover.lock() = Some(report);
                return;
            }
            Err(reason) => {
                if attempt == 0 {
                    tracing::info!(model = %model.spec.name, %reason, "template check waits for Dynamo");
                }
                tokio::time::sleep(CHECK_PAUSE).await;
            }
        }
    }
}
