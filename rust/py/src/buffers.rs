//! Reading of Python buffers into vectors, of any memory layout and in either byte order.
//!
//! `PyO3` reads items in the machine's own order only, and does not refuse the other order: it would read a big-endian
//! array as other numbers. A buffer whose format names an order is therefore copied as bytes, and each item is decoded.

use pyo3::buffer::{Element, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};

/// Largest number of items of one buffer. A broadcast view of one item can claim any number.
const MAX_ITEMS: usize = 1 << 28;

/// A number that a buffer can contain.
pub trait Number: Element + Copy + Default {
    /// Type codes of the number in a format that names its byte order (`struct` module of Python, standard sizes).
    const CODES: &'static [u8];

    /// The number of these bytes. Their count is the size of the number.
    fn decode(bytes: &[u8], big_endian: bool) -> Self;
}

macro_rules! numbers {
    ($($number:ty: $codes:literal),+) => {
        $(impl Number for $number {
            const CODES: &'static [u8] = $codes;

            fn decode(bytes: &[u8], big_endian: bool) -> Self {
                let bytes = bytes.try_into().unwrap_or_default();
                if big_endian {
                    Self::from_be_bytes(bytes)
                } else {
                    Self::from_le_bytes(bytes)
                }
            }
        })+
    };
}

numbers!(u8: b"B", i8: b"b", u16: b"H", i16: b"h", u32: b"IL", i32: b"il", u64: b"Q", i64: b"q", f64: b"d");

/// A format that names its byte order.
struct Ordered {
    big_endian: bool,
    /// Type code of the items.
    code: u8,
}

impl Ordered {
    /// Reads a format. `None` for one in the machine's own order and sizes.
    fn read(buffer: &PyUntypedBuffer) -> Option<Self> {
        let big_endian = match buffer.format().to_bytes() {
            [b'<', _] => false,
            [b'>' | b'!', _] => true,
            [b'=', _] => cfg!(target_endian = "big"),
            _ => return None,
        };
        let code = *buffer.format().to_bytes().last()?;
        Some(Self { big_endian, code })
    }
}

/// Whether the items of a buffer can be read in place: its format names no byte order.
pub fn is_native(buffer: &PyUntypedBuffer) -> bool {
    Ordered::read(buffer).is_none()
}

/// Reads a buffer of `T`. `None` for a buffer of another type.
///
/// # Errors
/// `ValueError` for more than 2²⁸ items, and `MemoryError` when there is no memory for a copy.
pub fn read<T: Number>(value: &Bound<'_, PyAny>, buffer: &PyUntypedBuffer) -> Option<PyResult<Vec<T>>> {
    if let Some(Ordered { big_endian, code }) = Ordered::read(buffer) {
        let is_right = T::CODES.contains(&code) && buffer.item_size() == size_of::<T>();
        return is_right.then(|| decode(value, buffer, big_endian));
    }
    let typed = buffer.as_typed::<T>().ok()?;
    Some(copy(value.py(), typed))
}

/// Reads a buffer argument that must contain items of `T`.
///
/// # Errors
/// `TypeError` for another type, and as [`read`].
pub fn column<T: Number>(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    let buffer = PyUntypedBuffer::get(value)?;
    read(value, &buffer).unwrap_or_else(|| {
        let format = buffer.format().to_string_lossy();
        let expected = std::any::type_name::<T>();
        Err(PyTypeError::new_err(format!(
            "got {name} in a buffer of format {format:?}: expected {expected} items"
        )))
    })
}

/// Copies items of the machine's own order.
fn copy<T: Number>(py: Python<'_>, buffer: &PyBuffer<T>) -> PyResult<Vec<T>> {
    let mut items = reserved(buffer.item_count())?;
    items.resize(buffer.item_count(), T::default());
    buffer.copy_to_slice(py, &mut items)?;
    Ok(items)
}

/// Copies items of a named byte order, one by one.
fn decode<T: Number>(
    value: &Bound<'_, PyAny>,
    buffer: &PyUntypedBuffer,
    big_endian: bool,
) -> PyResult<Vec<T>> {
    let mut items = reserved(buffer.item_count())?;
    let bytes = PyMemoryView::from(value)?.call_method0("tobytes")?;
    let bytes = bytes.cast::<PyBytes>()?.as_bytes();
    let decoded = bytes
        .chunks_exact(size_of::<T>())
        .map(|item| T::decode(item, big_endian));
    items.extend(decoded);
    Ok(items)
}

/// An empty vector with memory for `len` items.
///
/// # Errors
/// `ValueError` above [`MAX_ITEMS`], `MemoryError` when the memory is not there. A failed plain
/// reservation would end the process.
fn reserved<T>(len: usize) -> PyResult<Vec<T>> {
    if len > MAX_ITEMS {
        return Err(PyValueError::new_err(format!(
            "got a buffer of {len} items: expected at most {MAX_ITEMS}"
        )));
    }
    let mut items = Vec::new();
    items
        .try_reserve_exact(len)
        .map_err(|_| PyMemoryError::new_err(format!("got a buffer of {len} items: no memory for a copy")))?;
    Ok(items)
}
