//! The indices of all pools as the bytes of one file.
//!
//! ```text
//! magic "wdfleet\0" | version u32 | length u64 of the body | xxh3-64 u64 of the body | body
//! body     saved at, unix seconds u64 | pools u32, each:
//! pool     model: bytes u32, text | role u8 | workers u64 | publishers u32, each: instance u64, rank u32, publisher u64
//!          | image: bytes u64, as `Router::save_index` gives them
//! ```
//!
//! Numbers are little-endian. The file holds hashes, and no token, text or key. The reader compares every count with the bytes that are
//! left, so a damaged file takes no memory.

use std::collections::BTreeMap;

use wardrop_core::WorkerId;
use xxhash_rust::xxh3::xxh3_64;

use super::Role;

/// First bytes of a file, which no other format has.
const MAGIC: &[u8; 8] = b"wdfleet\0";
/// Version of the format.
const VERSION: u32 = 1;
/// Bytes of magic, version, length and checksum.
const HEADER_BYTES: usize = 8 + 4 + 8 + 8;

/// Reason why bytes are no saved fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SavedError {
    /// The bytes do not begin with the magic of an index file.
    #[error("not an index file of wardrop: its first bytes are others")]
    Magic,
    /// The file has a version that this program does not read.
    #[error("an index file of version {got}; this program reads version {VERSION}")]
    Version {
        /// Version of the file.
        got: u32,
    },
    /// The file is shorter or longer than its header says.
    #[error("an index file of {expected} bytes, got {got}: it is cut off or damaged")]
    Length {
        /// Bytes by the header.
        expected: u64,
        /// Bytes of the file.
        got: u64,
    },
    /// The body does not match its checksum.
    #[error("an index file whose checksum is wrong: it is damaged")]
    Checksum,
    /// The body breaks a rule of the format.
    #[error("an index file that breaks a rule at byte {at}: {rule}")]
    Broken {
        /// Position in the file, in bytes.
        at: u64,
        /// The rule.
        rule: &'static str,
    },
}

/// One pool's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedPool {
    /// Name of the model.
    pub model: String,
    /// Role of the workers.
    pub role: Role,
    /// Number of workers of the pool.
    pub workers: u64,
    /// Publisher of the feed of each worker whose blocks are complete.
    pub publishers: BTreeMap<WorkerId, u64>,
    /// The index, as `Router::save_index` writes it.
    pub image: Vec<u8>,
}

/// The indices of all pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedFleet {
    /// Time of the save, in seconds since 1970.
    pub saved_at_s: u64,
    /// Every pool, at most once.
    pub pools: Vec<SavedPool>,
}

impl SavedFleet {
    /// The file's bytes.
    ///
    /// O(bytes of the images); one copy of each image.
    pub fn to_bytes(&self) -> Vec<u8> {
        let images: usize = self.pools.iter().map(|pool| pool.image.len()).sum();
        let mut out = Vec::with_capacity(images + 4096);
        out.resize(HEADER_BYTES, 0);
        out.extend(self.saved_at_s.to_le_bytes());
        out.extend((self.pools.len() as u32).to_le_bytes());
        for pool in &self.pools {
            out.extend((pool.model.len() as u32).to_le_bytes());
            out.extend(pool.model.as_bytes());
            out.push(pool.role as u8);
            out.extend(pool.workers.to_le_bytes());
            out.extend((pool.publishers.len() as u32).to_le_bytes());
            for (worker, publisher) in &pool.publishers {
                out.extend(worker.instance.to_le_bytes());
                out.extend(worker.dp_rank.to_le_bytes());
                out.extend(publisher.to_le_bytes());
            }
            out.extend((pool.image.len() as u64).to_le_bytes());
            out.extend(&pool.image);
        }
        let (header, body) = out.split_at_mut(HEADER_BYTES);
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..20].copy_from_slice(&(body.len() as u64).to_le_bytes());
        header[20..28].copy_from_slice(&xxh3_64(body).to_le_bytes());
        out
    }

    /// Reads a file's bytes; the images stay unread.
    ///
    /// # Errors
    /// The fault of the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SavedError> {
        if bytes.get(..8) != Some(MAGIC) {
            return Err(SavedError::Magic);
        }
        let got = bytes.len() as u64;
        let mut header = Reader { bytes, at: 8 };
        let cut_off = |_| SavedError::Length {
            expected: HEADER_BYTES as u64,
            got,
        };
        let version = header.number::<4>().map_err(cut_off)? as u32;
        if version != VERSION {
            return Err(SavedError::Version { got: version });
        }
        let length = header.number::<8>().map_err(cut_off)?;
        let checksum = header.number::<8>().map_err(cut_off)?;
        let body = &bytes[HEADER_BYTES..];
        if length != body.len() as u64 {
            let expected = length.saturating_add(HEADER_BYTES as u64);
            return Err(SavedError::Length { expected, got });
        }
        if checksum != xxh3_64(body) {
            return Err(SavedError::Checksum);
        }
        let mut reader = Reader {
            bytes,
            at: HEADER_BYTES,
        };
        let saved_at_s = reader.number::<8>()?;
        // A pool takes at least 25 bytes: empty name, role, workers, no publishers, empty image.
        let pools = reader.count(25)?;
        let pools = (0..pools).map(|_| reader.pool()).collect::<Result<_, _>>()?;
        if reader.at != bytes.len() {
            return Err(reader.broken("nothing must follow the last pool"));
        }
        Ok(Self { saved_at_s, pools })
    }
}

/// A position in the bytes of a file that passed its checksum. A checksum is no proof of good
/// intent, so every read is checked.
struct Reader<'a> {
    /// The whole file, so that errors name positions in it.
    bytes: &'a [u8],
    /// Next byte to read; at most the length of the file.
    at: usize,
}

impl<'a> Reader<'a> {
    /// The error of a broken rule at the present position.
    const fn broken(&self, rule: &'static str) -> SavedError {
        SavedError::Broken {
            at: self.at as u64,
            rule,
        }
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize) -> Result<&'a [u8], SavedError> {
        let taken = self.bytes[self.at..].get(..count);
        let taken = taken.ok_or_else(|| self.broken("an entry must not end behind the last byte"))?;
        self.at += count;
        Ok(taken)
    }

    /// The next `N` bytes as a little-endian number; `N` is at most 8.
    fn number<const N: usize>(&mut self) -> Result<u64, SavedError> {
        let mut number = [0; 8];
        number[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(number))
    }

    /// Reads a count of entries that take at least `entry_bytes` each.
    fn count(&mut self, entry_bytes: usize) -> Result<usize, SavedError> {
        let count = self.number::<4>()? as usize;
        if count.saturating_mul(entry_bytes) > self.bytes.len() - self.at {
            return Err(self.broken("a count must fit the bytes that are left"));
        }
        Ok(count)
    }

    /// Reads one pool. The image is copied and not read.
    fn pool(&mut self) -> Result<SavedPool, SavedError> {
        let name_bytes = self.count(1)?;
        let name = std::str::from_utf8(self.take(name_bytes)?);
        let model = name
            .map_err(|_| self.broken("a model's name must be UTF-8"))?
            .to_owned();
        let role = self.number::<1>()? as usize;
        let role = Role::ALL.get(role).copied();
        let role = role.ok_or_else(|| self.broken("a role must be 0 to 2"))?;
        let workers = self.number::<8>()?;
        let mut publishers = BTreeMap::new();
        for _ in 0..self.count(20)? {
            let worker = WorkerId::new(self.number::<8>()?, self.number::<4>()? as u32);
            publishers.insert(worker, self.number::<8>()?);
        }
        let image_bytes = usize::try_from(self.number::<8>()?);
        let image_bytes = image_bytes.map_err(|_| self.broken("an image must fit the memory"))?;
        let image = self.take(image_bytes)?.to_vec();
        Ok(SavedPool {
            model,
            role,
            workers,
            publishers,
            image,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fleet() -> SavedFleet {
        let pool = |model: &str, role, image: &[u8]| SavedPool {
            model: model.into(),
            role,
            workers: 3,
            publishers: (0..2).map(|n| (WorkerId::new(n, 1), n + 7)).collect(),
            image: image.to_vec(),
        };
        SavedFleet {
            saved_at_s: 1_700_000_000,
            pools: vec![pool("m", Role::Aggregated, b"abc"), pool("n", Role::Prefill, b"")],
        }
    }

    #[test]
    fn saved_fleet_is_read_as_it_was_written() {
        assert_eq!(SavedFleet::from_bytes(&fleet().to_bytes()), Ok(fleet()));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_refused() {
        let bytes = fleet().to_bytes();
        for at in 0..bytes.len() {
            assert!(SavedFleet::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(SavedFleet::from_bytes(&damaged).is_err(), "changed at {at}");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(matches!(
            SavedFleet::from_bytes(&longer),
            Err(SavedError::Length { .. })
        ));
    }

    #[test]
    fn fuzz_of_saved_fleets() {
        let body = fleet().to_bytes().split_off(HEADER_BYTES);
        wardrop_mutation::run("saved fleets", &[body], |input, _| {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(VERSION.to_le_bytes());
            bytes.extend((input.len() as u64).to_le_bytes());
            bytes.extend(xxh3_64(input).to_le_bytes());
            bytes.extend(input);
            if let Ok(read) = SavedFleet::from_bytes(&bytes) {
                assert_eq!(SavedFleet::from_bytes(&read.to_bytes()), Ok(read));
            }
        });
    }

    proptest! {
        /// A body with a correct checksum and random content is refused or read, without a panic.
        #[test]
        fn any_body_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..200, byte: u8) {
            let sealed = |body: &[u8]| {
                let mut bytes = MAGIC.to_vec();
                bytes.extend(VERSION.to_le_bytes());
                bytes.extend((body.len() as u64).to_le_bytes());
                bytes.extend(xxh3_64(body).to_le_bytes());
                bytes.extend(body);
                bytes
            };
            let _ = SavedFleet::from_bytes(&sealed(&body));
            let mut changed = fleet().to_bytes().split_off(HEADER_BYTES);
            let at = at % changed.len();
            changed[at] = byte;
            let _ = SavedFleet::from_bytes(&sealed(&changed));
        }
    }
}
