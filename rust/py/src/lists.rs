//! Lists as arguments, read item by item.
//!
//! `PyO3`'s own conversion to `Vec` reserves memory for the length that an object reports. A broadcast numpy view of one item reports any
//! length, and a failed reservation ends the process. [`List`] grows with the items that it has read.

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use wardrop_py_macros::caught;

/// Largest number of items of one list: 16 million, sixteen times the requests of the largest load plan.
const ITEMS_MAX: usize = 1 << 24;

/// Items of a list, a tuple or another iterable, at most [`ITEMS_MAX`].
pub struct List<T>(pub Vec<T>);

#[caught]
impl<'py, T: FromPyObjectOwned<'py>> FromPyObject<'_, 'py> for List<T> {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_instance_of::<PyString>() || value.is_instance_of::<PyBytes>() {
            let name = value.get_type().name()?;
            return Err(PyTypeError::new_err(format!("got {name}: expected a list")));
        }
        let mut items = Vec::new();
        for item in value.try_iter()? {
            if items.len() == ITEMS_MAX {
                return Err(PyValueError::new_err(format!(
                    "got more than {ITEMS_MAX} items: expected a shorter list"
                )));
            }
            items.push(item?.extract::<T>().map_err(Into::into)?);
        }
        Ok(Self(items))
    }
}
