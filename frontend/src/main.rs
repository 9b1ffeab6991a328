//! Dynamo's frontend with Wardrop's routing decision in process.
//!
//! ```text
//! HTTP ─▶ Dynamo's preprocessor ─▶ Migration ─▶ detokeniser ─▶ Selection (decides, books) ─▶ Dynamo's routed engine ─▶ worker
//! discovery, event plane ─▶ Fleet ─▶ routing service (index, load, curves, health)
//! ```
//!
//! `wardrop frontend` parses the flags of `dynamo.frontend` with Dynamo's own parser and starts this binary with the result as JSON. The
//! binary uses public items of Dynamo's crates only, so one build serves one minor version of Dynamo.

mod adapters;
mod control_plane;
mod events;
mod fleet;
mod grpc;
mod models;
mod pipeline;
mod recovery;
mod selection;
mod server;
mod settings;
mod silence;
mod spans;
mod surface;
mod watched;
mod watching;

use std::process::ExitCode;

use dynamo_runtime::{DistributedRuntime, Worker};

use crate::settings::Settings;

/// Exit code for settings that cannot work, as in `wardrop`'s other commands.
const BAD_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let settings = match Settings::from_arguments(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("wardrop-frontend: {error:#}");
            return ExitCode::from(BAD_SETTINGS);
        }
    };
    dynamo_runtime::logging::init();
    let outcome = Worker::from_settings().and_then(|worker| {
        worker.execute(move |runtime| async move {
            let runtime = DistributedRuntime::from_settings(runtime).await?;
            server::serve(runtime, settings).await
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wardrop-frontend: {error:#}");
            ExitCode::FAILURE
        }
    }
}
