//! From a prepared prompt to claims on workers and the pins that say so to Dynamo.

use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;
use hyper::http::request::Parts;
use std::fmt::Write as _;
use wardrop_core::{Error, RequestId, RouteRequest, Stage, WorkerId};

use super::intake;
use super::server::Shared;
use crate::fleet::{Booking, Leg, Model, Role};
use crate::prompt::{Abstention, Prepared};

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
    for leg in legs.legs() {
        let labels = [&*leg.pool.model, leg.pool.role.name()];
        shared.metrics.decisions.with_label_values(&labels).inc();
    }
    Ok(legs)
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
        ..RouteRequest::default()
    };
    pool.book(&request, worker, shared.now_s()).ok()?;
    let leg = Leg {
        pool: pool.clone(),
        worker,
        overlap_blocks: 0,
        pin_rank: false,
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
