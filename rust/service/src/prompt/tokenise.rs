//! The tokeniser of a model, loaded as Dynamo loads it.
//!
//! The implementations and the exact prefix cache are those of the crate `dynamo-tokenizers`, in the version of Dynamo 1.6.1. The
//! cache keeps the ids of a text up to each special token, so the old turns of a conversation are tokenised once. A caller that leaves
//! ends the work inside a text, see [`super::stoppable`].
//!
//! Complexity: O(bytes of the text); with the cache, O(bytes after the last known special token).
//! The cache has one limit in bytes for all models.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynamo_renderer::RenderedPrompt;
use dynamo_tokenizers::traits::Tokenizer;
use dynamo_tokenizers::{CachedTokenizer, FastTokenizer, SharedTokenizerCache, TikTokenTokenizer};

use super::Abstention;
use super::card::Backend;
use super::stoppable::{Stoppable, StoppableHuggingFace};

/// Text to token ids for one model.
pub(crate) struct Tokeniser {
    /// Tokeniser of the crate, behind its prefix cache where that is on.
    tokenizer: Arc<dyn Tokenizer>,
}

/// The prefix cache of all models, and the part of it that one tokeniser owns.
#[derive(Clone)]
pub(crate) struct PrefixCache {
    /// Shared storage; its limit holds for all models together.
    pub shared: SharedTokenizerCache,
    /// Number of the tokeniser in the cache. It is never used twice, because files under one name may change.
    pub namespace: u64,
}

/// File of a tokeniser, by its format.
enum TokeniserFile {
    HuggingFace(PathBuf),
    Tiktoken(PathBuf),
}

impl Tokeniser {
    /// Finds and loads the tokeniser in a model folder; `None` when the folder has none.
    ///
    /// # Errors
    /// A text that names the file and the fault.
    pub fn from_folder(folder: &Path, backend: Backend, cache: &PrefixCache) -> Result<Option<Self>, String> {
        let Some(file) = TokeniserFile::find(folder)? else {
            return Ok(None);
        };
        let (tokenizer, marks) = file.load(backend)?;
        if cache.shared.max_memory_bytes() == 0 {
            return Ok(Some(Self { tokenizer }));
        }
        let namespace = cache.namespace.to_le_bytes();
        let cached =
            CachedTokenizer::new_with_cache(tokenizer.clone(), marks, cache.shared.clone(), &namespace);
        let tokenizer = match cached {
            Ok(cached) => Arc::new(cached.with_extend(true)),
            // A tokeniser that cannot be cut at special tokens works without the cache.
            Err(_) => tokenizer,
        };
        Ok(Some(Self { tokenizer }))
    }

    /// Ids of a rendered prompt, without special tokens around it.
    ///
    /// # Errors
    /// [`Abstention::TokeniserError`].
    pub fn encode_prompt(&self, prompt: &RenderedPrompt) -> Result<Vec<u32>, Abstention> {
        let Some(segments) = prompt.encode_segments() else {
            return self.encode(prompt.as_str());
        };
        let encoding = self.tokenizer.encode_segments(&segments);
        encoding
            .map(|encoding| encoding.token_ids().to_vec())
            .map_err(|_| Abstention::TokeniserError)
    }

    /// Ids of a text, without special tokens around it.
    ///
    /// # Errors
    /// [`Abstention::TokeniserError`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Abstention> {
        // Tokenisers disagree about U+0000, so Dynamo removes it.
        let encoding = if text.contains('\0') {
            self.tokenizer.encode(&text.replace('\0', ""))
        } else {
            self.tokenizer.encode(text)
        };
        encoding
            .map(|encoding| encoding.token_ids().to_vec())
            .map_err(|_| Abstention::TokeniserError)
    }
}

impl TokeniserFile {
    /// The file in Dynamo's order: `tokenizer.json`, `tiktoken.model`, the only file with the
    /// ending `.tiktoken`.
    ///
    /// # Errors
    /// The folder cannot be read, or several files have this ending.
    fn find(folder: &Path) -> Result<Option<Self>, String> {
        let huggingface = folder.join("tokenizer.json");
        if huggingface.exists() {
            return Ok(Some(Self::HuggingFace(huggingface)));
        }
        let tiktoken = folder.join("tiktoken.model");
        if tiktoken.exists() {
            return Ok(Some(Self::Tiktoken(tiktoken)));
        }
        let unreadable = |error: std::io::Error| format!("{}: {error}", folder.display());
        let mut found = None;
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let place = entry.map_err(unreadable)?.path();
            if place.extension().is_some_and(|extension| extension == "tiktoken")
                && found.replace(place).is_some()
            {
                return Err(format!(
                    "{}: got several .tiktoken files, expected one",
                    folder.display()
                ));
            }
        }
        Ok(found.map(Self::Tiktoken))
    }

    /// The tokeniser, and the special tokens behind which a text can be cut.
    fn load(self, backend: Backend) -> Result<(Arc<dyn Tokenizer>, Vec<String>), String> {
        match self {
            Self::HuggingFace(place) => load_huggingface(&place, backend),
            Self::Tiktoken(place) => {
                let wrong = |why: String| format!("{}: {why}", place.display());
                let path = place
                    .to_str()
                    .ok_or_else(|| wrong("the path is not UTF-8".into()))?;
                let tokenizer =
                    TikTokenTokenizer::from_file_auto(path).map_err(|error| wrong(format!("{error:#}")))?;
                let marks = tokenizer.special_tokens().to_vec();
                Ok((Arc::new(Stoppable::new(Arc::new(tokenizer))), marks))
            }
        }
    }
}

/// Loads a `tokenizer.json`, with special tokens from the configuration files beside it.
///
/// A model that asks for `fastokens` gets the other implementation when that crate cannot read the
/// file; the ids are the same.
///
/// # Errors
/// A text that names the file and the fault.
fn load_huggingface(place: &Path, backend: Backend) -> Result<(Arc<dyn Tokenizer>, Vec<String>), String> {
    let wrong = |why: String| format!("{}: {why}", place.display());
    let mut tokenizer = tokenizers::Tokenizer::from_file(place).map_err(|error| wrong(error.to_string()))?;
    if let Some(folder) = place.parent() {
        dynamo_tokenizers::hf::merge_special_tokens_from_config(&mut tokenizer, folder);
    }
    // A file may carry the truncation and padding of its training run, which would cut a prompt.
    tokenizer
        .with_truncation(None)
        .map_err(|error| wrong(error.to_string()))?;
    tokenizer.with_padding(None);
    let added = tokenizer.get_added_tokens_decoder();
    let mut marks: Vec<String> = added
        .values()
        .filter(|token| token.special)
        .map(|token| token.content.clone())
        .collect();
    marks.sort();
    marks.dedup();
    if backend == Backend::Fastokens
        && let Some(path) = place.to_str()
        && let Ok(fast) = FastTokenizer::from_file(path)
    {
        return Ok((Arc::new(Stoppable::new(Arc::new(fast))), marks));
    }
    Ok((Arc::new(StoppableHuggingFace::new(tokenizer)), marks))
}
