//! Reader of msgpack in memory: no allocation, no recursion, no panic.
//!
//! Frames of vLLM and `SGLang` come from outside and arrive millions of blocks per second. A general decoder
//! allocates values by announced lengths, and one that follows a schema refuses a frame for one odd field.
//! This reader walks the bytes: a caller asks for a type, reads it, or skips it.
//!
//! Two rules keep it safe. No length from the frame is trusted beyond the bytes that are left, and nested
//! values are skipped by counting, not by recursion. Every error names a byte or a limit, and no content of
//! the frame.
//!
//! Source: the msgpack specification, whose marker bytes stand in the functions below.

/// Reason for refusing a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The frame ends in the middle of a value.
    #[error("the frame ends at byte {at}, inside a value; expected more bytes")]
    Short {
        /// Position in the frame, bytes.
        at: usize,
    },
    /// A value has another type.
    #[error("byte {at}: expected {expected}, got msgpack marker {marker:#04x}")]
    Type {
        /// Position in the frame, bytes.
        at: usize,
        /// Type that the format requires.
        expected: &'static str,
        /// Type byte received.
        marker: u8,
    },
    /// A number exceeds its limit.
    #[error("{what}: got {got}, expected at most {most}")]
    Limit {
        /// Name of the number.
        what: &'static str,
        /// Value received.
        got: usize,
        /// Highest accepted value.
        most: usize,
    },
    /// Two values contradict each other.
    #[error("{what}: got {got}, expected {expected}")]
    Inconsistent {
        /// Name of the value.
        what: &'static str,
        /// Value received.
        got: u64,
        /// Value that agrees with the rest of the event.
        expected: u64,
    },
    /// An event lacks a field.
    #[error("an event of type {event} without {field}; expected the field")]
    Missing {
        /// Type of the event.
        event: &'static str,
        /// Name of the missing field.
        field: &'static str,
    },
}

/// Reader of msgpack values. A clone is a position to come back to.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    /// The frame.
    bytes: &'a [u8],
    /// Position of the next value.
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Number of unread bytes. No container can have more entries.
    pub const fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let rest = &self.bytes[self.at..];
        let taken = rest
            .get(..count)
            .ok_or(Malformed::Short { at: self.bytes.len() })?;
        self.at += count;
        Ok(taken)
    }

    /// The next byte, without reading it.
    fn peek(&self) -> Result<u8, Malformed> {
        self.bytes
            .get(self.at)
            .copied()
            .ok_or(Malformed::Short { at: self.at })
    }

    /// Big-endian number of 1, 2, 4 or 8 bytes.
    ///
    /// # Errors
    /// [`Malformed::Short`] when the frame ends before it.
    fn number(&mut self, bytes: usize) -> Result<u64, Malformed> {
        Ok(match bytes {
            1 => u64::from(self.fixed::<1>()?[0]),
            2 => u64::from(u16::from_be_bytes(self.fixed()?)),
            4 => u64::from(u32::from_be_bytes(self.fixed()?)),
            _ => u64::from_be_bytes(self.fixed()?),
        })
    }

    /// The next N bytes.
    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let taken = self.bytes[self.at..].first_chunk::<N>();
        let taken = *taken.ok_or(Malformed::Short { at: self.bytes.len() })?;
        self.at += N;
        Ok(taken)
    }

    /// An unsigned number of up to 32 bits, as most values of a frame are. `None` when another value comes
    /// next; then nothing is read.
    #[inline]
    pub fn small(&mut self) -> Option<u32> {
        let rest = self.bytes.get(self.at..)?;
        let (value, len) = match *rest {
            [value @ 0x00..=0x7F, ..] => (u32::from(value), 1),
            [0xCC, value, ..] => (u32::from(value), 2),
            [0xCD, a, b, ..] => (u32::from(u16::from_be_bytes([a, b])), 3),
            [0xCE, a, b, c, d, ..] => (u32::from_be_bytes([a, b, c, d]), 5),
            _ => return None,
        };
        self.at += len;
        Some(value)
    }

    /// Error for a value of the wrong type at the current position.
    fn wrong<T>(&self, expected: &'static str) -> Result<T, Malformed> {
        Err(Malformed::Type {
            at: self.at,
            expected,
            marker: self.peek()?,
        })
    }

    /// Skips a nil; whether there was one.
    pub fn nil(&mut self) -> Result<bool, Malformed> {
        let nil = self.peek()? == 0xC0;
        self.at += usize::from(nil);
        Ok(nil)
    }

    /// Integer as 64 bits; negative numbers in two's complement.
    pub fn integer(&mut self) -> Result<u64, Malformed> {
        let marker = self.peek()?;
        let (bytes, signed) = match marker {
            0x00..=0x7F => (0, false),
            0xE0..=0xFF => (0, true),
            0xCC..=0xCF => (1 << (marker - 0xCC), false),
            0xD0..=0xD3 => (1 << (marker - 0xD0), true),
            _ => return self.wrong("an integer"),
        };
        self.at += 1;
        if bytes == 0 {
            return Ok(if signed {
                i64::from(marker.cast_signed()).cast_unsigned()
            } else {
                u64::from(marker)
            });
        }
        let number = self.number(bytes)?;
        let unused = 64 - 8 * bytes as u32;
        Ok(if signed {
            ((number << unused).cast_signed() >> unused).cast_unsigned()
        } else {
            number
        })
    }

    /// Float, or an integer as a float.
    pub fn float(&mut self) -> Result<f64, Malformed> {
        match self.peek()? {
            0xCA => {
                self.at += 1;
                Ok(f64::from(f32::from_bits(self.number(4)? as u32)))
            }
            0xCB => {
                self.at += 1;
                Ok(f64::from_bits(self.number(8)?))
            }
            _ => Ok(self.integer()?.cast_signed() as f64),
        }
    }

    /// Text or bytes. Text need not be UTF-8.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let marker = self.peek()?;
        let width = match marker {
            0xA0..=0xBF => 0,
            0xC4 | 0xD9 => 1,
            0xC5 | 0xDA => 2,
            0xC6 | 0xDB => 4,
            _ => return self.wrong("text or bytes"),
        };
        self.at += 1;
        let len = if width == 0 {
            u64::from(marker & 0x1F)
        } else {
            self.number(width)?
        };
        self.take(len as usize)
    }

    /// Length of an array.
    pub fn array(&mut self) -> Result<usize, Malformed> {
        self.container("an array", 0x90, 0xDC, 1)
    }

    /// Number of entries of a map.
    pub fn map(&mut self) -> Result<usize, Malformed> {
        self.container("a map", 0x80, 0xDE, 2)
    }

    /// Length of a container, at most the number of unread bytes. `short` and `long` are its markers, and
    /// `values` says how many values an entry has.
    fn container(
        &mut self,
        expected: &'static str,
        short: u8,
        long: u8,
        values: usize,
    ) -> Result<usize, Malformed> {
        let marker = self.peek()?;
        let width = match marker {
            marker if marker & 0xF0 == short => 0,
            marker if marker == long => 2,
            marker if marker == long + 1 => 4,
            _ => return self.wrong(expected),
        };
        self.at += 1;
        let len = if width == 0 {
            u64::from(marker & 0x0F)
        } else {
            self.number(width)?
        } as usize;
        let most = self.left() / values; // every value has at least one byte
        if len > most {
            return Err(Malformed::Limit {
                what: "entries of a container",
                got: len,
                most,
            });
        }
        Ok(len)
    }

    /// Whether a map comes next.
    pub fn is_map(&self) -> bool {
        matches!(self.bytes.get(self.at), Some(0x80..=0x8F | 0xDE | 0xDF))
    }

    /// Whether an array comes next.
    pub fn is_array(&self) -> bool {
        matches!(self.bytes.get(self.at), Some(0x90..=0x9F | 0xDC | 0xDD))
    }

    /// Whether text or bytes come next.
    pub fn is_bytes(&self) -> bool {
        matches!(
            self.bytes.get(self.at),
            Some(0xA0..=0xBF | 0xC4..=0xC6 | 0xD9..=0xDB)
        )
    }

    /// Skips a value of any type and depth. O(bytes of the value), without recursion.
    pub fn skip(&mut self) -> Result<(), Malformed> {
        let mut values = 1_usize;
        while values > 0 {
            values -= 1;
            let inner = if self.is_map() {
                self.map()? * 2
            } else if self.is_array() {
                self.array()?
            } else {
                self.skip_scalar()?;
                0
            };
            // Each value has at least one byte, so a larger sum cannot be right.
            values += inner;
            if values > self.left() {
                return Err(Malformed::Short { at: self.bytes.len() });
            }
        }
        Ok(())
    }

    /// Skips a value that is no container.
    fn skip_scalar(&mut self) -> Result<(), Malformed> {
        if self.is_bytes() {
            return self.bytes().map(|_| ());
        }
        let payload = match self.peek()? {
            0x00..=0x7F | 0xE0..=0xFF | 0xC0 | 0xC2 | 0xC3 => 0,
            0xCC | 0xD0 => 1,
            0xCD | 0xD1 | 0xD4 => 2,
            0xD5 => 3,
            0xCA | 0xCE | 0xD2 => 4,
            0xD6 => 5,
            0xCB | 0xCF | 0xD3 => 8,
            0xD7 => 9,
            0xD8 => 17,
            marker @ 0xC7..=0xC9 => {
                self.at += 1;
                let len = self.number(1 << (marker - 0xC7))?;
                return self.take(len as usize + 1).map(|_| ());
            }
            _ => return self.wrong("a value"),
        };
        self.take(1 + payload).map(|_| ())
    }
}
