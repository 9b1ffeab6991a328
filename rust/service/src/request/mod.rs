//! One request on its way through the service, for any door.
//!
//! ```text
//! Service::prepare ─▶ Prepared ─▶ Service::begin ─▶ ActiveRequest ─▶ place ─▶ (door forwards) ─▶ answer ─▶ Answer
//! ```
//!
//! Dropping an [`ActiveRequest`] or an [`Answer`] at any point releases its bookings.
//!
//! Cost beside the decision itself: one arrival in each of outcomes, shadows and records, where
//! they are on. The memory of a request is its prompt's hashes, which its body's limit bounds.

mod answer;
mod choose;
mod place;
mod prepare;
mod reserved;
mod trail;
mod unread;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use wardrop_core::WorkerId;

pub use self::answer::{Answer, Usage};
pub use self::choose::Chosen;
pub use self::place::{PlaceHints, Refusal, Unplaced};
pub use self::prepare::{Prepared, ReadyPrompt};
pub use self::reserved::ReservedTrail;
use self::trail::Trail;
pub use self::unread::UnreadPrompt;
use crate::bound::BoundTicket;
use crate::pool::{Booking, Role};
use crate::prompt::Abstention;
use crate::receipts::{ReceiptOutcome, ReceiptRequest};
use crate::records::Facts;
use crate::service::Service;
use crate::shadows::ShadowedRequest;
use crate::spans::facts::CollectsFacts;
use crate::spans::{DoorTrace, RequestTrace};

/// A prepared request, from its decision to the beginning of its answer.
pub struct ActiveRequest {
    /// Service that the request belongs to.
    service: Arc<Service>,
    /// Model and prompt.
    prepared: Prepared,
    /// When the whole request had arrived.
    started: Instant,
    /// Booking of the workers; `None` before the decision, after an abstention, and once taken.
    booking: Option<Booking>,
    /// Seconds in the queue; `None` for a request that met no queue.
    waited_s: Option<f64>,
    /// Handle of the request in the shadows; `None` when they do not simulate it.
    shadow: Option<ShadowedRequest>,
    /// Receipt, record and trace of the request.
    trail: Trail,
}

impl Service {
    /// Begins a request whose last byte arrived at `started`. With an id, and with receipts on, its decision gets a receipt. With
    /// records on, the request gets a record.
    pub fn begin(
        self: &Arc<Self>,
        prepared: Prepared,
        request_id: Option<&str>,
        started: Instant,
    ) -> ActiveRequest {
        let trail = self.trail(&prepared, request_id, started);
        ActiveRequest {
            service: self.clone(),
            prepared,
            started,
            booking: None,
            waited_s: None,
            shadow: None,
            trail,
        }
    }

    /// Opens receipt and record of a request, each where it is on.
    fn trail(&self, prepared: &Prepared, request_id: Option<&str>, started: Instant) -> Trail {
        let receipt = request_id.and_then(|id| {
            let facts = ReceiptRequest {
                model: &prepared.model.spec.name,
                input_tokens: prepared.prompt.input_tokens,
                blocks: prepared.prompt.hashes.len(),
            };
            self.receipts.open(id, &facts, || self.routing.lock().clone())
        });
        let bound = prepared.model.bound.as_ref().and_then(|meter| {
            let arrived_s = self.clock.seconds_at(started);
            meter.arrive(arrived_s, &prepared.prompt, prepared.model.spec.block_size)
        });
        let record = self.records.as_ref().map(|records| {
            let facts = Facts {
                request_id,
                started,
                model: &prepared.model,
                prompt: &prepared.prompt,
                regime: self.receipts.regime(),
                window: bound.as_ref().map(BoundTicket::window),
            };
            (records.clone(), records.open(&facts))
        });
        Trail::new(receipt, record, bound)
    }
}

impl ActiveRequest {
    /// Connects the request with its trace, so that the decision and the outcome become attributes of the spans.
    pub fn trace(&mut self, trace: &Arc<RequestTrace>) {
        if !trace.is_sampled() {
            return;
        }
        self.collect(trace.clone());
    }

    /// Connects the request with a span of the door's own, as [`ActiveRequest::trace`] does with an exported trace.
    pub fn door_trace(&mut self, trace: DoorTrace) {
        self.collect(Arc::new(trace));
    }

    fn collect(&mut self, trace: Arc<dyn CollectsFacts>) {
        let model = &self.prepared.model.spec;
        let input_tokens = self.prepared.prompt.input_tokens;
        trace.facts().lock().prompt(&model.name, input_tokens);
        self.trail.trace(trace, model.block_size);
    }

    /// Chooses and books the request's workers; where a pool has a queue, the request waits there for room.
    ///
    /// Call it once per request. Dropping the future removes the request from the queue.
    ///
    /// # Errors
    /// Why there is no booking. After [`Unplaced::Abstain`] the door forwards the request without a pin.
    pub async fn place(&mut self, hints: &PlaceHints<'_>) -> Result<(), Unplaced> {
        let (service, prompt) = (&self.service, &self.prepared.prompt);
        service.outcomes.arrived();
        self.trail.hints(hints);
        self.trail.deciding(|| service.policy_name());
        self.shadow = service.shadows.as_ref().and_then(|shadows| {
            let model = &self.prepared.model.pools()[0].model;
            let at_s = service.clock.seconds_at(self.started);
            shadows.arrived(model, at_s, prompt.input_tokens, &prompt.sequence)
        });
        let placed = if service.config.routing.observe {
            // An observed request goes to Dynamo as it came, without token ids from here.
            self.prepared.prompt.spliced = None;
            Err(Unplaced::Abstain(Abstention::Observing))
        } else {
            service.place(&self.prepared, hints).await
        };
        match placed {
            Ok(placed) => {
                self.waited_s = placed.waited_s;
                self.take_over(placed.booking);
                Ok(())
            }
            Err(unplaced) => {
                match unplaced {
                    Unplaced::Abstain(reason) => {
                        service.count_abstention(reason);
                        self.trail.abstained(reason.name());
                    }
                    Unplaced::Refuse(_) => service.outcomes.refused(),
                }
                Err(unplaced)
            }
        }
    }

    /// Chooses and books the workers once more, without a wait, after a worker went silent.
    ///
    /// The old booking is released first, so the request's own load does not count against a
    /// worker.
    pub fn place_again(&mut self) {
        drop(self.booking.take());
        if self.service.config.routing.observe {
            return;
        }
        if let Ok(booking) = self.service.place_now(&self.prepared) {
            self.take_over(booking);
        }
    }

    /// Chooses and books the workers once more, and leaves out the worker of a failed attempt where another one is available.
    /// Returns whether there is a booking now.
    pub fn place_elsewhere(&mut self, failed: WorkerId) -> bool {
        if !self.place_on_others(failed)
            && let Ok(booking) = self.service.place_now(&self.prepared)
        {
            self.take_over(booking);
        }
        self.booking.is_some()
    }

    /// Chooses and books the workers once more, without the worker of a failed attempt. Returns whether there is a booking now.
    pub fn place_on_others(&mut self, failed: WorkerId) -> bool {
        drop(self.booking.take());
        if let Ok(booking) = self.service.place_without(&self.prepared, failed) {
            self.take_over(booking);
        }
        self.booking.is_some()
    }

    /// Chooses and books one worker of a role for prefill and decode together, among the instances that `is_able` names. Returns
    /// whether there is a booking now.
    ///
    /// A door calls it where a split has no usable prefill worker, or where the request cannot be split.
    pub fn place_whole(&mut self, role: Role, is_able: impl Fn(u64) -> bool) -> bool {
        drop(self.booking.take());
        if let Ok(booking) = self.service.place_whole(&self.prepared, role, is_able) {
            self.take_over(booking);
        }
        self.booking.is_some()
    }

    /// Books the worker that the client chose, so that the load on the worker is known. `None` stands for a choice that names no instance.
    pub fn book_client_choice(&mut self, worker: Option<WorkerId>) {
        self.service.count_abstention(Abstention::ClientPin);
        self.booking = worker.and_then(|worker| self.service.book(&self.prepared, worker));
    }

    /// The booking, while there is one.
    pub fn booking(&self) -> Option<&Booking> {
        self.booking.as_ref()
    }

    /// The booking, to report the progress of its legs.
    pub fn booking_mut(&mut self) -> Option<&mut Booking> {
        self.booking.as_mut()
    }

    /// Takes the booking out of the request. It is released when it is dropped.
    pub fn take_booking(&mut self) -> Option<Booking> {
        self.booking.take()
    }

    /// Seconds in the queue; `None` for a request that met no queue.
    pub fn waited_s(&self) -> Option<f64> {
        self.waited_s
    }

    /// Takes the request body with token ids in it, where they may be handed over, and counts the handover.
    pub fn take_spliced(&mut self) -> Option<[Bytes; 3]> {
        let spliced = self.prepared.prompt.spliced.take();
        if spliced.is_some() {
            self.service.metrics.handovers.inc();
        }
        spliced
    }

    /// Records that the door refused the request with this status of its protocol.
    pub fn refused(&self, status: u16) {
        self.trail.ended(ReceiptOutcome::refused(status));
    }

    /// Records that the door found no answer upstream and refused the request with this status of its protocol.
    pub fn unanswered(&self, status: u16) {
        self.refused(status);
        if let Some(shadow) = &self.shadow {
            shadow.failed();
        }
    }

    /// Records that the upstream answered with an error of this status.
    pub fn answered_with_error(&mut self, status: u16) {
        if let Some(booking) = &mut self.booking {
            booking.refuse();
        }
        if let Some(shadow) = &self.shadow {
            shadow.failed();
        }
        self.trail
            .ended(ReceiptOutcome::error(status, self.started.elapsed()));
    }

    /// Begins the answer, with a status of the door's protocol.
    pub fn answer(self, status: u16) -> Answer {
        Answer::new(self, status)
    }

    /// Keeps a booking and hands its explanation to the receipt.
    fn take_over(&mut self, mut booking: Booking) {
        self.trail.placed(&mut booking);
        self.booking = Some(booking);
    }
}
