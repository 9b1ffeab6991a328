//! One worker's feed of KV events: frame order, restarts of the engine, and conversion to the core's events.
//!
//! ```text
//! frame ─▶ decode ─▶ order: next, gap or restart ─▶ each event: right group, block size, adapter? ─▶ hash ─▶ CacheChange
//! ```
//!
//! Engines send token ids, and the index knows hashes. A feed hashes the tokens of each block under the scope
//! of the event: its adapter and its cache salt. vLLM names the salt only in the first block of a prompt, so
//! the feed remembers which blocks inherit which salt.
//!
//! The feed does no I/O and asks for nothing: the caller replays missing frames, and decides what a gap means
//! for the worker.
//!
//! Memory: at most 16 MiB of salts and 64 kinds of groups. O(bytes of the frame) per frame.
//!
//! Who calls: the service's `feed::engine` and the bindings' `EngineFeed`, each with one feed per
//! worker.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use wardrop_core::{
    BlockHasher, EngineHash, Error, HashScope, KvEvent, LocalHash, Router, StoredBlock, Tier, WorkerId,
};

use crate::batch::{Adapter, Event, GroupKind, Stored, decode_batch};
use crate::msgpack::Malformed;

/// Highest number of blocks whose salt is remembered: at most 16 MiB.
const SALTS_MAX: usize = 1 << 18;

/// Highest number of KV cache groups whose kind is remembered. Engines have fewer than ten.
const GROUPS_MAX: usize = 64;

/// Counts of a feed since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken.
    pub frames: u64,
    /// Sequence numbers that never arrived.
    pub missed: u64,
    /// Restarts of the engine: its sequence fell back.
    pub restarts: u64,
    /// Frames refused as malformed.
    pub malformed: u64,
    /// Events skipped because of another block size, KV cache group, type, or an adapter without a name.
    pub skipped: u64,
    /// Events skipped because a field could not be used.
    pub unusable: u64,
}

/// One change of a worker's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheChange {
    /// An event for [`Router::apply`].
    Event(KvEvent),
    /// Blocks that the worker holds, now in another memory too, for [`Router::copy_blocks`].
    Copied {
        /// Hashes by which the engine refers to the blocks.
        blocks: Vec<EngineHash>,
        /// Memory of the copies.
        tier: Tier,
    },
}

impl CacheChange {
    /// Applies the change to the index of a router. O(blocks of the change).
    ///
    /// # Errors
    /// As [`Router::apply`].
    pub fn apply(&self, router: &Router, worker: WorkerId) -> Result<(), Error> {
        match self {
            Self::Event(event) => router.apply(worker, event),
            Self::Copied { blocks, tier } => router.copy_blocks(worker, blocks, *tier),
        }
    }
}

/// Events of one frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrameEvents {
    /// Changes of the worker's cache, in order. After a restart the first one is [`KvEvent::Cleared`].
    pub changes: Vec<CacheChange>,
    /// Sequence numbers missing before this frame.
    pub missed: u64,
    /// Whether the engine restarted.
    pub restarted: bool,
    /// Data-parallel rank that the frame names.
    pub dp_rank: Option<u32>,
}

/// Feed of one worker; the module describes it. A restart of the engine empties everything but the counters.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    /// Sequence number of the last frame. `None` before the first one, from which no frame is missing.
    last: Option<u64>,
    /// Salts of blocks by engine hash. Only the first block of a prompt carries the salt, and its children
    /// inherit it.
    salts: FxHashMap<u64, Arc<str>>,
    /// Whether each KV cache group is an attention group, as stored events report it. A removed event has no kind.
    groups: FxHashMap<u64, bool>,
    /// Counts since the feed began.
    pub counters: Counters,
}

impl Feed {
    /// A feed before its first frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a frame: its sequence number and its payload.
    ///
    /// A number at or below the last one means a restart: engines start again at 0 and do not report it. The
    /// worker then holds nothing any more. `hasher` hashes the blocks and must be the router's own, since the
    /// frames carry tokens. Blocks of another size than the hasher's are skipped.
    ///
    /// # Errors
    /// [`Malformed`] for a frame that cannot be decoded. Such a frame changes only a counter; its
    /// sequence number counts as missed later.
    pub fn take(
        &mut self,
        hasher: &BlockHasher,
        sequence: u64,
        payload: &[u8],
    ) -> Result<FrameEvents, Malformed> {
        let batch = decode_batch(payload).inspect_err(|_| self.counters.malformed += 1)?;
        let restarted = self.last.is_some_and(|last| sequence <= last);
        let missed = match self.last {
            Some(last) if !restarted => sequence - last - 1,
            _ => 0,
        };
        self.last = Some(sequence);
        self.counters.frames += 1;
        self.counters.missed += missed;
        self.counters.restarts += u64::from(restarted);
        let mut taken = FrameEvents {
            changes: Vec::with_capacity(batch.events.len()),
            missed,
            restarted,
            dp_rank: batch.dp_rank,
        };
        if restarted {
            self.salts.clear();
            self.groups.clear();
            taken.changes.push(CacheChange::Event(KvEvent::Cleared));
        }
        for event in batch.events {
            if let Event::Unusable(_) = event {
                self.counters.unusable += 1;
                continue;
            }
            match self.convert(hasher, event) {
                Some(change) => taken.changes.push(change),
                None => self.counters.skipped += 1,
            }
        }
        Ok(taken)
    }

    /// Whether the index holds the blocks of a KV cache group. Only attention over the whole prompt makes a
    /// prefix reusable.
    ///
    /// A named kind is remembered for the removed events of the group. While no kind was named, group 0 counts.
    fn is_indexed(&mut self, group: u64, kind: GroupKind) -> bool {
        let is_attention = match kind {
            GroupKind::Unnamed => {
                let unnamed = group == 0 && self.groups.is_empty();
                return self.groups.get(&group).copied().unwrap_or(unnamed);
            }
            GroupKind::Attention => true,
            GroupKind::Other => false,
        };
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&group) {
            return false; // without a remembered kind, its removed events have none
        }
        self.groups.insert(group, is_attention);
        is_attention
    }

    /// Converts one event; `None` for a skipped one.
    ///
    /// A copy needs neither tokens nor a block size: the index finds its blocks by their engine hashes.
    fn convert(&mut self, hasher: &BlockHasher, event: Event) -> Option<CacheChange> {
        match event {
            Event::Stored(stored) => {
                if !self.is_indexed(stored.group, stored.kind) || stored.adapter == Adapter::Numbered {
                    return None;
                }
                if stored.is_copy() {
                    return Some(CacheChange::Copied {
                        blocks: stored.hashes,
                        tier: stored.tier,
                    });
                }
                let has_size = stored.block_size == hasher.block_size();
                has_size.then(|| CacheChange::Event(self.stored(hasher, *stored)))
            }
            Event::Removed { hashes, tier, group } => {
                let is_indexed = self.is_indexed(group, GroupKind::Unnamed);
                is_indexed.then_some(CacheChange::Event(KvEvent::Removed { blocks: hashes, tier }))
            }
            Event::Cleared => {
                self.salts.clear();
                Some(CacheChange::Event(KvEvent::Cleared))
            }
            Event::Other | Event::Unusable(_) => None,
        }
    }

    /// Hashes the blocks of a stored event under their scope.
    ///
    /// `SGLang` reports the salt in a field of its own, with every event. Otherwise the salt is remembered
    /// for all blocks of the event, since a later event may continue below any of them. A full memory of
    /// salts is emptied as a whole: chains that continue afterwards lose their salt, and their blocks match
    /// nothing.
    fn stored(&mut self, hasher: &BlockHasher, stored: Stored) -> KvEvent {
        let reported = stored.cache_salt.as_deref().filter(|salt| !salt.is_empty());
        let salt = reported.map_or_else(|| self.salt_of(&stored), |salt| Some(Arc::from(salt)));
        if let (Some(salt), None) = (&salt, reported) {
            if self.salts.len() + stored.hashes.len() > SALTS_MAX {
                self.salts.clear();
            }
            self.salts
                .extend(stored.hashes.iter().map(|hash| (hash.0, Arc::clone(salt))));
        }
        let lora_name = match &stored.adapter {
            Adapter::Named(name) => Some(name.as_str()),
            Adapter::Base | Adapter::Numbered => None,
        };
        let scope = HashScope {
            lora_name,
            cache_namespace: salt.as_deref(),
        };
        let mut locals = hasher.local_hashes(&stored.tokens, &scope);
        let first_is_salt = salt.is_some() && reported.is_none() && stored.parent.is_none();
        let size = hasher.block_size() as usize;
        for (at, key) in stored
            .extra
            .iter()
            .enumerate()
            .skip(usize::from(first_is_salt))
            .take(stored.hashes.len())
        {
            if !key.is_empty() && at < locals.len() {
                // A multimodal object, such as an image: give its block a hash that no text block has.
                let own = HashScope {
                    lora_name,
                    cache_namespace: Some(key),
                };
                // The key takes the place of a cache salt in the scope. The rotation separates this hash from
                // a text block under a cache salt of the same letters.
                let hash = hasher.local_hashes(&stored.tokens[at * size..(at + 1) * size], &own);
                locals[at] = LocalHash(hash[0].0.rotate_left(1));
            }
        }
        let blocks = stored.hashes.into_iter().zip(locals);
        let blocks = blocks
            .map(|(engine_hash, local_hash)| StoredBlock {
                engine_hash,
                local_hash,
            })
            .collect();
        KvEvent::Stored {
            parent: stored.parent,
            blocks,
            tier: stored.tier,
        }
    }

    /// Salt of a chain in vLLM's form: in the key of its first block, or inherited from its parent.
    ///
    /// The key of a block joins adapter and salt, so the adapter's name is taken off its front. Dynamo puts a
    /// prefix of its own before a salt.
    fn salt_of(&self, stored: &Stored) -> Option<Arc<str>> {
        if let Some(parent) = stored.parent {
            return self.salts.get(&parent.0).cloned();
        }
        let key = stored.extra.first().filter(|key| !key.is_empty())?;
        let own = match &stored.adapter {
            Adapter::Named(lora_name) => key.strip_prefix(lora_name.as_str()),
            Adapter::Base | Adapter::Numbered => None,
        };
        let salt = own.map_or(key.as_str(), |rest| rest.trim_start_matches('\u{1f}'));
        Some(Arc::from(salt.strip_prefix("dynamo-cache-salt:").unwrap_or(salt)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wardrop_core::{HashKey, HashMode, local_hashes};

    use super::*;

    /// Array form of a batch: `[1.5, [["BlockStored", [7, 8], nil, [1, 2, 3, 4], 2, nil, "GPU"],
    /// ["BlockRemoved", [7], "GPU"]], 3]`
    const ARRAYS: &[u8] = b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x92\x97\xabBlockStored\x92\x07\x08\xc0\x94\x01\x02\x03\x04\x02\xc0\xa3GPU\x93\xacBlockRemoved\x91\x07\xa3GPU\x03";

    fn hasher(block_size: u32) -> BlockHasher {
        BlockHasher::new(HashMode::Xxh3, block_size)
    }

    #[test]
    fn the_array_form_is_decoded() {
        let mut feed = Feed::new();
        let taken = feed.take(&hasher(2), 0, ARRAYS).unwrap();
        let locals = local_hashes(&[1, 2, 3, 4], 2, &HashScope::default());
        let block = |name, local_hash| StoredBlock {
            engine_hash: EngineHash(name),
            local_hash,
        };
        let stored = KvEvent::Stored {
            parent: None,
            blocks: vec![block(7, locals[0]), block(8, locals[1])],
            tier: Tier::Device,
        };
        let removed = KvEvent::Removed {
            blocks: vec![EngineHash(7)],
            tier: Tier::Device,
        };
        assert_eq!(taken.changes, [stored, removed].map(CacheChange::Event));
    }

    #[test]
    fn a_sequence_that_falls_back_is_a_restart() {
        let mut feed = Feed::new();
        feed.take(&hasher(2), 4, ARRAYS).unwrap();
        let gap = feed.take(&hasher(2), 7, ARRAYS).unwrap();
        assert_eq!((gap.missed, gap.restarted), (2, false));
        let again = feed.take(&hasher(2), 0, ARRAYS).unwrap();
        assert_eq!((again.missed, again.restarted), (0, true));
        assert_eq!(again.changes[0], CacheChange::Event(KvEvent::Cleared));
        assert_eq!((feed.counters.missed, feed.counters.restarts), (2, 1));
    }

    #[test]
    fn events_of_another_block_size_are_skipped() {
        let mut feed = Feed::new();
        assert_eq!(feed.take(&hasher(16), 0, ARRAYS).unwrap().changes.len(), 1);
        assert_eq!(feed.counters.skipped, 1);
    }

    #[test]
    fn every_truncated_frame_is_refused_and_changes_nothing() {
        let mut feed = Feed::new();
        for len in 0..ARRAYS.len() - 1 {
            assert!(feed.take(&hasher(2), 1, &ARRAYS[..len]).is_err(), "{len} bytes");
        }
        assert_eq!((feed.counters.frames, feed.last), (0, None));
        assert!(
            feed.take(&hasher(2), 1, &vec![0xC0; crate::FRAME_BYTES_MAX + 1])
                .is_err()
        );
    }

    #[test]
    fn a_keyed_router_gets_keyed_hashes_of_the_same_tokens() {
        let keyed = BlockHasher::new(HashMode::Keyed(HashKey::new([9; 16])), 2);
        let taken = Feed::new().take(&keyed, 0, ARRAYS).unwrap();
        let CacheChange::Event(KvEvent::Stored { blocks, .. }) = &taken.changes[0] else {
            panic!("the first event stores");
        };
        let expected = keyed.local_hashes(&[1, 2, 3, 4], &HashScope::default());
        assert_eq!([blocks[0].local_hash, blocks[1].local_hash], expected[..]);
        assert_ne!(expected, local_hashes(&[1, 2, 3, 4], 2, &HashScope::default()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_bytes_make_the_reader_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            places in proptest::collection::vec((0..ARRAYS.len(), any::<u8>()), 0..6),
        ) {
            let mut feed = Feed::new();
            drop(feed.take(&hasher(2), 0, &bytes));
            bytes.splice(0..0, *b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x91");
            drop(feed.take(&hasher(2), 1, &bytes));
            let mut near = ARRAYS.to_vec();
            for (at, byte) in places {
                near[at] = byte;
            }
            drop(feed.take(&hasher(2), 2, &near));
        }
    }
}
