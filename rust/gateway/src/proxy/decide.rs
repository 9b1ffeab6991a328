//! From a prepared prompt to claims on workers and the pins that say so to Dynamo.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hyper::HeaderMap;
use hyper::http::request::Parts;
use std::fmt::Write as _;
use wardrop_core::queue::{Cause, Limit, QueuedRequest, Tenant};
use wardrop_core::{Error, RequestId, RouteRequest, Stage, WorkerId};

use super::intake;
use super::server::Shared;
use super::tenants::Tenants;
use crate::error::Refusal;
use crate::fleet::{Booking, Leg, Model, NoWait, Role, WorkerPool};
use crate::prompt::{Abstention, Prepared};
use crate::receipts::Why;

/// Chooses and books the workers of a request.
pub fn decide(shared: &Shared, prepared: &Prepared) -> Result<Booking, Abstention> {
    let id = RequestId(shared.next_request.fetch_add(1, Ordering::Relaxed));
    let model = &prepared.model;
    let legs = if model.is_split() {
        let prefill = place(shared, prepared, model, Role::Prefill, id)?;
        // From here on the prefill claim ends with this booking, also when decode finds no worker.
        let mut booking = Booking::new(id, [Some(prefill), None], shared.clock);
        let decode = place(shared, prepared, model, Role::Decode, id)?;
        // The prompt is processed elsewhere: on a decode worker it is no load that waits for a first token.
        decode.pool.prefill_done(id, shared.now_s());
        booking.add_second(decode);
        booking
    } else {
        let only = place(shared, prepared, model, Role::Aggregated, id)?;
        Booking::new(id, [Some(only), None], shared.clock)
    };
    count(shared, &legs);
    Ok(legs)
}

/// Why there is no booking.
pub enum Undecided {
    /// Dynamo shall route.
    Abstain(Abstention),
    /// The client shall come back later.
    Refuse(Refusal),
}

/// What the headers of a request say about its place in the queue.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    tenant: Tenant,
    weight: f64,
    priority: i32,
    deadline_ms: Option<u64>,
}

const PRIORITY_LIMIT: i32 = 10;

impl Standing {
    /// Reads the tenant and, where clients may give them, priority (−10 to 10) and deadline.
    pub fn from_headers(headers: &HeaderMap, tenants: &Tenants, hints: bool) -> Self {
        let text = |name: &str| headers.get(name).filter(|_| hints)?.to_str().ok();
        let (tenant, weight) = tenants.of(headers);
        let priority: i32 = text("x-wardrop-priority")
            .and_then(|p| p.trim().parse().ok())
            .unwrap_or(0);
        Self {
            tenant,
            weight,
            priority: priority.clamp(-PRIORITY_LIMIT, PRIORITY_LIMIT),
            deadline_ms: text("x-wardrop-deadline-ms").and_then(|ms| ms.trim().parse().ok()),
        }
    }
}

/// As [`decide`], but where a pool has a queue the request waits there until its worker has room; in a split for a prefill
/// worker first, then for a decode worker. With the booking come the seconds that it waited.
pub async fn decide_late(
    shared: &Shared,
    prepared: &Prepared,
    standing: Standing,
    body_bytes: usize,
) -> Result<(Booking, Option<f64>), Undecided> {
    let model = &prepared.model;
    let is_split = model.is_split();
    let first = if is_split { Role::Prefill } else { Role::Aggregated };
    if model.pool(first).longest_wait_s().is_none() || model.pool(first).size() == 0 {
        let booking = decide(shared, prepared).map_err(Undecided::Abstain)?;
        return Ok((booking, None));
    }
    let id = RequestId(shared.next_request.fetch_add(1, Ordering::Relaxed));
    let deadline_s = standing.deadline_ms.map(|ms| shared.now_s() + ms as f64 / 1e3);
    let request = QueuedRequest {
        expected_output_tokens: prepared.expected_output_tokens,
        bytes: body_bytes as u64 + 8 * prepared.hashes.len() as u64,
        tenant: standing.tenant,
        weight: standing.weight,
        in_one_piece: !prepared.is_streamed,
        explain: shared.receipts.is_on(),
        priority: standing.priority,
        deadline_s,
        ..QueuedRequest::new(id, prepared.hashes.as_slice().into(), prepared.input_tokens)
    };
    let (leg, mut waited_s) = late_leg(shared, prepared, first, request.clone()).await?;
    let mut booking = Booking::new(id, [Some(leg), None], shared.clock);
    if is_split {
        let (leg, longer_s) = late_leg(shared, prepared, Role::Decode, request).await?;
        // The prompt is processed elsewhere: on a decode worker it is no load that waits for a first token.
        leg.pool.prefill_done(id, shared.now_s());
        booking.add_second(leg);
        waited_s += longer_s;
    }
    count(shared, &booking);
    Ok((booking, Some(waited_s)))
}

/// Waits for a worker of one pool and books it; with the seconds waited.
async fn late_leg(
    shared: &Shared,
    prepared: &Prepared,
    role: Role,
    request: QueuedRequest,
) -> Result<(Leg, f64), Undecided> {
    let model = &prepared.model;
    let pool = model.pool(role);
    let id = request.id;
    let wait = match pool.wait(request, shared.clock) {
        Ok(wait) => wait,
        Err(NoWait::Refused { limit, retry_after_s }) => {
            return Err(refused(shared, pool, limit, retry_after_s));
        }
        Err(NoWait::NoWorker) => return Err(Undecided::Abstain(Abstention::NoWorker)),
        Err(NoWait::RouterRefused) => return Err(Undecided::Abstain(Abstention::RouterRefused)),
        // Taken away a moment ago.
        Err(NoWait::Off) => {
            let leg = place(shared, prepared, model, role, id).map_err(Undecided::Abstain)?;
            return Ok((leg, 0.0));
        }
    };
    // The queue places everybody in time while a worker is there; without one, Dynamo shall say so.
    let longest = Duration::from_secs_f64(pool.longest_wait_s().unwrap_or(0.0) + 1.0);
    let dispatch = match tokio::time::timeout(longest, wait.placed()).await {
        Ok(Some(Ok(dispatch))) => dispatch,
        Ok(Some(Err(NoWait::Refused { limit, retry_after_s }))) => {
            return Err(refused(shared, pool, limit, retry_after_s));
        }
        _ => return Err(Undecided::Abstain(Abstention::NoWorker)),
    };
    let labels = [&*pool.model, pool.role.name()];
    let metrics = &shared.metrics;
    metrics
        .queue_time
        .with_label_values(&labels)
        .observe(dispatch.waited_s);
    let reason = match dispatch.cause {
        Cause::Room => "room",
        Cause::Overflow => "overflow",
        Cause::Age => "age",
    };
    metrics
        .queue_placed
        .with_label_values(&[labels[0], labels[1], reason])
        .inc();
    let leg = Leg {
        pool: pool.clone(),
        worker: dispatch.worker,
        overlap_blocks: dispatch.overlap_blocks,
        pin_rank: pool.has_several_ranks(dispatch.worker),
        why: shared.receipts.is_on().then(|| {
            Box::new(Why {
                cost: dispatch.cost,
                candidates: dispatch.candidates,
                waited_s: dispatch.waited_s,
                cause: reason,
            })
        }),
    };
    Ok((leg, dispatch.waited_s))
}

/// Counts a refusal of the queue, and says when to come back.
fn refused(shared: &Shared, pool: &WorkerPool, limit: Limit, retry_after_s: f64) -> Undecided {
    let retry_after_s = retry_after_s.ceil() as u32;
    let (reason, refusal) = match limit {
        Limit::Requests => ("requests", Refusal::QueueFull { retry_after_s }),
        Limit::Bytes => ("bytes", Refusal::QueueFull { retry_after_s }),
        Limit::Tenant => ("tenant_requests", Refusal::TenantFull { retry_after_s }),
        Limit::TenantBytes => ("tenant_bytes", Refusal::TenantFull { retry_after_s }),
        Limit::Deadline => ("deadline", Refusal::DeadlineHopeless { retry_after_s }),
    };
    shared
        .metrics
        .queue_refused
        .with_label_values(&[&*pool.model, pool.role.name(), reason])
        .inc();
    Undecided::Refuse(refusal)
}

fn count(shared: &Shared, booking: &Booking) {
    for leg in booking.legs() {
        let labels = [&*leg.pool.model, leg.pool.role.name()];
        shared.metrics.decisions.with_label_values(&labels).inc();
    }
}

fn place(
    shared: &Shared,
    prepared: &Prepared,
    model: &Model,
    role: Role,
    id: RequestId,
) -> Result<Leg, Abstention> {
    let pool = model.pool(role);
    if pool.size() == 0 {
        return Err(Abstention::NoWorker);
    }
    let request = RouteRequest {
        request_id: Some(id),
        local_hashes: &prepared.hashes,
        sequence_hashes: &prepared.sequence,
        input_tokens: prepared.input_tokens,
        expected_output_tokens: prepared.expected_output_tokens,
        in_one_piece: !prepared.is_streamed,
        explain: shared.receipts.is_on(),
        ..RouteRequest::default()
    };
    let mut last = Instant::now();
    let mark = |ended: Stage| {
        let now = Instant::now();
        let stages = &shared.metrics.stages;
        let stage = match ended {
            Stage::Match => &stages.matching,
            Stage::Price => &stages.price,
            Stage::Pick => &stages.pick,
        };
        stage.observe((now - last).as_secs_f64());
        last = now;
    };
    match pool.route(&request, shared.now_s(), mark) {
        Ok(placement) => Ok(Leg {
            pool: pool.clone(),
            worker: placement.decision.worker,
            overlap_blocks: placement.decision.overlap_blocks,
            pin_rank: placement.several_ranks,
            why: request.explain.then(|| {
                Box::new(Why {
                    cost: placement.decision.cost,
                    candidates: placement.decision.candidates,
                    waited_s: 0.0,
                    cause: "at_once",
                })
            }),
        }),
        Err(Error::NoWorker { .. }) => Err(Abstention::NoWorker),
        Err(_) => Err(Abstention::RouterRefused),
    }
}

/// Books the worker that a client chose by header, so that its load is known. The client's own headers go through as they are.
pub fn book_client_pin(shared: &Shared, parts: &Parts, prepared: &Prepared) -> Option<Booking> {
    let (instance, rank) = intake::pinned_instance(&parts.headers)?;
    let role = if prepared.model.is_split() {
        Role::Decode
    } else {
        Role::Aggregated
    };
    let pool = prepared.model.pool(role);
    let id = RequestId(shared.next_request.fetch_add(1, Ordering::Relaxed));
    let worker = WorkerId::new(instance, rank);
    let request = RouteRequest {
        request_id: Some(id),
        local_hashes: &prepared.hashes,
        sequence_hashes: &prepared.sequence,
        input_tokens: prepared.input_tokens,
        in_one_piece: !prepared.is_streamed,
        ..RouteRequest::default()
    };
    pool.book(&request, worker, shared.now_s()).ok()?;
    let leg = Leg {
        pool: pool.clone(),
        worker,
        overlap_blocks: 0,
        pin_rank: false,
        why: None,
    };
    Some(Booking::new(id, [Some(leg), None], shared.clock))
}

/// Writes the pin headers of a booking.
pub fn write_pins(head: &mut BytesMut, booking: &Booking) {
    for leg in booking.legs() {
        let (instance, rank) = if leg.pool.role == Role::Prefill {
            ("x-dynamo-prefill-instance-id", "x-dynamo-prefill-dp-rank")
        } else {
            ("x-dynamo-worker-instance-id", "x-dynamo-dp-rank")
        };
        write!(head, "{instance}: {}\r\n", leg.worker.instance).expect("writing to memory must succeed");
        if leg.pin_rank {
            write!(head, "{rank}: {}\r\n", leg.worker.dp_rank).expect("writing to memory must succeed");
        }
    }
}
