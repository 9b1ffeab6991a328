//! What each worker holds, by slot: its frames, so that it can leave in time proportional to them, and its counts.

use super::hash_tables::FrameSet;

/// One worker's part.
#[derive(Clone, Debug, Default)]
pub struct WorkerBlocks {
    /// Frames in which it holds something.
    pub frames: FrameSet,
    /// Blocks, per tier.
    pub blocks: [u64; 3],
}
