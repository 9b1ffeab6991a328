//! KV events: what an engine says about its cache.

use serde::{Deserialize, Serialize};

use crate::hash::{EngineHash, LocalHash};

/// Where a worker keeps a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// GPU memory: the prefix can be used at once.
    #[default]
    Device,
    /// Host memory.
    Host,
    /// Local disk.
    Disk,
}

impl Tier {
    /// Every tier, nearest first.
    pub const ALL: [Self; 3] = [Self::Device, Self::Host, Self::Disk];

    /// Position in [`Tier::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// One block that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoredBlock {
    /// The name under which the engine will remove it.
    pub engine_hash: EngineHash,
    /// The hash of its content.
    pub local_hash: LocalHash,
}

/// A change of one worker's cache.
///
/// Engines store the same block more than once and remove each copy: copies are counted per
/// (worker, tier, block), and a block is held while its count is above zero. While a worker holds a block, it calls it by one
/// engine hash, and means only that block by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvEvent {
    /// A chain of blocks was stored below `parent` (`None`: from the start of a prompt).
    Stored {
        /// The block before the first one, as this engine names it.
        parent: Option<EngineHash>,
        /// The blocks, in prompt order.
        blocks: Vec<StoredBlock>,
        /// Where they lie.
        tier: Tier,
    },
    /// One copy of each of these blocks is gone.
    Removed {
        /// The blocks, as this engine names them, in any order.
        blocks: Vec<EngineHash>,
        /// Where they lay.
        tier: Tier,
    },
    /// The worker holds nothing any more, in any tier.
    Cleared,
}
