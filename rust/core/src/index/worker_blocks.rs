//! What one worker holds: its frames and its block counts.
//!
//! The set of frames lets a worker leave in time proportional to what it holds. Without it, a removal would
//! visit every frame of the index.

use super::hash_tables::FrameSet;

/// Blocks of one worker.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkerBlocks {
    /// Frames in which the worker holds at least one block, in any tier.
    pub frames: FrameSet,
    /// Distinct blocks that the worker holds: device, host, disk.
    pub blocks: [u64; 3],
}
