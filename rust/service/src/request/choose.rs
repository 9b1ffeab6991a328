//! Decisions for a door that sends no request itself: choose without a booking, book a worker that was chosen before, book by hashes.
//!
//! The doors are the endpoint picker and the selection service. Their caller sends the request and
//! reports its progress itself.

use wardrop_core::{
    Candidate, Decision, Error, LocalHash, RouteRequest, SequenceHash, WorkerId, sequence_hashes,
};

use super::Prepared;
use super::place::Allowed;
use crate::pool::{Booking, Explanation, Leg};
use crate::prompt::{Abstention, Prompt};
use crate::service::Service;

/// A choice among the workers of a model that run whole requests.
pub struct Chosen {
    /// Chosen worker.
    pub worker: WorkerId,
    /// Leading blocks of the prompt that the worker holds.
    pub overlap_blocks: u32,
    /// Every candidate with its load, at the moment of the choice.
    pub candidates: Vec<Candidate>,
    /// The booking on the worker, where the door asked for one.
    pub booking: Option<Booking>,
}

impl Service {
    /// A prompt that is given by the local hashes of its full blocks. O(blocks).
    ///
    /// # Errors
    /// [`Abstention::UnknownModel`] for a name that is not registered, [`Abstention::Unparsable`] for more blocks than the tokens fill.
    pub fn prepare_hashes(
        &self,
        model: &str,
        hashes: Vec<LocalHash>,
        input_tokens: u32,
    ) -> Result<Prepared, Abstention> {
        let (model, _) = self.models.find(model).ok_or(Abstention::UnknownModel)?;
        let blocks = u64::from(input_tokens / model.spec.block_size);
        if hashes.len() as u64 > blocks {
            return Err(Abstention::Unparsable);
        }
        let sequence = sequence_hashes(&hashes);
        let prompt = Prompt::from_hashes(hashes, sequence, input_tokens);
        Ok(Prepared { model, prompt })
    }

    /// Chooses a worker at once and, with `is_booked`, books it in the same step. O(prompt blocks + workers).
    ///
    /// In a split, the choice is made among the workers of the first role. Every candidate is
    /// explained, which costs O(workers) more than a pinned request.
    ///
    /// # Errors
    /// Why no worker was chosen.
    pub fn choose(
        &self,
        prepared: &Prepared,
        allowed: Allowed<'_>,
        is_booked: bool,
    ) -> Result<Chosen, Abstention> {
        let pool = prepared.model.pool(prepared.model.roles()[0]);
        let mut booking = is_booked.then(|| Booking::new(self.next_request_id(), self.clock));
        let request = RouteRequest {
            request_id: booking.as_ref().map(Booking::id),
            local_hashes: &prepared.prompt.hashes,
            sequence_hashes: &prepared.prompt.sequence,
            input_tokens: prepared.prompt.input_tokens,
            expected_output_tokens: prepared.prompt.expected_output_tokens,
            allowed,
            explain: true,
            ..RouteRequest::default()
        };
        let now_s = self.clock.now_s();
        let decided = if is_booked {
            pool.route(&request, now_s, |_| {})
                .map(|placement| placement.decision)
        } else {
            pool.weigh(&request, now_s)
        };
        let Decision {
            worker,
            overlap_blocks,
            cost,
            misfit,
            candidates,
        } = match decided {
            Ok(decision) => decision,
            Err(Error::NoWorker { .. }) => return Err(Abstention::NoWorker),
            Err(_) => return Err(Abstention::RouterRefused),
        };
        if let Some(booking) = &mut booking {
            booking.add(Leg {
                pool: pool.clone(),
                worker,
                overlap_blocks,
                pin_rank: false,
                explanation: self.explains().then(|| {
                    Box::new(Explanation {
                        cost,
                        misfit,
                        candidates: candidates.clone(),
                        waited_s: 0.0,
                        cause: "at_once",
                        at_once: None,
                    })
                }),
                announced: self.announce(&prepared.prompt, booking.id(), (pool, worker), false),
            });
            let labels = [&*pool.model, pool.role.name()];
            self.metrics.decisions.with_label_values(&labels).inc();
        }
        Ok(Chosen {
            worker,
            overlap_blocks,
            candidates,
            booking,
        })
    }

    /// Books a worker that the caller names; `None` when the model has no such worker.
    ///
    /// The caller reports the first token itself, whether or not the answer is a stream.
    ///
    /// No policy is asked, and no decision is counted.
    pub fn book_on(&self, prepared: &Prepared, worker: WorkerId) -> Option<Booking> {
        self.book_as(prepared, worker, false)
    }
}

impl Prepared {
    /// Tokens of the prompt.
    pub fn input_tokens(&self) -> u32 {
        self.prompt.input_tokens
    }

    /// Tokens of a block.
    pub fn block_size(&self) -> u32 {
        self.model.spec.block_size
    }

    /// Sequence hashes of the full blocks.
    pub fn sequence_hashes(&self) -> &[SequenceHash] {
        &self.prompt.sequence
    }
}
