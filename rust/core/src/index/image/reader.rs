//! Reading an image without trust: every read is checked against the bytes that are left.
//!
//! No function here panics on outside data, and none allocates by a number from the image. Errors carry the
//! byte at which the rule broke, counted from the start of the image.

use xxhash_rust::xxh3::xxh3_64;

use super::{HEADER_BYTES, ImageError, MAGIC, VERSION};

/// Reader of little-endian numbers in the body of an image.
pub(super) struct Reader<'a> {
    /// Body of the image.
    pub(super) bytes: &'a [u8],
    /// Position of the next byte to read. Invariant: at most the length of `bytes`.
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    /// Error for a broken rule at the current position.
    pub(super) const fn broken(&self, rule: &'static str) -> ImageError {
        ImageError::Broken {
            at: (HEADER_BYTES + self.at) as u64,
            rule,
        }
    }

    /// The next `count` bytes. The position moves only when they are there.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], ImageError> {
        let taken = self.bytes[self.at..].get(..count);
        let taken = taken.ok_or_else(|| self.broken("an entry must end within the body"))?;
        self.at += count;
        Ok(taken)
    }

    /// The next N bytes as a number.
    pub(super) fn number<const N: usize>(&mut self) -> Result<u64, ImageError> {
        let mut number = [0; 8];
        number[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(number))
    }

    /// The next byte. All numbers are little-endian.
    pub(super) fn u8(&mut self) -> Result<u32, ImageError> {
        self.number::<1>().map(|number| number as u32)
    }

    /// The next two bytes, as an index.
    pub(super) fn u16(&mut self) -> Result<usize, ImageError> {
        self.number::<2>().map(|number| number as usize)
    }

    /// The next four bytes.
    pub(super) fn u32(&mut self) -> Result<u32, ImageError> {
        self.number::<4>().map(|number| number as u32)
    }

    /// The next eight bytes.
    pub(super) fn u64(&mut self) -> Result<u64, ImageError> {
        self.number::<8>()
    }

    /// A count of entries, each of at least `entry_bytes` bytes.
    ///
    /// A count that the remaining bytes cannot fill is refused at once, so that no loop runs for it and no memory is
    /// reserved.
    pub(super) fn count(&mut self, entry_bytes: usize) -> Result<usize, ImageError> {
        let count = self.u32()? as usize;
        if count.saturating_mul(entry_bytes) > self.bytes.len() - self.at {
            return Err(self.broken("a count must fit into the bytes that are left"));
        }
        Ok(count)
    }
}

/// Body of an image whose header and checksum are right.
///
/// The checks go from cheap to dear, and the hashing comes last: only an undamaged image can say that it was made with
/// another hash.
pub(super) fn body(bytes: &[u8], hashing: u64) -> Result<&[u8], ImageError> {
    if bytes.get(..8) != Some(MAGIC) {
        return Err(ImageError::Magic);
    }
    let (expected, got) = (HEADER_BYTES as u64, bytes.len() as u64);
    let length = ImageError::Length { expected, got };
    let header = bytes.get(8..HEADER_BYTES).ok_or(length)?;
    let word =
        |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("the slice has eight bytes"));
    let version = word(0) as u32;
    if version != VERSION {
        return Err(ImageError::Version { got: version });
    }
    let body = &bytes[HEADER_BYTES..];
    if word(12) != body.len() as u64 {
        let expected = word(12).saturating_add(HEADER_BYTES as u64);
        return Err(ImageError::Length { expected, got });
    }
    if word(20) != xxh3_64(body) {
        return Err(ImageError::Checksum);
    }
    if word(4) != hashing {
        return Err(ImageError::Hashing);
    }
    Ok(body)
}
