//! Settings of the decision records.
//!
//! The writer of the records is the module `records`. Its memory and its disk space are bounded by
//! the limits here; beyond the limit of all files, the oldest file is removed.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use wardrop_core::HashKey;

use crate::ServiceError;

/// Smallest limit of one file, in bytes. A smaller file would hold little more than the records of
/// a few requests.
const MIN_FILE_BYTES: u64 = 4096;
/// Largest limit of all files, in bytes.
const MAX_ALL_BYTES: u64 = 1 << 50;
/// Hexadecimal digits of a key.
const KEY_DIGITS: usize = 32;

/// Where the decision records go, and how much room they may take.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordOptions {
    /// Folder of the files. The first record makes the folder when its parent exists.
    pub dir: PathBuf,
    /// Largest size of one file, in bytes; at least 4096.
    #[serde(default = "file_bytes")]
    pub file_bytes: u64,
    /// Largest size of all files of the folder together, in bytes; at least twice `file_bytes`.
    #[serde(default = "all_bytes")]
    pub all_bytes: u64,
    /// File with the key of the block ids, 32 hexadecimal digits. `None` draws a new key at each start.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

/// Default size of one file: 64 MiB.
fn file_bytes() -> u64 {
    64 << 20
}

/// Default size of all files together: 1 GiB.
fn all_bytes() -> u64 {
    1 << 30
}

impl RecordOptions {
    /// Checks the limits, the folder and the key file. Writes nothing, so that a configuration can be checked beside a running router.
    pub(crate) fn check(&self) -> Result<(), ServiceError> {
        let refused = |text: String| Err(ServiceError::Config(text));
        if !(MIN_FILE_BYTES..=MAX_ALL_BYTES).contains(&self.file_bytes) {
            return refused(format!(
                "records.file_bytes: got {}, expected {MIN_FILE_BYTES} to {MAX_ALL_BYTES}",
                self.file_bytes
            ));
        }
        if !(self.file_bytes.saturating_mul(2)..=MAX_ALL_BYTES).contains(&self.all_bytes) {
            return refused(format!(
                "records.all_bytes: got {}, expected at least twice records.file_bytes, which is {}, and at most {MAX_ALL_BYTES}",
                self.all_bytes, self.file_bytes
            ));
        }
        let parent = self.dir.parent().filter(|path| !path.as_os_str().is_empty());
        if !(self.dir.is_dir() || !self.dir.exists() && parent.is_none_or(Path::is_dir)) {
            return refused(format!(
                "records.dir: got {}, expected a folder, or a new name in a folder that exists",
                self.dir.display()
            ));
        }
        self.key().map(drop)
    }

    /// The key of the block ids: from the key file, or new random bytes.
    ///
    /// Under one key, equal blocks have equal ids in every file, so records of several runs can be
    /// compared. Under another key the ids are unrelated, and no id reveals the tokens of its
    /// block.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for a file that cannot be read or holds no key, [`ServiceError::Io`] without random bytes.
    pub(crate) fn key(&self) -> Result<HashKey, ServiceError> {
        let mut bytes = [0; KEY_DIGITS / 2];
        let Some(path) = &self.key_file else {
            getrandom::fill(&mut bytes).map_err(|error| ServiceError::Io {
                what: "drawing the key of the records".into(),
                source: error.into(),
            })?;
            return Ok(HashKey::new(bytes));
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            ServiceError::Config(format!(
                "records.key_file: cannot read {}: {error}",
                path.display()
            ))
        })?;
        let digits = text.trim();
        if digits.len() != KEY_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            // The text may be a key with a typing error, so the error does not repeat it.
            return Err(ServiceError::Config(format!(
                "records.key_file: got {} characters in {}, expected {KEY_DIGITS} hexadecimal digits; make them with: openssl rand -hex 16",
                digits.len(),
                path.display()
            )));
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).expect("hexadecimal digits must be UTF-8");
            *byte = u8::from_str_radix(pair, 16).expect("both digits must be hexadecimal");
        }
        Ok(HashKey::new(bytes))
    }
}
