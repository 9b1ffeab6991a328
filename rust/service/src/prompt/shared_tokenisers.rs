//! The tokenisers in use, one for each set of files.
//!
//! A fleet may serve one set of files under many model names. A tokeniser takes megabytes, so models with equal files share one
//! tokeniser, and [`MAX_TOKENISERS`] bounds the tokenisers of the process. A lookup costs O(tokenisers in use).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use dynamo_tokenizers::SharedTokenizerCache;
use parking_lot::Mutex;

use super::card::Backend;
use super::tokenise::{PrefixCache, Tokeniser};

/// Most tokenisers at one time. A model beyond this limit is served without knowledge of its prompts.
pub(crate) const MAX_TOKENISERS: usize = 64;

/// The files that a tokeniser is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokeniserFiles {
    /// Folder of the files.
    pub folder: PathBuf,
    /// Checksums of the files, as the model cards state them. Without checksums, two readings may find different files.
    pub checksums: Vec<String>,
    /// Implementation of the tokeniser.
    pub backend: Backend,
}

/// The place of one tokeniser. The lock is held while the files are read, so that equal files are read once.
type Slot = Mutex<Weak<Tokeniser>>;

/// Hands out tokenisers, and reads each set of files once while some model uses the tokeniser.
pub(crate) struct SharedTokenisers {
    /// Prefix cache of all tokenisers, with one limit in bytes.
    prefixes: SharedTokenizerCache,
    /// Namespace of the next tokeniser in the cache; never reused.
    next_namespace: AtomicU64,
    /// Places of the tokenisers. Held for a lookup, never while files are read.
    slots: Mutex<Slots>,
}

/// Places of all tokenisers in use; at most [`MAX_TOKENISERS`] together.
#[derive(Default)]
struct Slots {
    /// Tokenisers of files with checksums.
    shared: HashMap<TokeniserFiles, Arc<Slot>>,
    /// Tokenisers of files without checksums.
    single: Vec<Arc<Slot>>,
}

impl SharedTokenisers {
    /// No tokenisers yet.
    ///
    /// # Arguments
    /// * `cache_bytes` - limit of the prefix cache of all tokenisers together; 0 for none.
    pub fn new(cache_bytes: usize) -> Self {
        Self {
            prefixes: SharedTokenizerCache::new(cache_bytes),
            next_namespace: AtomicU64::new(0),
            slots: Mutex::default(),
        }
    }

    /// The tokeniser of these files; `None` when the folder holds none. Takes seconds for large files that no model uses yet.
    ///
    /// # Errors
    /// A text that names the file and the fault, or the limit that is reached.
    pub fn load(&self, files: &TokeniserFiles) -> Result<Option<Arc<Tokeniser>>, String> {
        let slot = self.slots.lock().place(files)?;
        let mut tokeniser = slot.lock();
        if let Some(known) = tokeniser.upgrade() {
            return Ok(Some(known));
        }
        let found = self.read(&files.folder, files.backend)?.map(Arc::new);
        if let Some(found) = &found {
            *tokeniser = Arc::downgrade(found);
        }
        Ok(found)
    }

    /// Reads a tokeniser from its files, with a namespace of its own in the cache.
    fn read(&self, folder: &Path, backend: Backend) -> Result<Option<Tokeniser>, String> {
        let cache = PrefixCache {
            shared: self.prefixes.clone(),
            namespace: self.next_namespace.fetch_add(1, Ordering::Relaxed),
        };
        Tokeniser::from_folder(folder, backend, &cache)
    }
}

impl Slots {
    /// The slot of these files. Unused slots are removed first.
    ///
    ///
    /// # Errors
    /// The limit of tokenisers is reached; the text names it and the way out.
    fn place(&mut self, files: &TokeniserFiles) -> Result<Arc<Slot>, String> {
        self.shared.retain(|_, slot| is_used(slot));
        self.single.retain(is_used);
        if let Some(slot) = self.shared.get(files) {
            return Ok(slot.clone());
        }
        if self.shared.len() + self.single.len() >= MAX_TOKENISERS {
            return Err(format!(
                "{}: got one more tokeniser than the {MAX_TOKENISERS} that may be loaded at once; take models out of the fleet, or let \
                 models with equal files state equal checksums",
                files.folder.display()
            ));
        }
        let slot = Arc::new(Slot::default());
        if files.checksums.is_empty() {
            self.single.push(slot.clone());
        } else {
            self.shared.insert(files.clone(), slot.clone());
        }
        Ok(slot)
    }
}

/// Whether some thread reads the files of a slot now, or some model uses its tokeniser.
fn is_used(slot: &Arc<Slot>) -> bool {
    Arc::strong_count(slot) > 1
        || slot
            .try_lock()
            .is_none_or(|tokeniser| tokeniser.strong_count() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"b":1,"?":2},"unk_token":"?"}}"#;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("wardrop-tokenisers-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
        std::fs::write(folder.join("tokenizer.json"), WORDS).expect("a temporary file can be written");
        folder
    }

    fn files(folder: &Path, checksum: Option<&str>) -> TokeniserFiles {
        TokeniserFiles {
            folder: folder.to_path_buf(),
            checksums: checksum.map(str::to_owned).into_iter().collect(),
            backend: Backend::Default,
        }
    }

    fn load(all: &SharedTokenisers, files: &TokeniserFiles) -> Arc<Tokeniser> {
        all.load(files)
            .expect("the files can be read")
            .expect("the folder has a tokeniser")
    }

    #[test]
    fn equal_files_share_a_tokeniser_and_other_files_do_not() {
        let folder = folder("share");
        let all = SharedTokenisers::new(1 << 20);
        let first = load(&all, &files(&folder, Some("x")));
        assert!(Arc::ptr_eq(&first, &load(&all, &files(&folder, Some("x")))));
        assert!(!Arc::ptr_eq(&first, &load(&all, &files(&folder, Some("y")))));
        let unknown = load(&all, &files(&folder, None));
        assert!(!Arc::ptr_eq(&unknown, &load(&all, &files(&folder, None))));
        std::fs::remove_dir_all(folder).expect("the folder can be removed");
    }

    #[test]
    fn a_tokeniser_ends_with_its_last_model_and_makes_room() {
        let folder = folder("room");
        let all = SharedTokenisers::new(0);
        let mut held: Vec<_> = (0..MAX_TOKENISERS)
            .map(|at| load(&all, &files(&folder, Some(&at.to_string()))))
            .collect();
        let Err(problem) = all.load(&files(&folder, None)) else {
            panic!("one more tokeniser than the limit was loaded");
        };
        assert!(problem.contains(&MAX_TOKENISERS.to_string()), "{problem}");
        // A model with known files needs no room.
        load(&all, &files(&folder, Some("0")));
        held.pop();
        load(&all, &files(&folder, None));
        std::fs::remove_dir_all(folder).expect("the folder can be removed");
    }
}
