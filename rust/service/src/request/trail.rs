//! What is written down about one request while it is served: its receipt, its record, its trace and its place in a window of
//! the price of anarchy, each where it is on.
//!
//! A trail ends once. A request that is dropped without an end was left by its client, so its receipt and its record say that.
//!
//! A trail without any part costs one lock per call, uncontended: the task of one request owns it.
//! `ended` takes every part out, so a later drop finds none.

use std::sync::Arc;

use parking_lot::Mutex;

use super::PlaceHints;
use crate::bound::BoundTicket;
use crate::pool::Booking;
use crate::receipts::{OpenReceipt, ReceiptOutcome, leg_receipt};
use crate::records::{Record, Recorder};
use crate::spans::facts::CollectsFacts;

/// Receipt, record and trace of one request, until its end.
pub(crate) struct Trail(Mutex<Parts>);

/// The parts that are on for this request.
#[derive(Default)]
struct Parts {
    /// Receipt, which the store of receipts shares.
    receipt: Option<Arc<OpenReceipt>>,
    /// Record on its way to the writer.
    record: Option<OpenRecord>,
    bound: Option<BoundTicket>,
    /// Trace of a sampled request.
    trace: Option<OpenTrace>,
}

/// A trace, with what turns blocks into tokens.
struct OpenTrace {
    /// Trace, which the door may share until the last byte.
    trace: Arc<dyn CollectsFacts>,
    /// Tokens of a block of the model.
    block_size: u32,
}

/// A record, with the place where it goes at the end.
struct OpenRecord {
    /// Writer of records.
    recorder: Arc<Recorder>,
    /// The record so far.
    record: Box<Record>,
}

impl Trail {
    /// A trail of the parts that are on.
    pub fn new(
        receipt: Option<Arc<OpenReceipt>>,
        record: Option<(Arc<Recorder>, Box<Record>)>,
        bound: Option<BoundTicket>,
    ) -> Self {
        let record = record.map(|(recorder, record)| OpenRecord { recorder, record });
        Self(Mutex::new(Parts {
            receipt,
            record,
            bound,
            trace: None,
        }))
    }

    /// Adds the trace of a request whose spans are exported. `block_size` is that of the model, in tokens.
    pub fn trace(&mut self, trace: Arc<dyn CollectsFacts>, block_size: u32) {
        self.0.get_mut().trace = Some(OpenTrace { trace, block_size });
    }

    /// The choice of a worker begins, under this policy.
    pub fn deciding(&self, policy: impl FnOnce() -> &'static str) {
        if let Some(open) = &self.0.lock().trace {
            open.trace.facts().lock().deciding(policy());
        }
    }

    /// The client asked this of the queue.
    pub fn hints(&mut self, hints: &PlaceHints<'_>) {
        if let Some(open) = &mut self.0.get_mut().record {
            open.record.hints(hints);
        }
    }

    /// The router placed the request.
    pub fn placed(&mut self, booking: &mut Booking) {
        let parts = self.0.get_mut();
        if let Some(ticket) = &mut parts.bound {
            let overlaps = booking.legs().map(|leg| leg.overlap_blocks);
            ticket.placed(overlaps.max().unwrap_or(0));
        }
        if parts.receipt.is_none() && parts.record.is_none() && parts.trace.is_none() {
            return;
        }
        for leg in booking.legs_mut() {
            let Some(explanation) = leg.explanation.take() else {
                continue;
            };
            let said = leg_receipt(leg, *explanation);
            if let Some(open) = &mut parts.record {
                open.record.placed(&said);
            }
            if let Some(open) = &parts.trace {
                open.trace.facts().lock().placed(&said, open.block_size);
            }
            if let Some(receipt) = &parts.receipt {
                receipt.placed(said);
            }
        }
    }

    /// The choice was left to Dynamo, for this reason.
    pub fn abstained(&mut self, reason: &'static str) {
        let parts = self.0.get_mut();
        if let Some(open) = &mut parts.record {
            open.record.abstained(reason);
        }
        if let Some(open) = &parts.trace {
            open.trace.facts().lock().abstained(reason);
        }
        if let Some(receipt) = &parts.receipt {
            receipt.abstained(reason);
        }
    }

    /// The request ended. A second call does nothing.
    pub fn ended(&self, outcome: ReceiptOutcome) {
        let parts = std::mem::take(&mut *self.0.lock());
        if let Some(receipt) = parts.receipt {
            receipt.ended(outcome);
        }
        if let Some(open) = parts.trace {
            open.trace.facts().lock().ended(&outcome);
        }
        if let Some(ticket) = parts.bound {
            ticket.end(&outcome);
        }
        if let Some(OpenRecord { recorder, record }) = parts.record {
            recorder.put(record, outcome);
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        // A panic drops the request as well; its client gets an error.
        let how = if std::thread::panicking() {
            "error"
        } else {
            "client_left"
        };
        self.ended(ReceiptOutcome {
            how,
            ..ReceiptOutcome::default()
        });
    }
}
