//! KV events: reports of an engine about its cache.
//!
//! This is the form that the core understands. The crate `wardrop-engines` decodes the formats of vLLM,
//! `SGLang` and Dynamo into it, and no format of an engine reaches the index.

use serde::{Deserialize, Serialize};

use crate::hash::{EngineHash, LocalHash};

/// Memory in which a worker holds a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// GPU memory: the engine uses the prefix at once.
    #[default]
    Device,
    /// Host memory.
    Host,
    /// Local disk.
    Disk,
}

impl Tier {
    /// All tiers, nearest first.
    pub const ALL: [Self; 3] = [Self::Device, Self::Host, Self::Disk];

    /// Position in [`Tier::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A block in a stored event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoredBlock {
    /// Hash by which the engine will refer to the block.
    pub engine_hash: EngineHash,
    /// Hash of the content of the block.
    pub local_hash: LocalHash,
}

/// A change of one worker's cache.
///
/// Engines store a block more than once and remove each copy. So copies count per (worker, tier, block), and
/// a worker holds a block while its count is above zero. While a worker holds a block, it uses one engine
/// hash for it, and that hash means no other block.
///
/// ```text
/// stored   parent None, blocks a b c        the worker holds a, b and c
/// stored   parent c, blocks d               a prompt that begins with a b c d overlaps by 4 blocks
/// stored   parent b, blocks c               c a second time: two copies
/// removed  c                                one copy of c is left: still 4 blocks
/// removed  c                                a hole: the overlap is 2 blocks, although d is held
/// cleared                                   nothing is left
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvEvent {
    /// The worker stored a chain of blocks below `parent`; `None`: from the start of a prompt.
    Stored {
        /// Engine hash of the block before the first one.
        parent: Option<EngineHash>,
        /// Stored blocks, in prompt order.
        blocks: Vec<StoredBlock>,
        /// Memory of the blocks.
        tier: Tier,
    },
    /// The worker removed one copy of each of these blocks.
    Removed {
        /// Engine hashes of the blocks, in any order.
        blocks: Vec<EngineHash>,
        /// Memory of the removed copies.
        tier: Tier,
    },
    /// The worker holds nothing any more, in any tier.
    Cleared,
}
