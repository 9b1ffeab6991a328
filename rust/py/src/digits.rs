//! Fast reading of a list of ints: directly from `CPython`'s memory, in a third of the time of the C API.
//!
//! The stable ABI does not fix the layout of an int. The module therefore reads memory only if two conditions hold. The
//! interpreter has a known layout: `CPython` 3.11 to 3.14, 64 bits, neither a debug nor a free-threaded build. A probe with ints
//! of every form reads correctly. Otherwise the C API reads the list. The C API also reads every item that is not a plain int of
//! at most two digits.
//!
//! ```text
//! int   16: 3.11 signed number of digits; 3.12+ digits · 8 + sign (0, 1 for zero, 2), 4 for immortal ints
//!       24: digits of 30 bits, lowest first
//! list  24: pointer to the items
//! ```
//!
//! Invariant: nothing is read unless [`Layout::get`] returned a layout, and its probe covers every
//! form that [`Layout::value`] accepts. An interpreter that a later release changes fails the probe
//! or the version check.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyList;

/// Byte offset of an int's size word.
const SIZE_AT: usize = 16;
/// Byte offset of an int's lowest digit.
const DIGITS_AT: usize = 24;
/// Byte offset of a list's pointer to its items.
const ITEMS_AT: usize = 24;
/// Bits of a digit in every 64-bit build.
const DIGIT_BITS: u32 = 30;
/// Bit of the size word that marks an immortal int since 3.12.
const IMMORTAL: usize = 4;

/// Encoding of an int's size in this interpreter.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Size word of an int with one digit. The next fields are those of two digits and of 0.
    one: usize,
    /// Size word of an int with two digits.
    two: usize,
    /// Size word of the int 0, which has no digit.
    zero: usize,
    /// Bits of the size word that do not depend on the value.
    ignored: usize,
}

impl Layout {
    /// The layout of this interpreter, or `None` if it is unknown. It is determined once.
    pub fn get(py: Python<'_>) -> Option<Self> {
        static LAYOUT: PyOnceLock<Option<Layout>> = PyOnceLock::new();
        *LAYOUT.get_or_init(py, || Self::find(py).unwrap_or_default())
    }

    /// Looks at the interpreter, and probes the layout that it should have.
    ///
    /// # Errors
    /// A fault of `sys` itself; the caller then uses the C API.
    fn find(py: Python<'_>) -> PyResult<Option<Self>> {
        let sys = py.import("sys")?;
        let implementation: String = sys.getattr("implementation")?.getattr("name")?.extract()?;
        let flags: String = sys
            .getattr("abiflags")
            .map_or_else(|_| Ok(String::new()), |flags| flags.extract())?;
        let digit_bits: u32 = sys.getattr("int_info")?.getattr("bits_per_digit")?.extract()?;
        let version = py.version_info();
        let known = (3, 11)..=(3, 14);
        let usable = implementation == "cpython"
            && flags.is_empty()
            && digit_bits == DIGIT_BITS
            && size_of::<usize>() == 8
            && cfg!(target_endian = "little")
            && known.contains(&(version.major, version.minor));
        if !usable {
            return Ok(None);
        }
        let layout = if version.minor == 11 {
            Self {
                one: 1,
                two: 2,
                zero: 0,
                ignored: 0,
            }
        } else {
            Self {
                one: 8,
                two: 16,
                zero: 1,
                ignored: IMMORTAL,
            }
        };
        Ok(layout.reads_right(py)?.then_some(layout))
    }

    /// Whether a list with ints of every form reads as the C API reads it.
    fn reads_right(self, py: Python<'_>) -> PyResult<bool> {
        let small = [
            0,
            1,
            5,
            255,
            256,
            257,
            32_000,
            (1 << 30) - 1,
            1 << 30,
            (1 << 32) - 1,
        ];
        let others = [
            1 << 32,
            1 << 59,
            1 << 60,
            -1,
            -256,
            -(1 << 31),
            i64::MIN,
            i64::MAX,
        ];
        let list = PyList::new(py, small.iter().chain(&others))?;
        list.append(true)?;
        list.append("text")?;
        let mut values = Vec::new();
        let mut right = true;
        for at in 0..list.len() {
            // SAFETY: the list is alive and not changed while the GIL is held here.
            let value = unsafe { self.value(*items(&list).add(at)) };
            right &= value == small.get(at).map(|&value| value as u32);
            values.extend(value);
        }
        Ok(right && values.len() == small.len())
    }

    /// Appends the leading items that are plain ints of 32 bits. The C API has to read the remaining items.
    pub fn read(self, list: &Bound<'_, PyList>, values: &mut Vec<u32>) {
        let len = list.len();
        // SAFETY: the GIL is held and no Python code runs until the last item is read, so the list keeps its `len` items.
        let items = unsafe { std::slice::from_raw_parts(items(list), len) };
        for &item in items {
            // SAFETY: the list owns the item.
            match unsafe { self.value(item) } {
                Some(value) => values.push(value),
                None => return,
            }
        }
    }

    /// # Safety
    /// `item` must be alive.
    #[inline]
    unsafe fn value(self, item: *mut ffi::PyObject) -> Option<u32> {
        // SAFETY: the item is alive. An object of exactly this type, not of a subclass, is an int and has a size word. The
        // size word gives the number of digits that follow it.
        unsafe {
            if ffi::Py_TYPE(item) != &raw mut ffi::PyLong_Type {
                return None;
            }
            let size = item.cast::<usize>().byte_add(SIZE_AT).read() & !self.ignored;
            let digits = item.cast::<u32>().byte_add(DIGITS_AT);
            if size == self.one {
                return Some(digits.read());
            }
            if size == self.two {
                let value = u64::from(digits.read()) | u64::from(digits.add(1).read()) << DIGIT_BITS;
                return u32::try_from(value).ok();
            }
            (size == self.zero).then_some(0)
        }
    }
}

/// # Safety
/// The pointer is valid until an item is added or removed. The pointer of an empty list may be null.
unsafe fn items(list: &Bound<'_, PyList>) -> *const *mut ffi::PyObject {
    // SAFETY: the layout was checked: the items' pointer follows the object's header.
    let items = unsafe {
        list.as_ptr()
            .cast::<*const *mut ffi::PyObject>()
            .byte_add(ITEMS_AT)
            .read()
    };
    if items.is_null() {
        return std::ptr::dangling();
    }
    items
}
