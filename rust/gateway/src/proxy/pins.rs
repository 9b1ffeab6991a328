//! Headers that pin a request to workers, as clients send them and as the gateway writes them for Dynamo.
//!
//! Source: the names of the headers are those of `dynamo.frontend` 1.6.1, with its aliases. A
//! client's own pins are refused unless `routing.allow_client_pins` is on.
//!
//! A pin is the only way to place a request with a stock frontend; without one, a frontend in `kv`
//! mode chooses itself. Hence a request may always go without (`docs/adr/0001-pin-by-header.md`).

use std::fmt::Write as _;

use bytes::BytesMut;
use hyper::HeaderMap;
use wardrop_core::WorkerId;
use wardrop_service::{Booking, Leg, Role};

/// Headers by which a client would choose a worker, with the aliases that Dynamo takes.
const PIN_HEADERS: [&str; 9] = [
    "x-dynamo-worker-instance-id",
    "x-dynamo-prefill-instance-id",
    "x-dynamo-dp-rank",
    "x-dynamo-prefill-dp-rank",
    "x-worker-instance-id",
    "x-prefill-instance-id",
    "x-dp-rank",
    "x-data-parallel-rank",
    "x-prefill-dp-rank",
];

/// Header that chooses a rank of vLLM's server.
const RANK: &str = "x-data-parallel-rank";

/// Whether the client chooses a worker by header.
pub fn has_pin_header(headers: &HeaderMap) -> bool {
    // All pin headers start with `x-`. Most requests carry few headers, so the loop runs over the headers of the request.
    headers.keys().any(|name| {
        let name = name.as_str();
        name.starts_with("x-d") || name.starts_with("x-w") || name.starts_with("x-p")
    }) && PIN_HEADERS.iter().any(|name| headers.contains_key(*name))
}

/// The worker named by a pin header of the client, parsed as Dynamo parses it.
///
/// `None` for a pin of other headers only, which names no instance of a decode or aggregated
/// worker.
pub fn pinned_worker(headers: &HeaderMap) -> Option<WorkerId> {
    let number = |names: [&str; 2]| {
        names
            .iter()
            .find_map(|name| headers.get(*name)?.to_str().ok()?.trim().parse::<u64>().ok())
    };
    // Names are tried in Dynamo's order, so that the booking is on the worker that Dynamo takes.
    let instance = number(["x-dynamo-worker-instance-id", "x-worker-instance-id"])?;
    let rank = number(["x-dynamo-dp-rank", "x-dp-rank"]).and_then(|rank| u32::try_from(rank).ok());
    Some(WorkerId::new(instance, rank.unwrap_or(0)))
}

/// Writes the rank of a leg whose worker is the upstream itself, as vLLM reads it.
pub fn write_rank(head: &mut BytesMut, leg: &Leg) {
    if leg.pin_rank {
        write!(head, "{RANK}: {}\r\n", leg.worker.dp_rank).expect("writing to memory must succeed");
    }
}

/// Writes the pin headers of a booking.
///
/// In a split both legs are written. The rank is written only where an instance has several.
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    #[test]
    fn every_alias_of_a_pin_is_seen() {
        for name in PIN_HEADERS {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
            assert!(has_pin_header(&headers), "{name}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-dynamo-request-priority", HeaderValue::from_static("1"));
        assert!(!has_pin_header(&headers));
    }
}
