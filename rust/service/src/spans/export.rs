//! The thread that sends spans to the collector, in OTLP over HTTP with protobuf.
//!
//! Bounds: 512 spans per export, 5 s for the collector's answer, pauses of 1 to 30 s after
//! failures. Nothing here is on the path of a request.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Thread;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{RetryPolicy, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter;
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use super::metrics::Loss;
use super::outbox::Outbox;
use crate::ServiceError;
use crate::config::TracingOptions;
use crate::metrics::THREAD_PREFIX;

/// Time between two exports. Requests then wake no thread.
const EXPORT_EVERY: Duration = Duration::from_secs(1);
/// Spans of one export.
const BATCH_SPANS: usize = 512;
/// Longest wait for the collector's answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the first failed export; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a failed export.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Longest wait for the last export when the service stops.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// The running export thread.
pub(super) struct Exporter {
    /// Handle that wakes the thread.
    thread: Thread,
    /// Hangs up when the thread ends.
    ended: Mutex<Receiver<()>>,
}

impl Exporter {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for an address that is no URL, [`ServiceError::Io`] when the
    /// operating system gives no thread or event loop.
    pub fn start(options: &TracingOptions, outbox: Arc<Outbox>) -> Result<Self, ServiceError> {
        let io = |source| ServiceError::Io {
            what: "starting the thread of the spans".into(),
            source,
        };
        let mut otlp = OtlpExporter::builder()
            .with_http()
            .with_endpoint(&options.endpoint)
            .with_timeout(TIMEOUT)
            // Pauses between attempts are those of `Work`, which keeps them bounded while spans wait.
            .with_retry_policy(RetryPolicy::disabled())
            .with_http_client(HyperClient::with_default_connector(TIMEOUT, None))
            .build()
            .map_err(|error| ServiceError::Config(format!("tracing.endpoint: {error}")))?;
        otlp.set_resource(
            &Resource::builder()
                .with_service_name(options.service_name.clone())
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                .build(),
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(io)?;
        let (running, ended) = channel();
        let handle = std::thread::Builder::new()
            .name(format!("{THREAD_PREFIX}spans"))
            .spawn(move || {
                let mut work = Work::new(otlp, runtime, outbox);
                while work.step() {
                    std::thread::park_timeout(EXPORT_EVERY);
                }
                drop((work, running));
            })
            .map_err(io)?;
        Ok(Self {
            thread: handle.thread().clone(),
            ended: Mutex::new(ended),
        })
    }

    /// Has the thread export now.
    pub fn wake(&self) {
        self.thread.unpark();
    }

    /// Waits until the thread has exported the last spans of a closed outbox.
    pub fn stop(&self) {
        self.wake();
        if let Err(RecvTimeoutError::Timeout) = self.ended.lock().recv_timeout(STOP_WAIT) {
            tracing::warn!("the collector takes no spans; the last ones are lost");
        }
    }
}

/// What the thread holds between two exports.
struct Work {
    /// Client of the collector.
    otlp: OtlpExporter,
    /// Event loop of the client, on this thread alone.
    runtime: Runtime,
    /// Source of the spans.
    outbox: Arc<Outbox>,
    /// Pause after the next failed export.
    pause: Duration,
    /// End of the pause after a failed export; `None` while the collector takes spans.
    resume_at: Option<Instant>,
}

impl Work {
    /// Work without spans.
    fn new(otlp: OtlpExporter, runtime: Runtime, outbox: Arc<Outbox>) -> Self {
        Self {
            otlp,
            runtime,
            outbox,
            pause: FIRST_PAUSE,
            resume_at: None,
        }
    }

    /// Exports every span that waits, batch by batch. Returns whether more may come.
    fn step(&mut self) -> bool {
        let pauses = self.resume_at.is_some_and(|at| Instant::now() < at);
        if pauses && !self.outbox.is_closed() {
            return true;
        }
        loop {
            let (spans, is_last) = self.outbox.take(BATCH_SPANS);
            let count = spans.len();
            if count > 0 && !self.export(spans, count) {
                // A closed outbox gets one attempt, so that the end of the process does not wait for a dead collector.
                return !self.outbox.is_closed();
            }
            if is_last {
                return false;
            }
            if count < BATCH_SPANS {
                return true;
            }
        }
    }

    /// Sends one batch. Returns whether the collector took it; a batch that failed is dropped and
    /// counted.
    fn export(&mut self, spans: Vec<opentelemetry_sdk::trace::SpanData>, count: usize) -> bool {
        let metrics = &self.outbox.metrics;
        match self.runtime.block_on(self.otlp.export(spans)) {
            Ok(()) => {
                metrics.exported.inc_by(count as u64);
                if self.resume_at.take().is_some() {
                    tracing::info!("the collector takes spans again");
                }
                self.pause = FIRST_PAUSE;
                true
            }
            Err(error) => {
                metrics.lost(Loss::ExportFailed, count);
                if self.resume_at.is_none() {
                    tracing::warn!(%error, "spans cannot be exported and are dropped; requests are served as before");
                }
                self.resume_at = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(LAST_PAUSE);
                false
            }
        }
    }
}
