//! The texts of panics stay out of the log, in every door.
//!
//! A panic of a task is caught where the task runs, and the service lives on. This hook decides
//! only what is logged about it.

use std::sync::Once;

use crate::metrics::THREAD_PREFIX;

/// Has panics on threads of this process that Wardrop started logged by their place alone.
///
/// The text of a panic can quote data: a wrong slice of a string quotes the string. Prompts must not reach the log.
///
/// Other threads keep the hook that the process had before, for example Python's. Calling it twice
/// changes nothing.
pub fn hide_panic_texts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            if !name.starts_with(THREAD_PREFIX) {
                return previous(panic);
            }
            let place = panic
                .location()
                .map(|at| format!("{}:{}", at.file(), at.line()))
                .unwrap_or_default();
            tracing::error!(thread = name, place, "a panic was caught");
        }));
    });
}
