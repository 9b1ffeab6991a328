//! Shadow fleets beside the live traffic: what other policies would have made of the same requests.
//!
//! ```text
//! request ─▶ arrived (hashes, length, time) ─▶ bounded queue ─▶ a thread of its own ─▶ wardrop_sim::shadow, one per model
//! answer  ─▶ first token, end ───────────────▶                      ▲  workers, capacities, curves, policy in force
//!                                                                   └─ once a second from the pools
//!                                             metrics page, admin API ◀── reports
//! ```
//!
//! The requests' path pays for one copy of its block hashes and one push, and waits for nothing. No token and no text goes this
//! way. The thread keeps its own CPU time within a share of one core, see [`wardrop_sim::shadow`].

mod feed;
mod keeper;
mod options;
mod report;
mod thread;

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use parking_lot::Mutex;

use self::feed::{Event, Feed, Taken};
pub use self::options::ShadowOptions;
pub use self::report::ModelShadowReport;
pub use self::thread::ShadowThread;
use crate::GatewayError;
use crate::metrics::Metrics;
use crate::prompt::Prepared;

/// The shadows as the requests' path, the metrics page and the admin API see them.
pub struct Shadows {
    options: ShadowOptions,
    feed: Arc<Feed>,
    /// Taken by the thread.
    events: Mutex<Option<Receiver<Event>>>,
    reports: Mutex<Arc<[ModelShadowReport]>>,
}

/// A request that the shadows were told of.
pub struct Ticket {
    id: u64,
    model: Arc<str>,
    feed: Arc<Feed>,
}

impl Shadows {
    /// Shadows whose thread does not run yet.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn new(options: &ShadowOptions) -> Result<Self, GatewayError> {
        options.check()?;
        let (feed, events) = Feed::new(options.max_events);
        Ok(Self {
            options: options.clone(),
            feed: Arc::new(feed),
            events: Mutex::new(Some(events)),
            reports: Mutex::new(Arc::from([])),
        })
    }

    /// A request came at `started`, on a clock that began at `clock`. `None` when the shadows do not see it.
    pub fn arrived(
        &self,
        prepared: &Prepared,
        (started, clock): (Instant, Instant),
        metrics: &Metrics,
    ) -> Option<Ticket> {
        let model = &prepared.model.pools()[0].model;
        let at_s = started.saturating_duration_since(clock).as_secs_f64();
        let (id, taken) = self
            .feed
            .arrived(model, at_s, prepared.input_tokens, &prepared.sequence);
        let reason = match taken {
            Taken::Yes => {
                return Some(Ticket {
                    id,
                    model: model.clone(),
                    feed: self.feed.clone(),
                });
            }
            Taken::Dropped => "dropped",
            Taken::PassedOver => "passed_over",
        };
        metrics.shadows.count(model, reason, 1);
        None
    }

    /// What was told last, one report per model.
    pub fn reports(&self) -> Arc<[ModelShadowReport]> {
        self.reports.lock().clone()
    }
}

impl Ticket {
    /// Its first token came.
    pub fn first_token(&self, ttft_s: f64) {
        self.feed.tell(Event::FirstToken {
            id: self.id,
            model: self.model.clone(),
            ttft_s,
        });
    }

    /// Its answer is whole, with so many tokens where that is known.
    pub fn ended(&self, output_tokens: Option<u32>) {
        if let Some(output_tokens) = output_tokens {
            self.feed.tell(Event::Ended {
                id: self.id,
                model: self.model.clone(),
                output_tokens,
            });
        }
    }

    /// It was answered with an error: no worker had to do with it for long.
    pub fn failed(&self) {
        self.feed.tell(Event::Failed {
            id: self.id,
            model: self.model.clone(),
        });
    }
}
