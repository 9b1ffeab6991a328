//! Panics of bindings, as Python exceptions.
//!
//! A panic is a defect of Wardrop. The exception keeps the process of the caller alive and asks for
//! a report.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// Runs a binding. A panic becomes a `RuntimeError`: `PyO3`'s own `PanicException` is no `Exception`, so it would pass
/// every `except Exception` and end the thread of the caller.
///
/// Every lock of the bindings ignores poison, so an object stays usable after a panic inside one of its calls.
pub fn caught<T>(binding: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(binding)).unwrap_or_else(|panic| {
        Err(PyRuntimeError::new_err(format!(
            "internal fault of wardrop: {}; expected no input to cause one, so report it with the call",
            text(&*panic)
        )))
    })
}

/// The text of a panic, where it has one.
fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without text")
}
