//! Python bindings of all crates. A binding converts its arguments, releases the GIL where work grows with the input,
//! calls the crate, and maps the error. Every binding carries the attribute `caught`, so that a panic raises an exception.
//!
//! The stub `python/wardrop/_core.pyi` is the reference. A test holds the first line of every
//! `__doc__` against it, and `stubtest` holds every signature.

mod anarchy;
mod arguments;
mod buffers;
mod decision;
mod digits;
mod door;
mod drive;
mod engines;
mod error;
mod event;
mod gateway;
mod hashes;
mod lists;
mod panics;
mod picker;
mod prefix;
mod router;
mod sim;
mod stream;
mod tokens;
mod watched;

use pyo3::prelude::*;

/// The native module `wardrop._core`.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use crate::decision::{Candidate, Decision};

    #[pymodule_export]
    use crate::drive::Drive;

    #[pymodule_export]
    use crate::engines::{EngineFeed, apply_dynamo_message, decode_engine_batch};

    #[pymodule_export]
    use crate::event::{Cleared, Removed, Stored};

    #[pymodule_export]
    use crate::hashes::{block_hashes, sequence_hashes};

    #[pymodule_export]
    use crate::prefix::Prefix;

    #[pymodule_export]
    use crate::router::Router;

    #[pymodule_export]
    use crate::door::Door;
    #[pymodule_export]
    use crate::gateway::Gateway;
    #[pymodule_export]
    use crate::picker::{Picker, SelectServer};

    #[pymodule_export]
    use crate::sim::{SimWorkload, cost_lower_bound, improve_plan, simulate_fleet, simulate_planned};

    #[pymodule_export]
    use crate::stream::{StreamBound, stream_price};

    #[pymodule_export]
    use crate::watched::WatchedFleet;

    #[pymodule_export]
    use crate::anarchy::{AnarchyMeter, assign, assign_congested};
}
