//! An order of the frames in which every parent precedes its children, for whoever writes the index down.

use super::frame::{BlockId, FrameId};
use super::shared::Shared;
use super::writer::Writer;

/// Number of a frame that has none yet. No frame has this number: an index has fewer frames.
const UNNUMBERED: u32 = u32::MAX;

/// Frames with every parent before its children, and the number of each frame in that order.
///
/// Each frame walks up to the nearest numbered ancestor, and its path is numbered from there down. Every frame is
/// pushed once, so the order takes O(frames) without recursion, which a deep path could exhaust.
///
/// Example. Frame 0 hangs below frame 2, which hangs below the root. The walk from frame 0 collects 0 and 2,
/// and numbers 2 first: the order is 2, 0.
pub(super) fn parents_first(shared: &Shared, writer: &Writer) -> (Vec<FrameId>, Vec<u32>) {
    let (mut order, mut number_of) = (Vec::new(), vec![UNNUMBERED; writer.allocator.frames_ever()]);
    let mut above = Vec::new();
    for id in shared.paths.iter(&writer.allocator) {
        let mut at = id;
        while number_of[at.0 as usize] == UNNUMBERED {
            above.push(at);
            let parent = shared.paths.parent(at);
            if parent == BlockId::ROOT {
                break;
            }
            at = parent.frame();
        }
        while let Some(id) = above.pop() {
            number_of[id.0 as usize] = order.len() as u32;
            order.push(id);
        }
    }
    (order, number_of)
}
