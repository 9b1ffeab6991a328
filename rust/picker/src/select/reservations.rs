//! Reservations and selections by the caller's id, and their ends.
//!
//! A reservation is a booking that lives between two calls. It ends with [`Reservations::free`], or by itself after its time. A
//! selection without a reservation is kept for a while, so that a later call can book the same choice. O(1) per call.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wardrop_service::{Booking, Prepared, ReservedTrail, Usage};

use super::error::SelectError;
use super::selection::Selection;

/// Limits on what callers may leave behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SelectLimits {
    /// Open reservations.
    pub reservations: usize,
    /// Life of a reservation that its caller does not free or renew.
    pub reservation_ttl: Duration,
    /// Selections that wait for a reservation.
    pub selections: usize,
    /// Bytes of the selections that wait for a reservation.
    pub selection_bytes: usize,
    /// Life of a selection without a reservation.
    pub selection_ttl: Duration,
}

/// A reservation.
struct Open {
    /// The choice.
    selection: Selection,
    /// Load of the request on its worker; dropping it ends the load.
    booking: Booking,
    /// What is written down about the request, where something is.
    trail: Option<ReservedTrail>,
    /// Time of the booking, from which TTFT counts.
    begun: Instant,
    /// Time at which the reservation ends by itself.
    expires: Instant,
}

/// A selection that waits for its reservation.
pub(crate) struct Pending {
    /// The choice.
    pub selection: Selection,
    /// The prompt of the choice, for the booking.
    pub prepared: Prepared,
    /// Time after which the selection cannot be reserved any more.
    expires: Instant,
    /// Number of the selection. A later selection under the same id has another number.
    number: u64,
}

/// Reservations and selections behind the lock.
#[derive(Default)]
struct State {
    /// Open reservations by id, at most [`SelectLimits::reservations`].
    open: HashMap<String, Open>,
    /// Pending selections by id, within their limits of count and bytes.
    pending: HashMap<String, Pending>,
    /// Pending selections, the oldest first. An entry whose number differs from that of the pending selection is stale.
    order: VecDeque<(String, u64)>,
    /// Sum of [`Selection::bytes`] over `pending`.
    pending_bytes: usize,
    /// Number of the last selection.
    number: u64,
}

/// All reservations and pending selections.
pub(crate) struct Reservations {
    /// Limits from the configuration.
    limits: SelectLimits,
    state: Mutex<State>,
}

impl Reservations {
    /// No reservations, within `limits`.
    pub fn new(limits: SelectLimits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
        }
    }

    /// Refuses an id under which a reservation is open.
    ///
    /// # Errors
    /// The id is taken.
    pub fn check_free(&self, id: &str) -> Result<(), SelectError> {
        if self.state.lock().open.contains_key(id) {
            return Err(taken(id));
        }
        Ok(())
    }

    /// Opens a reservation and returns its selection. `trail` takes over why the worker was chosen.
    ///
    /// # Errors
    /// The limit of reservations, or an id that is taken.
    pub fn open(
        &self,
        id: &str,
        selection: Selection,
        mut booking: Booking,
        mut trail: Option<ReservedTrail>,
    ) -> Result<Selection, SelectError> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.open.len() >= self.limits.reservations {
            let full = SelectError::Full(format!(
                "{} reservations are open, the limit",
                self.limits.reservations
            ));
            return Err(full.written_down(trail));
        }
        // Another call with the same id may have opened its reservation since the first check.
        if state.open.contains_key(id) {
            return Err(taken(id).written_down(trail));
        }
        if let Some(trail) = &mut trail {
            trail.placed(&mut booking, selection.cached_tokens);
        }
        let open = Open {
            selection: selection.clone(),
            booking,
            trail,
            begun: now,
            expires: now + self.limits.reservation_ttl,
        };
        state.open.insert(id.to_owned(), open);
        Ok(selection)
    }

    /// Keeps a selection until its reservation.
    pub fn remember(&self, id: &str, selection: &Selection, prepared: Prepared) {
        let mut state = self.state.lock();
        state.forget_pending(id);
        state.number += 1;
        let number = state.number;
        state.pending_bytes += selection.bytes();
        let pending = Pending {
            selection: selection.clone(),
            prepared,
            expires: Instant::now() + self.limits.selection_ttl,
            number,
        };
        state.pending.insert(id.to_owned(), pending);
        state.order.push_back((id.to_owned(), number));
        // The oldest selections make room: their callers get `not found` and select again.
        while state.pending.len() > self.limits.selections
            || state.pending_bytes > self.limits.selection_bytes
            || state.order.len() > 2 * self.limits.selections + 16
        {
            let Some((oldest, number)) = state.order.pop_front() else {
                break;
            };
            if state
                .pending
                .get(&oldest)
                .is_some_and(|pending| pending.number == number)
            {
                state.forget_pending(&oldest);
            }
        }
    }

    /// Takes the selection with this id, where it is still valid and of this model and group.
    pub fn take_pending(&self, id: &str, model: &str, group: &str) -> Option<Pending> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let found = state.pending.get(id).is_some_and(|pending| {
            pending.expires > now && pending.selection.model == model && pending.selection.group == group
        });
        found.then(|| state.forget_pending(id)).flatten()
    }

    /// Drops the selection with this id, where there is one.
    pub fn forget_pending(&self, id: &str) {
        self.state.lock().forget_pending(id);
    }

    /// The selection of the reservation with this id.
    pub fn selection(&self, id: &str) -> Option<Selection> {
        Some(self.state.lock().open.get(id)?.selection.clone())
    }

    /// Records the first token of a reservation's request. A second call changes nothing.
    ///
    /// # Errors
    /// There is no such reservation.
    pub fn prefill_complete(&self, id: &str) -> Result<(), SelectError> {
        let mut state = self.state.lock();
        let open = state.open.get_mut(id).ok_or_else(|| unknown_reservation(id))?;
        let ttft_s = open.begun.elapsed().as_secs_f64();
        open.booking.prefill_done(ttft_s);
        if let Some(trail) = &mut open.trail {
            trail.first_token();
        }
        Ok(())
    }

    /// Prolongs the life of a reservation, because its request still runs.
    ///
    /// # Errors
    /// There is no such reservation.
    pub fn renew(&self, id: &str) -> Result<(), SelectError> {
        let mut state = self.state.lock();
        let open = state.open.get_mut(id).ok_or_else(|| unknown_reservation(id))?;
        open.expires = Instant::now() + self.limits.reservation_ttl;
        open.booking.renew();
        Ok(())
    }

    /// Ends a reservation.
    ///
    /// The caller's counts teach the worker's curves and the trust in its index.
    ///
    /// # Errors
    /// There is no such reservation.
    pub fn free(&self, id: &str, usage: Usage) -> Result<(), SelectError> {
        let open = self.state.lock().open.remove(id);
        let mut open = open.ok_or_else(|| unknown_reservation(id))?;
        open.booking.set_usage(usage);
        if let Some(trail) = open.trail.take() {
            trail.freed(usage);
        }
        Ok(())
    }

    /// Ends reservations and selections that are over their time. Returns the number of ended reservations.
    pub fn sweep(&self, now: Instant) -> usize {
        let mut state = self.state.lock();
        let before = state.open.len();
        state.open.retain(|_, open| open.expires > now);
        let expired = before - state.open.len();
        while let Some((id, number)) = state.order.front().cloned() {
            let is_stale = state
                .pending
                .get(&id)
                .is_none_or(|pending| pending.number != number);
            if !is_stale && state.pending[&id].expires > now {
                break;
            }
            state.order.pop_front();
            if !is_stale {
                state.forget_pending(&id);
            }
        }
        expired
    }

    /// Open reservations, and selections that wait for one.
    pub fn sizes(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.open.len(), state.pending.len())
    }

    /// Ends the reservations and selections of a worker.
    pub fn leave_worker(&self, worker_id: u64) {
        let mut state = self.state.lock();
        state
            .open
            .retain(|_, open| open.selection.worker.instance != worker_id);
        let gone: Vec<String> = state
            .pending
            .iter()
            .filter(|(_, pending)| pending.selection.worker.instance == worker_id)
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            state.forget_pending(&id);
        }
    }
}

impl State {
    /// Removes a selection and its bytes from the sum.
    fn forget_pending(&mut self, id: &str) -> Option<Pending> {
        let pending = self.pending.remove(id)?;
        self.pending_bytes = self.pending_bytes.saturating_sub(pending.selection.bytes());
        Some(pending)
    }
}

fn unknown_reservation(id: &str) -> SelectError {
    SelectError::NotFound(format!("reservation {id} not found"))
}

fn taken(id: &str) -> SelectError {
    SelectError::Conflict(format!("selection {id} is already reserved or being reserved"))
}
