//! Bookings that other routers of the fleet made: load of a worker, and nothing else.
//!
//! Several routers in front of one fleet each see a part of the work in flight. A peer's booking closes the gap: it counts in
//! tokens, blocks, requests and seconds as a booking of this router does, so every price and queue sees it. It teaches no curve,
//! no trust and no regime, and it takes no place among the bookings of this router.
//!
//! The caller gives each booking an id that no request of this router has. O(blocks / 64) per call.

use super::Router;
use super::state::RouterState;
use crate::error::Error;
use crate::hash::LocalHash;
use crate::index::Prompt;
use crate::ledger::{NewBooking, Outcome, Work};
use crate::load::Placed;
use crate::request::{MAX_INPUT_TOKENS, RequestId};
use crate::trust::Claim;
use crate::worker::WorkerId;

/// A booking that another router made.
#[derive(Clone, Copy, Debug)]
pub struct PeerBooking<'a> {
    /// Worker of the booking.
    pub worker: WorkerId,
    /// What the worker has to do for the prompt, as the other router booked it.
    pub work: Work,
    /// Local hashes of the leading blocks of the prompt. They may be fewer than the blocks, or none.
    pub local_hashes: &'a [LocalHash],
    /// Blocks of the prompt beyond `local_hashes`.
    pub further_blocks: u32,
    /// Whether the answer comes in one piece. Its prefill then counts as over at the expected time.
    pub is_unstreamed: bool,
}

impl Router {
    /// Counts a booking of another router as load. It ends by [`Router::release_for_peer`], by the time to live of every booking, or
    /// with its worker.
    ///
    /// # Errors
    /// [`Error::UnknownWorker`], [`Error::RequestExists`], and [`Error::Parameter`] for figures beyond 2²⁷. Nothing changes then.
    pub fn book_for_peer(
        &self,
        request: RequestId,
        booking: &PeerBooking<'_>,
        now_s: f64,
    ) -> Result<(), Error> {
        let Work {
            new_tokens,
            cached_tokens,
        } = booking.work;
        let figures = [
            ("new_tokens", new_tokens),
            ("cached_tokens", cached_tokens),
            ("further_blocks", u64::from(booking.further_blocks)),
        ];
        for (field, got) in figures {
            if got > u64::from(MAX_INPUT_TOKENS) {
                return Err(Error::Parameter {
                    field,
                    got: got.to_string(),
                    expected: "at most 134,217,728",
                });
            }
        }
        let state = &mut *self.state();
        let slot = state.fleet.slot(booking.worker)?;
        let now_s = state.clock.read(now_s);
        state.expire(now_s);
        if state.load.contains(request) {
            return Err(Error::RequestExists(request));
        }
        let prompt = Prompt {
            locals: booking.local_hashes,
            sequence: &[],
        };
        let work = if state.config.tracks_prefill {
            booking.work
        } else {
            Work::default()
        };
        let expires_at_s = now_s + state.config.booking_ttl_s;
        let placed = Placed {
            slot,
            prefill_tokens: work.new_tokens,
            expires_at_s,
            claim: Claim::default(),
            further_blocks: u64::from(booking.further_blocks),
            is_of_peer: true,
        };
        state.load.book(request, placed, &prompt);
        state.predicted.insert(slot, &prompt, Some(request), now_s);
        state.ledger.book(&NewBooking {
            request,
            slot,
            work,
            kv_tokens: state.kv_tokens(slot),
            is_unstreamed: booking.is_unstreamed,
            is_unsure: false,
            is_of_peer: true,
            now_s,
            expires_at_s,
        });
        Ok(())
    }

    /// The first token of a peer's booking came. A booking that ended is ignored.
    pub fn prefill_done_for_peer(&self, request: RequestId, now_s: f64) {
        let state = &mut *self.state();
        let now_s = state.clock.read(now_s);
        if state.load.prefill_done(request).is_some() {
            state.room_changes.prefills += 1;
            state.ledger.prefill_done(request, now_s);
            state.predicted.first_token(request, now_s);
        }
    }

    /// A peer's booking ended. A booking that ended before is ignored.
    pub fn release_for_peer(&self, request: RequestId, now_s: f64) {
        let state = &mut *self.state();
        let now_s = state.clock.read(now_s);
        let Some(slot) = state.load.release(request) else {
            return;
        };
        let RouterState {
            ledger, room_changes, ..
        } = state;
        room_changes.prefills += u64::from(ledger.is_prefilling(request));
        room_changes.releases += 1;
        let kv_tokens = state.kv_tokens(slot);
        state
            .ledger
            .release(request, kv_tokens, Outcome::default(), now_s);
        state.predicted.finished(request, now_s);
    }

    /// Open bookings that other routers made.
    pub fn peer_bookings(&self) -> usize {
        self.state().load.of_peers()
    }

    /// What a booked request was expected to compute and to find cached; `None` when it is not booked. O(1).
    pub fn booked_work(&self, request: RequestId) -> Option<Work> {
        self.state().ledger.booked_work(request)
    }
}
