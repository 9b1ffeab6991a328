//! The one map from core errors to exceptions.

use pyo3::exceptions::{PyKeyError, PyLookupError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use wardrop_core::{Error, ImageError};

/// As an exception: `KeyError` for what is not there, `LookupError` when nobody can serve, `RuntimeError` for a limit that
/// is reached, else `ValueError`. The text says got, expected and what to do.
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
