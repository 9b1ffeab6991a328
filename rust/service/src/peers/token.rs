//! The secret that the routers of one fleet share: a follower shows it, and the followed router compares it.
//!
//! The secret is the first line of a file, which is read for each stream. A new secret therefore needs no restart. Comparing takes the same
//! time for every secret of one length. The secret travels as clear text; an attacker who reads the network can take it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use subtle::ConstantTimeEq;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use crate::ServiceError;

/// Metadata of a call that carries the secret.
const AUTHORIZATION: &str = "authorization";
/// Scheme in front of the secret.
const SCHEME: &str = "Bearer ";
/// Shortest secret, in bytes: 128 bits in hexadecimal digits are twice as long.
const MIN_BYTES: usize = 16;
/// Longest secret, in bytes. The secret is a field of an HTTP head.
const MAX_BYTES: usize = 4096;

/// The file with the secret.
pub(super) struct TokenFile {
    path: PathBuf,
    /// Whether the file was not usable at the last call of a follower.
    was_unusable: AtomicBool,
}

impl TokenFile {
    /// The file at a path, once its secret is usable.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the file and what is wrong with it, and nothing of its content.
    pub fn open(path: &Path) -> Result<Self, ServiceError> {
        let file = Self {
            path: path.to_owned(),
            was_unusable: AtomicBool::new(false),
        };
        file.value().map_err(|wrong| {
            ServiceError::Config(format!(
                "peers.token_file: got {}, {wrong}; expected one line of {MIN_BYTES} to {MAX_BYTES} visible ASCII characters, \
                 the same on all routers",
                path.display()
            ))
        })?;
        Ok(file)
    }

    /// The value of the metadata, with the secret that the file has now.
    ///
    /// # Errors
    /// What is wrong with the file, without its content.
    pub fn value(&self) -> Result<MetadataValue<Ascii>, String> {
        let text =
            std::fs::read_to_string(&self.path).map_err(|error| format!("which cannot be read: {error}"))?;
        let secret = text.lines().next().unwrap_or("").trim();
        if !(MIN_BYTES..=MAX_BYTES).contains(&secret.len())
            || !secret.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(format!(
                "whose first line is no secret (it has {} bytes)",
                secret.len()
            ));
        }
        let mut value: MetadataValue<Ascii> = format!("{SCHEME}{secret}")
            .parse()
            .map_err(|_| "whose first line is no secret".to_owned())?;
        // Keeps the secret out of debug texts.
        value.set_sensitive(true);
        Ok(value)
    }

    /// Whether a call carries the secret. While the file cannot be read, no call does.
    pub fn is_in(&self, metadata: &MetadataMap) -> bool {
        let shown = metadata
            .get(AUTHORIZATION)
            .map_or(&b""[..], |value| value.as_encoded_bytes());
        match self.value() {
            Ok(expected) => {
                self.was_unusable.store(false, Ordering::Relaxed);
                expected.as_encoded_bytes().ct_eq(shown).into()
            }
            Err(error) => {
                // Callers without the secret must not fill the log.
                if !self.was_unusable.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "no router may follow this one: peers.token_file is not usable");
                }
                false
            }
        }
    }

    /// Adds the secret to the metadata of a call.
    ///
    /// # Errors
    /// As [`TokenFile::value`].
    pub fn show(&self, metadata: &mut MetadataMap) -> Result<(), String> {
        metadata.insert(AUTHORIZATION, self.value()?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_the_first_line_and_is_never_shown() {
        let folder = std::env::temp_dir().join(format!("wardrop-token-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("token");
        for wrong in ["", "short\n", "sixteen bytes, but with blanks"] {
            std::fs::write(&path, wrong).unwrap();
            let error = TokenFile::open(&path).err().unwrap().to_string();
            assert!(error.contains("peers.token_file"), "{error}");
            assert!(wrong.is_empty() || !error.contains(wrong.trim()), "{error}");
        }
        std::fs::write(&path, "0123456789abcdef\nsecond line\n").unwrap();
        let file = TokenFile::open(&path).unwrap();
        let mut metadata = MetadataMap::new();
        assert!(!file.is_in(&metadata), "a call without a secret");
        file.show(&mut metadata).unwrap();
        assert!(file.is_in(&metadata));
        assert!(!format!("{metadata:?}").contains("0123456789abcdef"));
        std::fs::write(&path, "0123456789abcdeg").unwrap();
        assert!(!file.is_in(&metadata), "the secret changed");
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(!file.is_in(&metadata), "without its file every call is refused");
    }
}
