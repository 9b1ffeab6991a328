//! Decision records: one JSON line per finished request, in files that `wardrop replay` and `wardrop advise` read.
//!
//! ```text
//! request ─▶ Trail ─ end ─▶ Recorder::put ─▶ Inbox (bounded) ─▶ writer thread ─▶ RecordFiles (rotated, bounded)
//! ```
//!
//! A request pays a copy of its block hashes and one short lock. The writer thread gives the hashes their names, writes JSON and rotates
//! the files. A full inbox, a full disk or a folder that cannot be written drops records and counts them; requests go on.
//!
//! A record holds no text, no token and no hash that Dynamo or an engine computes. Block ids are SipHash-2-4 of the sequence
//! hashes under a secret key: equal prefixes have equal ids, and without the key no reader can check a guess of a prompt.
//! `docs/reference/records.md` has the schema.

mod files;
mod inbox;
mod line;
mod metrics;
mod writer;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use wardrop_core::control::Routing;

use self::inbox::Inbox;
pub(crate) use self::line::{Facts, Record, WindowFacts};
use self::line::{Settings, arrived_s};
use self::metrics::RecordMetrics;
use self::writer::Writer;
use crate::config::RecordOptions;
use crate::metrics::MetricBuilder;
use crate::receipts::ReceiptOutcome;
use crate::service::PartState;
use crate::{Clock, ServiceError};

/// Takes the records of ended requests and has them written.
pub(crate) struct Recorder {
    /// Records that wait for the writer.
    inbox: Arc<Inbox>,
    /// Settings in force, with their version. A record keeps the version of its arrival.
    settings: Mutex<Arc<Settings>>,
    /// Unix time at the origin of the service's clock, in seconds. Arrivals then keep their distances when the system's time is set.
    origin_s: f64,
    /// Clock of the arrivals.
    clock: Clock,
    /// The writer thread.
    writer: Writer,
}

impl Recorder {
    /// Starts the writer thread. The thread touches no file before the first record.
    ///
    /// # Errors
    /// A key file that cannot be used, a metric name that is taken, or no thread.
    pub fn start(
        options: &RecordOptions,
        router_id: &str,
        routing: Routing,
        builder: &MetricBuilder,
        clock: Clock,
    ) -> Result<Self, ServiceError> {
        let metrics = RecordMetrics::new(builder)
            .map_err(|error| ServiceError::Config(format!("metrics of the records: {error}")))?;
        let inbox = Arc::new(Inbox::new(metrics));
        let writer = Writer::start(options, options.key()?, inbox.clone())?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            inbox,
            settings: Mutex::new(Arc::new(Settings::first(router_id, routing))),
            origin_s: since_1970.as_secs_f64() - clock.now_s(),
            clock,
            writer,
        })
    }

    /// Takes over settings that came into force.
    pub fn set_routing(&self, routing: &Routing) {
        let mut settings = self.settings.lock();
        *settings = Arc::new(settings.next(routing.clone()));
    }

    /// Begins the record of a request.
    pub fn open(&self, facts: &Facts<'_>) -> Box<Record> {
        let arrived_s = arrived_s(self.origin_s, self.clock, facts.started);
        Box::new(Record::new(facts, arrived_s, self.settings.lock().clone()))
    }

    /// Hands the record of an ended request to the writer. Never waits for a file.
    pub fn put(&self, mut record: Box<Record>, outcome: ReceiptOutcome) {
        record.outcome = outcome;
        if self.inbox.put(*record) {
            self.writer.wake();
        }
    }

    /// Hands a window of the price of anarchy to the writer. Never waits for a file.
    pub fn put_window(&self, window: WindowFacts) {
        self.inbox.put_window(window);
    }

    /// Whether records reach their files, for `/health`.
    pub fn state(&self) -> PartState {
        self.inbox.state()
    }

    /// Writes what waits and ends the writer thread. A second call does nothing.
    pub fn stop(&self) {
        self.inbox.close();
        self.writer.stop();
    }
}
