//! Selections and reservations on top of the routing service, without a protocol.
//!
//! A reservation is a booking that lives between two calls. It ends with [`Selector::free`], or by itself after its time. A selection
//! without a reservation is kept for a while, so that a later call can book the same choice. O(1) beside the decision.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use wardrop_core::{Candidate, LocalHash, WorkerId};
use wardrop_service::{Abstention, Booking, Prepared, Service, ServiceError, Usage};

use super::error::SelectError;
use super::workers::{WorkerRecord, pool_name};

/// Most workers.
const MAX_WORKERS: usize = 16_384;
/// Longest id of a selection, bytes.
const MAX_ID_BYTES: usize = 256;

/// Limits on what callers may leave behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SelectLimits {
    /// Open reservations.
    pub reservations: usize,
    /// Life of a reservation that nobody frees.
    pub reservation_ttl: Duration,
    /// Selections that wait for a reservation.
    pub selections: usize,
    /// Bytes of these selections.
    pub selection_bytes: usize,
    /// Life of a selection without a reservation.
    pub selection_ttl: Duration,
}

/// A prompt of a caller.
pub(crate) enum PromptKey {
    /// Token ids.
    Tokens(Vec<u32>),
    /// Local hashes of the full blocks, and the tokens of the whole prompt.
    Hashes {
        hashes: Vec<LocalHash>,
        input_tokens: u32,
    },
}

/// What a caller asks for.
pub(crate) struct Target {
    /// Name of the model.
    pub model: String,
    /// Group of the workers.
    pub group: String,
    /// The prompt.
    pub prompt: PromptKey,
    /// Instances that may be chosen; `None` allows all.
    pub allowed: Option<Vec<u64>>,
}

/// A chosen worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selection {
    /// Name of the model.
    pub model: String,
    /// Group of the workers.
    pub group: String,
    /// Chosen worker.
    pub worker: WorkerId,
    /// Address that the caller registered.
    pub endpoint: String,
    /// Tokens of a block.
    pub block_size: u32,
    /// Leading tokens that the worker should hold.
    pub cached_tokens: u32,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Blocks in flight on the worker with this prompt.
    pub decode_blocks: u64,
    /// Sequence hashes of the full blocks.
    pub sequence_hashes: Arc<[u64]>,
}

impl Selection {
    /// Tokens that the worker has to compute.
    pub fn prefill_tokens(&self) -> u32 {
        self.input_tokens.saturating_sub(self.cached_tokens)
    }

    fn is_for(&self, target: &Target) -> bool {
        (&self.model, &self.group) == (&target.model, &target.group)
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.sequence_hashes.len() * 12 + self.model.len() + self.endpoint.len()
    }
}

struct Open {
    selection: Selection,
    booking: Booking,
    begun: Instant,
    expires: Instant,
}

struct Pending {
    selection: Selection,
    prepared: Prepared,
    expires: Instant,
    number: u64,
}

#[derive(Default)]
struct State {
    workers: BTreeMap<u64, WorkerRecord>,
    open: HashMap<String, Open>,
    pending: HashMap<String, Pending>,
    /// Pending selections, the oldest first. An entry whose number differs is stale.
    order: VecDeque<(String, u64)>,
    pending_bytes: usize,
    number: u64,
}

/// The selection service.
pub(crate) struct Selector {
    service: Arc<Service>,
    limits: SelectLimits,
    /// Makes ids of this process unlike those of another.
    nonce: u64,
    state: Mutex<State>,
}

impl Selector {
    /// A selector without workers.
    pub fn new(service: Arc<Service>, limits: SelectLimits) -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            service,
            limits,
            nonce: since_1970.unwrap_or_default().as_nanos() as u64 ^ (u64::from(std::process::id()) << 40),
            state: Mutex::default(),
        }
    }

    /// Registers a worker, or changes a registered one.
    ///
    /// # Errors
    /// A record that the routing service refuses.
    pub fn upsert_worker(&self, record: WorkerRecord) -> Result<Value, SelectError> {
        let mut state = self.state.lock();
        let old = state.workers.get(&record.worker_id).cloned();
        if old.is_none() && state.workers.len() >= MAX_WORKERS {
            return Err(SelectError::Full(format!(
                "{MAX_WORKERS} workers are registered, the limit"
            )));
        }
        let others = state
            .workers
            .values()
            .filter(|other| other.worker_id != record.worker_id && other.pool() == record.pool());
        let mut sizes = others.filter_map(|other| other.block_size);
        let other = sizes.find(|size| record.block_size.is_some_and(|own| own != *size));
        if let Some(size) = other {
            return Err(SelectError::Invalid(format!(
                "block_size: got {}, expected {size} as the other workers of model={} routing_group={}",
                record.block_size.unwrap_or(0),
                record.model_name,
                record.routing_group
            )));
        }
        if let Some(old) = old.filter(|old| old.pool() != record.pool() || !record.reasons().is_empty()) {
            let _ = self
                .service
                .remove_worker(&old.pool(), "aggregated", old.worker_id);
        }
        if record.reasons().is_empty() {
            let model = serde_json::json!({"name": record.pool(), "block_size": record.block_size});
            self.service
                .upsert_model(&model.to_string())
                .map_err(|error| invalid(&error))?;
            self.service
                .upsert_worker(&record.worker_json())
                .map_err(|error| invalid(&error))?;
        }
        let shown = record.to_json(false);
        let feeds = if record.reasons().is_empty() {
            record.feeds()
        } else {
            Vec::new()
        };
        if let Some(old) = state.workers.insert(record.worker_id, record) {
            self.leave_feeds(&old, &feeds);
        }
        for (_, feed) in &feeds {
            self.service.subscribe(feed).map_err(|error| invalid(&error))?;
        }
        Ok(shown)
    }

    /// Changes fields of a registered worker.
    ///
    /// # Errors
    /// An unknown worker, or a field that can not be changed so.
    pub fn patch_worker(&self, worker_id: u64, patch: Value) -> Result<Value, SelectError> {
        let record = self.state.lock().workers.get(&worker_id).cloned();
        let record = record.ok_or_else(|| unknown_worker(worker_id))?;
        self.upsert_worker(record.patched(patch)?)
    }

    /// Forgets a worker with its reservations and selections.
    ///
    /// # Errors
    /// An unknown worker.
    pub fn delete_worker(&self, worker_id: u64) -> Result<Value, SelectError> {
        let mut state = self.state.lock();
        let record = state.workers.remove(&worker_id);
        let record = record.ok_or_else(|| unknown_worker(worker_id))?;
        let is_last = !state.workers.values().any(|other| other.pool() == record.pool());
        state
            .open
            .retain(|_, open| open.selection.worker.instance != worker_id);
        state
            .pending
            .retain(|_, pending| pending.selection.worker.instance != worker_id);
        self.leave_feeds(&record, &[]);
        let _ = self
            .service
            .remove_worker(&record.pool(), "aggregated", worker_id);
        if is_last {
            self.service.remove_model(&record.pool());
        }
        Ok(record.to_json(true))
    }

    /// Registered workers as callers see them.
    pub fn list_workers(&self, model: Option<&str>, group: Option<&str>) -> Vec<Value> {
        self.records(model, group)
            .iter()
            .map(|record| record.to_json(false))
            .collect()
    }

    /// Registered workers.
    pub fn records(&self, model: Option<&str>, group: Option<&str>) -> Vec<WorkerRecord> {
        let state = self.state.lock();
        let wanted = state.workers.values().filter(|record| {
            model.is_none_or(|name| name == record.model_name)
                && group.is_none_or(|name| name == record.routing_group)
        });
        wanted.cloned().collect()
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
            self.remember(id, &selection, prepared);
        }
        Ok(selection)
    }

    /// Chooses a worker and books it.
    ///
    /// # Errors
    /// The id is taken, no worker may be chosen, or the request is wrong.
    pub fn reserve(&self, id: &str, target: &Target) -> Result<Selection, SelectError> {
        check_id(id)?;
        self.check_free(id)?;
        let prepared = self.prepare(target)?;
        let (selection, booking) = self.choose(target, &prepared, self.allowed(target).as_deref(), true)?;
        self.open(
            id,
            selection,
            booking.expect("a booked choice must have a booking"),
        )
    }

    /// Books the choice of an earlier selection with this id.
    ///
    /// # Errors
    /// There is no such selection, or its worker left.
    pub fn reserve_selected(&self, id: &str, model: &str, group: &str) -> Result<Selection, SelectError> {
        self.check_free(id)?;
        let now = Instant::now();
        let pending = {
            let mut state = self.state.lock();
            let found = state.pending.get(id).is_some_and(|pending| {
                pending.expires > now && pending.selection.model == model && pending.selection.group == group
            });
            found.then(|| state.forget_pending(id)).flatten()
        };
        let pending = pending.ok_or_else(|| {
            SelectError::NotFound(format!(
                "no pending selection {id} for model={model} routing_group={group} (expired, already used, or never selected)"
            ))
        })?;
        let booking = self.service.book_on(&pending.prepared, pending.selection.worker);
        let booking =
            booking.ok_or_else(|| no_such_worker(pending.selection.worker.instance, model, group))?;
        self.open(id, pending.selection, booking)
    }

    /// Books a worker that the caller names.
    ///
    /// # Errors
    /// The id is taken, the worker is not registered, or the request is wrong.
    pub fn reserve_on(&self, id: &str, target: &Target, worker: WorkerId) -> Result<Selection, SelectError> {
        check_id(id)?;
        self.check_free(id)?;
        let prepared = self.prepare(target)?;
        let unknown = || no_such_worker(worker.instance, &target.model, &target.group);
        let only = self.choose(target, &prepared, Some(&[worker]), false);
        let (selection, _) = only.map_err(|_| unknown())?;
        let booking = self.service.book_on(&prepared, worker).ok_or_else(unknown)?;
        self.state.lock().forget_pending(id);
        self.open(id, selection, booking)
    }

    /// The reservation with this id, where it is of the same prompt: the answer to a call that is sent again. A target without a prompt
    /// asks for the choice of an earlier selection.
    pub fn reserved(&self, id: &str, target: &Target) -> Option<Selection> {
        let open = self.state.lock().open.get(id)?.selection.clone();
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

    /// The first token of a reservation is there. A second call changes nothing.
    ///
    /// # Errors
    /// There is no such reservation.
    pub fn prefill_complete(&self, id: &str) -> Result<(), SelectError> {
        let mut state = self.state.lock();
        let open = state.open.get_mut(id).ok_or_else(|| unknown_reservation(id))?;
        let ttft_s = open.begun.elapsed().as_secs_f64();
        open.booking.prefill_done(ttft_s);
        Ok(())
    }

    /// The request of a reservation goes on: the reservation lives on.
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
    /// # Errors
    /// There is no such reservation.
    pub fn free(&self, id: &str, usage: Usage) -> Result<(), SelectError> {
        let open = self.state.lock().open.remove(id);
        let mut open = open.ok_or_else(|| unknown_reservation(id))?;
        open.booking.set_usage(usage);
        Ok(())
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

    /// Ends what is over its time. Returns the number of reservations that ended so.
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

    /// An id that no other reservation of this process has.
    pub fn next_id(&self) -> String {
        format!("{:016x}-{:x}", self.nonce, self.service.next_request_number())
    }

    /// Open reservations, and selections that wait for one.
    pub fn sizes(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.open.len(), state.pending.len())
    }

    /// Leaves the feeds of a worker that are not among `kept`.
    fn leave_feeds(&self, worker: &WorkerRecord, kept: &[(u64, String)]) {
        for feed in worker.feeds().iter().filter(|feed| !kept.contains(feed)) {
            self.service.unsubscribe(feed.0);
        }
    }

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

    fn choose(
        &self,
        target: &Target,
        prepared: &Prepared,
        allowed: Option<&[WorkerId]>,
        is_booked: bool,
    ) -> Result<(Selection, Option<Booking>), SelectError> {
        let chosen = self.service.choose(prepared, allowed, is_booked);
        let chosen = chosen.map_err(|reason| refused(target, reason))?;
        let endpoint = {
            let state = self.state.lock();
            let record = state.workers.get(&chosen.worker.instance);
            record.and_then(|record| record.endpoint.clone())
        };
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

    fn allowed(&self, target: &Target) -> Option<Vec<WorkerId>> {
        let instances = target.allowed.as_ref()?;
        let state = self.state.lock();
        let records = instances.iter().filter_map(|id| state.workers.get(id));
        let ranks = records.flat_map(|record| {
            let start = record.data_parallel_start_rank.unwrap_or(0);
            let end = start.saturating_add(record.data_parallel_size.unwrap_or(1));
            (start..end).map(|rank| WorkerId::new(record.worker_id, rank))
        });
        Some(ranks.collect())
    }

    fn check_free(&self, id: &str) -> Result<(), SelectError> {
        if self.state.lock().open.contains_key(id) {
            return Err(SelectError::Conflict(format!(
                "selection {id} is already reserved or being reserved"
            )));
        }
        Ok(())
    }

    fn open(&self, id: &str, selection: Selection, booking: Booking) -> Result<Selection, SelectError> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.open.len() >= self.limits.reservations {
            return Err(SelectError::Full(format!(
                "{} reservations are open, the limit",
                self.limits.reservations
            )));
        }
        // Two calls with one id: the second finds the first.
        if state.open.contains_key(id) {
            return Err(SelectError::Conflict(format!(
                "selection {id} is already reserved or being reserved"
            )));
        }
        let open = Open {
            selection: selection.clone(),
            booking,
            begun: now,
            expires: now + self.limits.reservation_ttl,
        };
        state.open.insert(id.to_owned(), open);
        Ok(selection)
    }

    fn remember(&self, id: &str, selection: &Selection, prepared: Prepared) {
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
}

impl State {
    fn forget_pending(&mut self, id: &str) -> Option<Pending> {
        let pending = self.pending.remove(id)?;
        self.pending_bytes = self.pending_bytes.saturating_sub(pending.selection.bytes());
        Some(pending)
    }
}

/// Distinct blocks in flight on a worker with this prompt.
pub(crate) fn blocks_with(candidate: &Candidate, prepared: &Prepared) -> u64 {
    let blocks = prepared.sequence_hashes().len() as u64;
    candidate.decode_blocks + blocks.saturating_sub(u64::from(candidate.shared_blocks))
}

fn check_id(id: &str) -> Result<(), SelectError> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        return Err(SelectError::Invalid(format!(
            "selection_id must have 1 to {MAX_ID_BYTES} bytes, got {}",
            id.len()
        )));
    }
    Ok(())
}

fn invalid(error: &ServiceError) -> SelectError {
    SelectError::Invalid(error.to_string())
}

fn unknown_worker(worker_id: u64) -> SelectError {
    SelectError::NotFound(format!("worker {worker_id} not found"))
}

fn unknown_reservation(id: &str) -> SelectError {
    SelectError::NotFound(format!("reservation {id} not found"))
}

fn no_such_worker(worker_id: u64, model: &str, group: &str) -> SelectError {
    SelectError::NotFound(format!(
        "schedulable worker {worker_id} not found for model={model} routing_group={group}"
    ))
}

fn refused(target: &Target, reason: Abstention) -> SelectError {
    let (model, group) = (&target.model, &target.group);
    match reason {
        Abstention::UnknownModel | Abstention::NoWorker => SelectError::NotReady(format!(
            "no schedulable workers for model={model} routing_group={group}"
        )),
        Abstention::RouterRefused => {
            SelectError::Full("the router refuses the request, for example at its limit of bookings".into())
        }
        Abstention::TooLong => SelectError::Invalid("the prompt has too many tokens".into()),
        _ => SelectError::Invalid("block_hashes: more blocks than isl_tokens fill".into()),
    }
}
