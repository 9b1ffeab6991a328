//! Shadow fleets: simulations of other policies on the live requests.
//!
//! ```text
//! request ─▶ arrived (hashes, length, time) ─▶ bounded queue ─▶ a thread of its own ─▶ wardrop_sim::shadow, one per model
//! answer  ─▶ first token, end ───────────────▶                      ▲  workers, capacities, curves, policy in force
//!                                                                   └─ once a second from the pools
//!                                             metrics page, admin API ◀── reports
//! ```
//!
//! The request path pays for one copy of the block hashes and one push, and never waits.
//! The events carry no token and no text.
//! The shadow thread keeps its CPU time within a share of one core, see [`wardrop_sim::shadow`].

mod adoption;
mod events;
mod metrics;
mod model;
mod report;
mod shadowed;
mod thread;

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use parking_lot::Mutex;
use wardrop_core::SequenceHash;

use self::events::{Admission, Event, EventQueue};
use self::metrics::ShadowMetrics;
use self::report::ModelShadowReport;
pub(crate) use self::thread::{ShadowSources, ShadowThread};
use crate::ServiceError;
use crate::config::ShadowOptions;
use crate::metrics::MetricBuilder;

/// Entry point to the shadows for the request path, the metrics page and the admin API.
pub(crate) struct Shadows {
    /// Options, checked at the start.
    options: ShadowOptions,
    /// Queue to the shadow thread.
    events: Arc<EventQueue>,
    /// Receiving side of `events` until the thread takes it.
    receiver: Mutex<Option<Receiver<Event>>>,
    /// Latest reports, replaced as a whole once a second.
    reports: Mutex<Arc<[ModelShadowReport]>>,
    /// Metrics of all models.
    metrics: ShadowMetrics,
}

/// A request in the shadows' event queue, to which its outcome is reported.
pub(crate) struct ShadowedRequest {
    /// Number of the request in the event queue.
    id: u64,
    /// Name of the model.
    model: Arc<str>,
    /// Queue to the shadow thread.
    events: Arc<EventQueue>,
}

impl Shadows {
    /// Creates the shadows without starting their thread.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the invalid option or metric.
    pub fn new(options: &ShadowOptions, builder: &MetricBuilder) -> Result<Self, ServiceError> {
        options.check()?;
        let (events, receiver) = EventQueue::new(options.max_events);
        Ok(Self {
            options: options.clone(),
            events: Arc::new(events),
            receiver: Mutex::new(Some(receiver)),
            reports: Mutex::new(Arc::from([])),
            metrics: ShadowMetrics::new(builder)
                .map_err(|error| ServiceError::Config(format!("metrics of the shadows: {error}")))?,
        })
    }

    /// Sends a request that arrived at `at_s`, in seconds on the service's clock.
    ///
    /// Returns `None` when the shadows do not simulate the request.
    pub fn arrived(
        &self,
        model: &Arc<str>,
        at_s: f64,
        input_tokens: u32,
        sequence: &[SequenceHash],
    ) -> Option<ShadowedRequest> {
        let (id, taken) = self.events.arrived(model, at_s, input_tokens, sequence);
        let reason = match taken {
            Admission::Yes => {
                return Some(ShadowedRequest {
                    id,
                    model: model.clone(),
                    events: self.events.clone(),
                });
            }
            Admission::Dropped => "dropped",
            Admission::PassedOver => "passed_over",
        };
        self.metrics.count(model, reason, 1);
        None
    }

    /// Puts the last reports on the metrics page.
    pub fn update_metrics(&self) {
        self.metrics.set(&self.reports());
    }

    /// The last reports, one per model.
    pub fn reports(&self) -> Arc<[ModelShadowReport]> {
        self.reports.lock().clone()
    }
}

impl ShadowedRequest {
    /// Reports the first token, `ttft_s` seconds after the arrival.
    pub fn first_token(&self, ttft_s: f64) {
        self.events.report(Event::FirstToken {
            id: self.id,
            model: self.model.clone(),
            ttft_s,
        });
    }

    /// Reports the end of the answer; does nothing when the number of output tokens is unknown.
    pub fn ended(&self, output_tokens: Option<u32>) {
        if let Some(output_tokens) = output_tokens {
            self.events.report(Event::Ended {
                id: self.id,
                model: self.model.clone(),
                output_tokens,
            });
        }
    }

    /// Reports an error answer; the shadows withdraw the request because it caused little load.
    pub fn failed(&self) {
        self.events.report(Event::Failed {
            id: self.id,
            model: self.model.clone(),
        });
    }
}
