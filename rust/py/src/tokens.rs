//! Token ids and hashes from Python objects: buffers without a copy, lists without an iterator.
//!
//! This module and [`crate::digits`] are the only ones with `unsafe`. It reads memory that a buffer export pins. While a
//! view lives, its exporter can neither free nor resize the memory, but another Python thread may write to it. Such a
//! race is the caller's, as with every function that releases the GIL over a buffer (hashlib, numpy). The ids are then
//! undefined, but each is still a valid `u32`.
#![allow(unsafe_code)]

use std::ops::Deref;
use std::sync::Arc;

use pyo3::buffer::{Element, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyMemoryView};
use wardrop_core::{LocalHash, PromptHashes, SequenceHash};

use crate::buffers::{self, Number, is_native};
use crate::digits::Layout;

/// Accepted forms of token ids, for errors.
const ACCEPTED: &str = "a list of ints, a contiguous buffer of 32-bit unsigned ints (numpy.uint32, array('I'), memoryview), \
     bytes or bytearray of little-endian 32-bit ids, or an integer array that converts";

/// Token ids, borrowed if the memory layout allows it.
pub enum Tokens {
    /// A view of a buffer of `u32`.
    View(PyBuffer<u32>),
    /// A view of aligned bytes of little-endian `u32`.
    Bytes(PyBuffer<u8>),
    /// A copy.
    Owned(Vec<u32>),
}

impl Tokens {
    /// The ids.
    ///
    /// Valid while `self` lives: a view keeps its exporter from freeing the memory.
    pub fn as_slice(&self) -> &[u32] {
        match self {
            // SAFETY: contiguous and aligned (checked by the constructors), pinned by the view; see the module.
            Self::View(view) => unsafe { slice(view.buf_ptr().cast(), view.item_count()) },
            // SAFETY: as above; any 4 bytes are a u32.
            Self::Bytes(view) => unsafe { slice(view.buf_ptr().cast(), view.item_count() / 4) },
            Self::Owned(tokens) => tokens,
        }
    }

    /// Reads `value`.
    ///
    /// # Errors
    /// `TypeError` for another type, and `ValueError` for an id out of range or a wrong shape.
    pub fn new(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(list) = value.cast::<PyList>() {
            return read_list(list).map(Self::Owned);
        }
        let Ok(buffer) = PyUntypedBuffer::get(value) else {
            return from_iterable(value);
        };
        if buffer.dimensions() > 1 {
            let text = format!(
                "got tokens with {} dimensions: expected 1, so flatten them",
                buffer.dimensions()
            );
            return Err(PyValueError::new_err(text));
        }
        if buffer.item_count() == 0 {
            return Ok(Self::Owned(Vec::new())); // without memory there is no alignment to check either
        }
        Self::from_buffer(&buffer, value)
    }

    /// A view where the items are native 32-bit ids in order; otherwise a checked copy.
    fn from_buffer(buffer: &PyUntypedBuffer, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if is_native(buffer) && buffer.is_c_contiguous() && buffer.as_typed::<u32>().is_ok() {
            return Ok(Self::View(PyBuffer::get(value)?));
        }
        if let Some(ids) = buffers::read::<u32>(value, buffer) {
            return ids.map(Self::Owned);
        }
        if is_raw(value)
            && let Ok(bytes) = buffer.as_typed::<u8>()
        {
            return Self::from_bytes(bytes, value);
        }
        let converted = convert::<i64>(value, buffer)
            .or_else(|| convert::<u64>(value, buffer))
            .or_else(|| convert::<i32>(value, buffer))
            .or_else(|| convert::<u16>(value, buffer))
            .or_else(|| convert::<i16>(value, buffer))
            .or_else(|| convert::<u8>(value, buffer))
            .or_else(|| convert::<i8>(value, buffer));
        if let Some(ids) = converted {
            return ids;
        }
        let format = buffer.format().to_string_lossy();
        Err(PyTypeError::new_err(format!(
            "got tokens in a buffer of format {format:?}: expected {ACCEPTED}"
        )))
    }

    /// A view of aligned little-endian words; otherwise a copy.
    fn from_bytes(bytes: &PyBuffer<u8>, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let len = bytes.item_count();
        if !len.is_multiple_of(4) {
            let text =
                format!("got tokens of {len} bytes: expected a multiple of 4, little-endian 32-bit ids");
            return Err(PyValueError::new_err(text));
        }
        let aligned = bytes.buf_ptr().cast::<u32>().is_aligned();
        if bytes.is_c_contiguous() && aligned && cfg!(target_endian = "little") {
            return Ok(Self::Bytes(PyBuffer::get(value)?));
        }
        let words = bytes.to_vec(value.py())?;
        let id = |word: &[u8]| u32::from_le_bytes(word.try_into().expect("a word must have 4 bytes"));
        Ok(Self::Owned(words.chunks_exact(4).map(id).collect()))
    }
}

/// Local hashes, borrowed if the memory layout allows it.
pub enum HashColumn {
    /// A view of a buffer of unsigned 64-bit hashes.
    View(PyBuffer<u64>),
    /// A view of a buffer of signed 64-bit hashes.
    SignedView(PyBuffer<i64>),
    /// A copy.
    Owned(Vec<LocalHash>),
    /// The hashes of a `Prefix`, which do not change while they are shared.
    Known(Arc<PromptHashes>),
}

impl HashColumn {
    /// The sequence hashes of the same blocks, or an empty slice if they are unknown.
    pub fn sequence(&self) -> &[SequenceHash] {
        match self {
            Self::Known(prompt) => prompt.sequence(),
            Self::View(_) | Self::SignedView(_) | Self::Owned(_) => &[],
        }
    }

    /// A view of `value`, if it is a contiguous buffer of 64-bit integers.
    pub fn view(value: &Bound<'_, PyAny>) -> Option<Self> {
        if !is_native(&PyUntypedBuffer::get(value).ok()?) {
            return None;
        }
        if let Ok(view) = PyBuffer::<u64>::get(value) {
            return usable(&view).then_some(Self::View(view));
        }
        let view = PyBuffer::<i64>::get(value).ok()?;
        usable(&view).then_some(Self::SignedView(view))
    }
}

/// Whether a buffer can be read as one slice.
fn usable<T: Element>(view: &PyBuffer<T>) -> bool {
    view.is_c_contiguous() && view.dimensions() == 1 && view.item_count() > 0
}

impl Deref for HashColumn {
    type Target = [LocalHash];

    fn deref(&self) -> &[LocalHash] {
        let (pointer, len) = match self {
            Self::View(view) => (view.buf_ptr(), view.item_count()),
            Self::SignedView(view) => (view.buf_ptr(), view.item_count()),
            Self::Owned(hashes) => return hashes,
            Self::Known(prompt) => return prompt.locals(),
        };
        // SAFETY: contiguous and not empty (checked by the constructor), aligned (checked by PyO3), pinned by the view; a local
        // hash is a transparent u64, and any 8 bytes are one; see the module.
        unsafe { std::slice::from_raw_parts(pointer.cast(), len) }
    }
}

/// # Safety
/// `len` items from `pointer` on must stay readable while the result lives.
unsafe fn slice<'a>(pointer: *const u32, len: usize) -> &'a [u32] {
    if len == 0 {
        return &[]; // an empty buffer may have no memory at all
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(pointer, len) }
}

/// Whether a buffer of bytes is raw memory, whose bytes are little-endian 32-bit ids. An array of 8-bit numbers is not: each
/// of its items is an id.
fn is_raw(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyBytes>()
        || value.is_instance_of::<PyByteArray>()
        || value.is_instance_of::<PyMemoryView>()
}

/// Ids from a buffer of `T`, each checked. `None` for a buffer of another type.
fn convert<T: Number + TryInto<u32>>(
    value: &Bound<'_, PyAny>,
    buffer: &PyUntypedBuffer,
) -> Option<PyResult<Tokens>> {
    let ids = match buffers::read::<T>(value, buffer)? {
        Ok(ids) => ids,
        Err(error) => return Some(Err(error)),
    };
    let id = |(at, &id): (usize, &T)| id.try_into().map_err(|_| out_of_range(at));
    let checked = ids.iter().enumerate().map(id).collect::<PyResult<_>>();
    Some(checked.map(Tokens::Owned))
}

/// The error for an id beyond 32 bits; it names the position.
fn out_of_range(at: usize) -> PyErr {
    // The text does not contain the id, because no part of a prompt may reach a log.
    PyValueError::new_err(format!("got token {at} out of range: expected 0 to 4294967295"))
}

/// Ids of another sequence, copied through a list. Text and mappings are sequences too, and are
/// refused.
fn from_iterable(value: &Bound<'_, PyAny>) -> PyResult<Tokens> {
    let wrong = || {
        let name = value
            .get_type()
            .name()
            .map_or_else(|_| "?".to_owned(), |name| name.to_string());
        PyTypeError::new_err(format!("got tokens of type {name}: expected {ACCEPTED}"))
    };
    if value.hasattr("__len__")? && !value.hasattr("keys")? && value.extract::<&str>().is_err() {
        let list = value
            .py()
            .get_type::<PyList>()
            .call1((value,))
            .map_err(|_| wrong())?;
        return read_list(list.cast::<PyList>()?).map(Tokens::Owned);
    }
    Err(wrong())
}

/// Reads a list of ints: directly if the interpreter's layout is known, and by the C API from the first other item on.
fn read_list(list: &Bound<'_, PyList>) -> PyResult<Vec<u32>> {
    let mut values = Vec::with_capacity(list.len());
    if let Some(layout) = Layout::get(list.py()) {
        layout.read(list, &mut values);
    }
    for at in values.len()..list.len() {
        // SAFETY: the list is alive, the GIL is held, and the item is borrowed only until the next line. A list that has
        // shrunk gives null, which is an error.
        let value = unsafe {
            let item = ffi::PyList_GetItem(list.as_ptr(), at.cast_signed());
            if item.is_null() {
                return Err(PyErr::fetch(list.py()));
            }
            ffi::PyLong_AsLongLong(item)
        };
        if value == -1
            && let Some(error) = PyErr::take(list.py())
        {
            return Err(if error.is_instance_of::<PyTypeError>(list.py()) {
                PyTypeError::new_err(format!("token {at} is not an int"))
            } else {
                out_of_range(at)
            });
        }
        values.push(u32::try_from(value).map_err(|_| out_of_range(at))?);
    }
    Ok(values)
}
