//! The log of the process, for every door: JSON lines on standard error.
//!
//! A door calls [`start_logging`] before its first thread. The log belongs to the process, so the first door decides its filter.

use crate::ServiceError;

/// Starts the log of the process, unless another door did.
///
/// `filter` holds `tracing` directives, for example `info` or `wardrop_gateway=debug`.
///
/// # Errors
/// [`ServiceError::Config`] for a filter that cannot be read.
pub fn start_logging(filter: &str) -> Result<(), ServiceError> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| ServiceError::Config(format!("log filter {filter:?}: {error}")))?;
    // A second door in the same process shares the first one's log.
    let _ = tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
    Ok(())
}
