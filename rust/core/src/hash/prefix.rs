//! Hashes of a growing prompt, without hashing any block twice.
//!
//! A conversation grows by a turn at a time, and each turn is a request. Its caller keeps one
//! [`PromptHashes`] per conversation, appends the new tokens, and routes with both kinds of hashes.

use super::{BlockHasher, HashScope, LocalHash, ScopedHasher, SequenceHash};

/// Hashes of a prompt so far. Appending costs O(new tokens), regardless of the length of the prompt.
///
/// ```
/// use wardrop_core::{BlockHasher, HashMode, HashScope, PromptHashes};
///
/// let hasher = BlockHasher::new(HashMode::Xxh3, 16);
/// let mut prompt = PromptHashes::new(&hasher, &HashScope::default());
/// prompt.extend(&[7; 20]);
/// assert_eq!((prompt.locals().len(), prompt.tokens()), (1, 20)); // four tokens wait for a full block
/// prompt.extend(&[7; 12]);
/// assert_eq!(prompt.locals().len(), 2);
/// ```
#[derive(Clone, Debug)]
pub struct PromptHashes {
    /// Hasher of the prompt.
    hasher: BlockHasher,
    /// Hasher of the prompt's scope.
    scoped: ScopedHasher,
    /// Local hashes of the full blocks.
    locals: Vec<LocalHash>,
    /// Sequence hashes of the full blocks.
    sequence: Vec<SequenceHash>,
    /// Tokens after the last full block: fewer than a block.
    tail: Vec<u32>,
}

impl PromptHashes {
    /// An empty prompt in a scope.
    pub fn new(hasher: &BlockHasher, scope: &HashScope<'_>) -> Self {
        Self {
            scoped: hasher.scoped(scope),
            hasher: hasher.clone(),
            locals: Vec::new(),
            sequence: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// Appends tokens.
    pub fn extend(&mut self, mut tokens: &[u32]) {
        let size = self.scoped.block_size() as usize;
        if !self.tail.is_empty() {
            let (first, rest) = tokens.split_at(tokens.len().min(size - self.tail.len()));
            self.tail.extend_from_slice(first);
            tokens = rest;
            if self.tail.len() < size {
                return;
            }
            self.scoped
                .extend(&self.tail, &mut self.locals, &mut self.sequence);
            self.tail.clear();
        }
        self.scoped.extend(tokens, &mut self.locals, &mut self.sequence);
        self.tail
            .extend_from_slice(&tokens[tokens.len() - tokens.len() % size..]);
    }

    /// Hasher of the prompt.
    pub const fn hasher(&self) -> &BlockHasher {
        &self.hasher
    }

    /// Local hashes of the full blocks.
    pub fn locals(&self) -> &[LocalHash] {
        &self.locals
    }

    /// Sequence hashes of the full blocks.
    pub fn sequence(&self) -> &[SequenceHash] {
        &self.sequence
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.locals.len() * self.scoped.block_size() as usize + self.tail.len()
    }
}
