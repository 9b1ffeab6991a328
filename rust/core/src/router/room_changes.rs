//! What may have given a worker room, so that a queue can skip a round that could place nothing.
//!
//! Two counts and not one. First tokens come for every request and free an engine pass. Ends free memory and
//! a sequence, which matters only while a worker lacks one of them.

/// Counts of changes that may give a worker room. A queue compares two readings to skip a round that could place
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoomChanges {
    /// Prompts that stopped waiting on a worker, reports of engine queues, changes of the fleet, of policies and of
    /// curves.
    pub prefills: u64,
    /// Ends of requests. Each gives back KV memory and a sequence.
    pub releases: u64,
}
