//! The only map from core errors to Python exceptions.

use pyo3::exceptions::{PyKeyError, PyLookupError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use wardrop_core::{Error, ImageError};

/// The exception for a core error, with the error's own text.
///
/// An unknown worker or request is a `KeyError`, a request without an available worker a `LookupError`, and a reached
/// limit a `RuntimeError`. Every other error is a `ValueError`.
pub fn raise(error: &Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::UnknownWorker(_) | Error::UnknownRequest(_) => PyKeyError::new_err(text),
        Error::NoWorker { .. } => PyLookupError::new_err(text),
        Error::TooManyWorkers { .. } | Error::TooManyBookings { .. } | Error::IndexFull { .. } => {
            PyRuntimeError::new_err(text)
        }
        Error::Image(ImageError::NotEmpty { .. } | ImageError::Full) => PyRuntimeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}
