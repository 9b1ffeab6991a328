//! One worker's feed: order, incarnations, and what its events mean for the index.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use wardrop_core::{HashScope, KvEvent, LocalHash, StoredBlock, local_hashes};

use crate::batch::{Event, Stored, decode_batch};
use crate::msgpack::Malformed;

/// Blocks stored under a salt that are remembered: 16 MiB at most.
const SALTED_MAX: usize = 1 << 18;

/// What a feed went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames taken.
    pub frames: u64,
    /// Sequence numbers that never came.
    pub missed: u64,
    /// Restarts: the sequence fell back.
    pub restarts: u64,
    /// Frames refused.
    pub malformed: u64,
    /// Events of another block size, KV cache group or type: stepped over.
    pub skipped: u64,
}

/// What one frame brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// For [`wardrop_core::Router::apply`], in order. A restart begins with [`KvEvent::Cleared`].
    pub events: Vec<KvEvent>,
    /// Sequence numbers missing before this frame.
    pub missed: u64,
    /// Whether the engine started anew.
    pub restarted: bool,
}

/// See the module. State of one (worker, rank).
#[derive(Clone, Debug)]
pub struct Feed {
    block_size: u32,
    last: Option<u64>,
    /// Salt of blocks whose children inherit it: only the first block of a prompt carries it.
    salted: FxHashMap<u64, Arc<str>>,
    /// See [`Counters`].
    pub counters: Counters,
}

impl Feed {
    /// A feed of blocks of so many tokens.
    pub fn new(block_size: u32) -> Self {
        Self {
            block_size,
            last: None,
            salted: FxHashMap::default(),
            counters: Counters::default(),
        }
    }

    /// Take a frame: its sequence number and its payload. A malformed one changes nothing but a counter; its sequence number
    /// then counts as missed.
    ///
    /// A number at or below the last one is a new incarnation (engines start again at 0 and do not say so): what the worker
    /// held is gone.
    pub fn take(&mut self, sequence: u64, payload: &[u8]) -> Result<Taken, Malformed> {
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
        let mut taken = Taken {
            events: Vec::with_capacity(batch.events.len()),
            missed,
            restarted,
        };
        if restarted {
            self.salted.clear();
            taken.events.push(KvEvent::Cleared);
        }
        for event in batch.events {
            match self.convert(event) {
                Some(event) => taken.events.push(event),
                None => self.counters.skipped += 1,
            }
        }
        Ok(taken)
    }

    fn convert(&mut self, event: Event) -> Option<KvEvent> {
        match event {
            Event::Stored(stored) if stored.group == 0 && stored.block_size == self.block_size => {
                Some(self.stored(stored))
            }
            Event::Removed {
                hashes,
                tier,
                group: 0,
            } => Some(KvEvent::Removed { blocks: hashes, tier }),
            Event::Cleared => {
                self.salted.clear();
                Some(KvEvent::Cleared)
            }
            Event::Stored(_) | Event::Removed { .. } | Event::Other => None,
        }
    }

    fn stored(&mut self, stored: Stored) -> KvEvent {
        let salt = self.salt_of(&stored);
        if let Some(salt) = &salt {
            if self.salted.len() + stored.hashes.len() > SALTED_MAX {
                self.salted.clear();
            }
            self.salted
                .extend(stored.hashes.iter().map(|hash| (hash.0, Arc::clone(salt))));
        }
        let lora_name = stored.lora_name.as_deref();
        let scope = HashScope {
            lora_name,
            cache_namespace: salt.as_deref(),
        };
        let mut locals = local_hashes(&stored.tokens, self.block_size, &scope);
        let first_is_salt = salt.is_some() && stored.parent.is_none();
        let size = self.block_size as usize;
        for (at, key) in stored
            .extra
            .iter()
            .enumerate()
            .skip(usize::from(first_is_salt))
            .take(stored.hashes.len())
        {
            if !key.is_empty() && at < locals.len() {
                // An image, say: a block of its own, which no text prompt equals.
                let own = HashScope {
                    lora_name,
                    cache_namespace: Some(key),
                };
                let hash = local_hashes(&stored.tokens[at * size..(at + 1) * size], self.block_size, &own);
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

    /// The salt of a chain: in the first block's key, or its parent's.
    fn salt_of(&self, stored: &Stored) -> Option<Arc<str>> {
        if let Some(parent) = stored.parent {
            return self.salted.get(&parent.0).cloned();
        }
        let key = stored.extra.first().filter(|key| !key.is_empty())?;
        let own = stored
            .lora_name
            .as_ref()
            .and_then(|lora| key.strip_prefix(lora.as_str()));
        let salt = own.map_or(key.as_str(), |rest| rest.trim_start_matches('\u{1f}'));
        Some(Arc::from(salt.strip_prefix("dynamo-cache-salt:").unwrap_or(salt)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wardrop_core::{EngineHash, Tier};

    use super::*;

    /// `[1.5, [["BlockStored", [7, 8], nil, [1, 2, 3, 4], 2, nil, "GPU"], ["BlockRemoved", [7], "GPU"]], 3]`
    const ARRAYS: &[u8] = b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x92\x97\xabBlockStored\x92\x07\x08\xc0\x94\x01\x02\x03\x04\x02\xc0\xa3GPU\x93\xacBlockRemoved\x91\x07\xa3GPU\x03";

    #[test]
    fn the_array_form_is_read() {
        let mut feed = Feed::new(2);
        let taken = feed.take(0, ARRAYS).unwrap();
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
        assert_eq!(taken.events, [stored, removed]);
    }

    #[test]
    fn a_sequence_that_falls_back_is_a_new_incarnation() {
        let mut feed = Feed::new(2);
        feed.take(4, ARRAYS).unwrap();
        let gap = feed.take(7, ARRAYS).unwrap();
        assert_eq!((gap.missed, gap.restarted), (2, false));
        let again = feed.take(0, ARRAYS).unwrap();
        assert_eq!((again.missed, again.restarted), (0, true));
        assert_eq!(again.events[0], KvEvent::Cleared);
        assert_eq!((feed.counters.missed, feed.counters.restarts), (2, 1));
    }

    #[test]
    fn another_block_size_is_stepped_over() {
        let mut feed = Feed::new(16);
        assert_eq!(feed.take(0, ARRAYS).unwrap().events.len(), 1);
        assert_eq!(feed.counters.skipped, 1);
    }

    #[test]
    fn every_cut_off_frame_is_refused_and_changes_nothing() {
        let mut feed = Feed::new(2);
        for len in 0..ARRAYS.len() - 1 {
            assert!(feed.take(1, &ARRAYS[..len]).is_err(), "{len} bytes");
        }
        assert_eq!((feed.counters.frames, feed.last), (0, None));
        assert!(feed.take(1, &vec![0xC0; crate::FRAME_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_bytes_make_the_reader_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            places in proptest::collection::vec((0..ARRAYS.len(), any::<u8>()), 0..6),
        ) {
            let mut feed = Feed::new(2);
            drop(feed.take(0, &bytes));
            bytes.splice(0..0, *b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x91");
            drop(feed.take(1, &bytes));
            let mut near = ARRAYS.to_vec();
            for (at, byte) in places {
                near[at] = byte;
            }
            drop(feed.take(2, &near));
        }
    }
}
