//! Bookings of peers in a pool: load of its workers, and nothing else.

use wardrop_core::ledger::Work;
use wardrop_core::{Error, PeerBooking, RequestId};

use super::WorkerPool;

#[cfg_attr(
    not(feature = "peers"),
    allow(dead_code, reason = "a router without peers hears of no booking")
)]
impl WorkerPool {
    /// Counts a booking of a peer as load.
    ///
    /// # Errors
    /// The router does not know the worker, or refuses the figures.
    pub(crate) fn book_for_peer(
        &self,
        request: RequestId,
        booking: &PeerBooking<'_>,
        now_s: f64,
    ) -> Result<(), Error> {
        self.router.book_for_peer(request, booking, now_s)
    }

    /// The first token of a peer's booking came, so its worker may have room for a request of the queue.
    pub(crate) fn prefill_done_for_peer(&self, request: RequestId, now_s: f64) {
        let mut state = self.lock();
        state.router.prefill_done_for_peer(request, now_s);
        state.pump(now_s);
        self.unlock(state);
    }

    /// A peer's booking ended.
    pub(crate) fn release_for_peer(&self, request: RequestId, now_s: f64) {
        let mut state = self.lock();
        state.router.release_for_peer(request, now_s);
        state.pump(now_s);
        self.unlock(state);
    }

    /// What a booked request was expected to compute and to find cached; nothing for one that is not booked.
    pub(crate) fn booked_work(&self, request: RequestId) -> Work {
        self.router.booked_work(request).unwrap_or_default()
    }
}
