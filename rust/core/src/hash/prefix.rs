//! A prompt that grows: what was hashed once is not hashed again.

use super::{BlockHasher, HashScope, LocalHash, ScopedHasher, SequenceHash};

/// The hashes of a prompt so far. Appending costs O(new tokens) however long the prompt is.
#[derive(Clone, Debug)]
pub struct PromptHashes {
    hasher: BlockHasher,
    scoped: ScopedHasher,
    locals: Vec<LocalHash>,
    sequence: Vec<SequenceHash>,
    /// Tokens behind the last full block: less than a block.
    tail: Vec<u32>,
}

impl PromptHashes {
    /// An empty prompt in this scope.
    pub fn new(hasher: &BlockHasher, scope: &HashScope<'_>) -> Self {
        Self {
            scoped: hasher.scoped(scope),
            hasher: hasher.clone(),
            locals: Vec::new(),
            sequence: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// Append tokens.
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

    /// How its blocks are hashed.
    pub const fn hasher(&self) -> &BlockHasher {
        &self.hasher
    }

    /// Local hashes of its full blocks.
    pub fn locals(&self) -> &[LocalHash] {
        &self.locals
    }

    /// Sequence hashes of the same blocks.
    pub fn sequence(&self) -> &[SequenceHash] {
        &self.sequence
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.locals.len() * self.scoped.block_size() as usize + self.tail.len()
    }
}
