//! The workers of a random event stream, one for each slot.

use wardrop_core::WorkerId;
use wardrop_core::index::{Index, Slot};

use crate::stream::SLOTS;

/// Worker of a slot.
pub fn worker_of(slot: Slot) -> WorkerId {
    WorkerId::new(u64::from(slot.0), 0)
}

/// An index without blocks, in which every slot of [`SLOTS`] has its worker.
pub fn empty_index() -> Index {
    let index = Index::new(1 << 20);
    for slot in SLOTS {
        index.register(worker_of(slot), slot);
    }
    index
}
