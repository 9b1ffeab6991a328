//! Selections and reservations on top of the routing service, without a protocol.
//!
//! ```text
//! http | grpc ─▶ Selector ─┬▶ Fleet: workers by instance
//!                          ├▶ wardrop_service: decision, booking
//!                          └▶ Reservations: bookings by the caller's id
//! ```
//!
//! O(1) beside the decision.

use std::sync::Arc;

use serde_json::Value;
use wardrop_core::{Candidate, WorkerId};
use wardrop_service::{Abstention, Booking, Prepared, ReservedTrail, Service, TraceStart};

use super::error::SelectError;
use super::fleet::Fleet;
use super::reservations::{Reservations, SelectLimits};
use super::selection::{PromptKey, Selection, Target};
use super::workers::pool_name;

/// Longest id of a selection, bytes.
const MAX_ID_BYTES: usize = 256;

/// What a caller says of itself beside its prompt: its span, and the call that it made.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// Header `traceparent`.
    pub traceparent: Option<&'a str>,
    /// Header `tracestate`.
    pub tracestate: Option<&'a str>,
    /// Path of the call.
    pub path: &'a str,
}

/// The selection service.
pub(crate) struct Selector {
    /// The routing service.
    service: Arc<Service>,
    /// Number that makes ids of this process differ from those of another process.
    nonce: u64,
    /// Workers that callers registered.
    pub fleet: Fleet,
    /// Reservations and selections.
    pub reservations: Reservations,
}

impl Selector {
    /// A selector without workers.
    pub fn new(service: Arc<Service>, limits: SelectLimits) -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            fleet: Fleet::new(service.clone()),
            service,
            nonce: since_1970.unwrap_or_default().as_nanos() as u64 ^ (u64::from(std::process::id()) << 40),
            reservations: Reservations::new(limits),
        }
    }

    /// Forgets a worker with its reservations and selections.
    ///
    /// # Errors
    /// An unknown worker.
    pub fn delete_worker(&self, worker_id: u64) -> Result<Value, SelectError> {
        let deleted = self.fleet.delete(worker_id)?;
        self.reservations.leave_worker(worker_id);
        Ok(deleted)
    }

    /// Chooses a worker and books nothing.
    ///
    /// # Errors
    /// No worker may be chosen, or the request is wrong.
    pub fn select(&self, id: Option<&str>, target: &Target) -> Result<Selection, SelectError> {
        id.map_or(Ok(()), check_id)?;
        let prepared = self.prepare(target)?;
        let (selection, _) = self.choose(target, &prepared, self.allowed(target).as_deref(), false)?;
        if let Some(id) = id {
            self.reservations.remember(id, &selection, prepared);
        }
        Ok(selection)
    }

    /// Chooses a worker and books it.
    ///
    /// # Errors
    /// The id is taken, no worker may be chosen, or the request is wrong.
    pub fn reserve(&self, id: &str, target: &Target, caller: &Caller<'_>) -> Result<Selection, SelectError> {
        check_id(id)?;
        self.reservations.check_free(id)?;
        let prepared = self.prepare(target)?;
        let trail = self.trail(&prepared, id, caller);
        let chosen = self.choose(target, &prepared, self.allowed(target).as_deref(), true);
        let (selection, booking) = match chosen {
            Ok(chosen) => chosen,
            Err(error) => return Err(error.written_down(trail)),
        };
        self.reservations.open(
            id,
            selection,
            booking.expect("a booked choice must have a booking"),
            trail,
        )
    }

    /// Books the choice of an earlier selection with this id.
    ///
    /// # Errors
    /// There is no such selection, or its worker left.
    pub fn reserve_selected(
        &self,
        id: &str,
        model: &str,
        group: &str,
        caller: &Caller<'_>,
    ) -> Result<Selection, SelectError> {
        self.reservations.check_free(id)?;
        let pending = self.reservations.take_pending(id, model, group);
        let pending = pending.ok_or_else(|| {
            SelectError::NotFound(format!(
                "no pending selection {id} for model={model} routing_group={group} (expired, already used, or never selected)"
            ))
        })?;
        let booking = self.service.book_on(&pending.prepared, pending.selection.worker);
        let booking =
            booking.ok_or_else(|| no_such_worker(pending.selection.worker.instance, model, group))?;
        let trail = self.trail(&pending.prepared, id, caller);
        self.reservations.open(id, pending.selection, booking, trail)
    }

    /// Books a worker that the caller names.
    ///
    /// # Errors
    /// The id is taken, the worker is not registered, or the request is wrong.
    pub fn reserve_on(
        &self,
        id: &str,
        target: &Target,
        worker: WorkerId,
        caller: &Caller<'_>,
    ) -> Result<Selection, SelectError> {
        check_id(id)?;
        self.reservations.check_free(id)?;
        let prepared = self.prepare(target)?;
        let unknown = || no_such_worker(worker.instance, &target.model, &target.group);
        let only = self.choose(target, &prepared, Some(&[worker]), false);
        let (selection, _) = only.map_err(|_| unknown())?;
        let booking = self.service.book_on(&prepared, worker).ok_or_else(unknown)?;
        self.reservations.forget_pending(id);
        let trail = self.trail(&prepared, id, caller);
        self.reservations.open(id, selection, booking, trail)
    }

    /// The reservation with this id, where it has the same prompt: the answer to a repeated call. A target without a prompt asks for the
    /// choice of an earlier selection.
    pub fn reserved(&self, id: &str, target: &Target) -> Option<Selection> {
        let open = self.reservations.selection(id)?;
        if !open.is_for(target) {
            return None;
        }
        if matches!(&target.prompt, PromptKey::Tokens(tokens) if tokens.is_empty()) {
            return Some(open);
        }
        let prepared = self.prepare(target).ok()?;
        let hashes = prepared.sequence_hashes().iter().map(|hash| hash.0);
        let is_same =
            prepared.input_tokens() == open.input_tokens && hashes.eq(open.sequence_hashes.iter().copied());
        is_same.then_some(open)
    }

    /// The load of every worker of a pool, and the overlap of a prompt with each.
    ///
    /// # Errors
    /// No worker may be chosen, or the request is wrong.
    pub fn candidates(&self, target: &Target) -> Result<(Prepared, Vec<Candidate>), SelectError> {
        let prepared = self.prepare(target)?;
        let allowed = self.allowed(target);
        let chosen = self.service.choose(&prepared, allowed.as_deref(), false);
        let mut candidates = chosen.map_err(|reason| refused(target, reason))?.candidates;
        candidates.sort_by_key(|candidate| candidate.worker);
        Ok((prepared, candidates))
    }

    /// An id that no other reservation of this process has.
    pub fn next_id(&self) -> String {
        format!("{:016x}-{:x}", self.nonce, self.service.next_request_number())
    }

    /// Opens what is written down about a reservation, where receipts, records or spans are on.
    fn trail(&self, prepared: &Prepared, id: &str, caller: &Caller<'_>) -> Option<ReservedTrail> {
        let trace = self.service.begin_trace(&TraceStart {
            traceparent: caller.traceparent,
            tracestate: caller.tracestate,
            method: "POST",
            path: caller.path,
        });
        self.service.open_trail(prepared, id, trace)
    }

    /// Hashes of the prompt for the pool of the target.
    fn prepare(&self, target: &Target) -> Result<Prepared, SelectError> {
        let pool = pool_name(&target.model, &target.group);
        let prepared = match &target.prompt {
            PromptKey::Tokens(tokens) => self.service.prepare_tokens(&pool, tokens, None),
            PromptKey::Hashes { hashes, input_tokens } => {
                self.service.prepare_hashes(&pool, hashes.clone(), *input_tokens)
            }
        };
        prepared.map_err(|reason| refused(target, reason))
    }

    /// Chooses among the allowed workers, and describes the choice for the caller.
    fn choose(
        &self,
        target: &Target,
        prepared: &Prepared,
        allowed: Option<&[WorkerId]>,
        is_booked: bool,
    ) -> Result<(Selection, Option<Booking>), SelectError> {
        let chosen = self.service.choose(prepared, allowed, is_booked);
        let chosen = chosen.map_err(|reason| refused(target, reason))?;
        let endpoint = self.fleet.endpoint(chosen.worker.instance);
        let block_size = prepared.block_size();
        let candidate = chosen
            .candidates
            .iter()
            .find(|candidate| candidate.worker == chosen.worker);
        let selection = Selection {
            model: target.model.clone(),
            group: target.group.clone(),
            worker: chosen.worker,
            endpoint: endpoint.unwrap_or_default(),
            block_size,
            cached_tokens: chosen.overlap_blocks.saturating_mul(block_size),
            input_tokens: prepared.input_tokens(),
            decode_blocks: candidate.map_or(0, |candidate| {
                let partial = !prepared.input_tokens().is_multiple_of(block_size);
                blocks_with(candidate, prepared) + u64::from(partial)
            }),
            sequence_hashes: prepared.sequence_hashes().iter().map(|hash| hash.0).collect(),
        };
        Ok((selection, chosen.booking))
    }

    /// Ranks that the caller allows; `None` allows all.
    fn allowed(&self, target: &Target) -> Option<Vec<WorkerId>> {
        Some(self.fleet.ranks(target.allowed.as_ref()?))
    }
}

/// Distinct blocks in flight on a worker with this prompt.
pub(crate) fn blocks_with(candidate: &Candidate, prepared: &Prepared) -> u64 {
    let blocks = prepared.sequence_hashes().len() as u64;
    candidate.decode_blocks + blocks.saturating_sub(u64::from(candidate.shared_blocks))
}

///
/// # Errors
/// [`SelectError::Invalid`] for an empty or long id.
fn check_id(id: &str) -> Result<(), SelectError> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        return Err(SelectError::Invalid(format!(
            "selection_id must have 1 to {MAX_ID_BYTES} bytes, got {}",
            id.len()
        )));
    }
    Ok(())
}

fn no_such_worker(worker_id: u64, model: &str, group: &str) -> SelectError {
    SelectError::NotFound(format!(
        "schedulable worker {worker_id} not found for model={model} routing_group={group}"
    ))
}

/// The caller's error for an abstention of the service: no other router could take the request.
fn refused(target: &Target, reason: Abstention) -> SelectError {
    let (model, group) = (&target.model, &target.group);
    match reason {
        Abstention::UnknownModel | Abstention::NoWorker => SelectError::NotReady(format!(
            "no schedulable workers for model={model} routing_group={group}"
        )),
        Abstention::RouterRefused => {
            SelectError::Full("the router refuses the request, for example at its limit of bookings".into())
        }
        Abstention::TooLong | Abstention::TooLarge => {
            SelectError::Invalid("the prompt has too many tokens".into())
        }
        _ => SelectError::Invalid("block_hashes: more blocks than isl_tokens fill".into()),
    }
}
