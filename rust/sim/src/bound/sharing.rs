//! Which blocks of a prompt an earlier request could have left in a cache, and how many requests can share a block.
//!
//! A request *may come before* another one if some routing lets it arrive first. Roots, the requests that wait for no
//! other request, arrive in a fixed order. Later turns arrive when their predecessor ends, which depends on the routing.
//! All passes over the prompts are O(blocks of all prompts).

use crate::engine::block_pool::NONE;
use crate::spec::FleetSpec;
use crate::workload::{BlockNames, Workload};

/// What the requests of a workload can share. All lists have one entry per request.
pub(super) struct Sharing {
    /// Leading whole blocks that some request which may come before could have left in a cache.
    pub reusable_blocks: Vec<u32>,
    /// Other requests that name the first block after the reusable ones.
    pub later_sharers: Vec<u32>,
    /// Whole blocks that this request is the first to name.
    pub first_named_blocks: Vec<u32>,
    /// Whether the request is the first to name its last whole block.
    pub names_last_first: Vec<bool>,
    /// Whole blocks that no other request names.
    pub private_blocks: Vec<u32>,
    /// Least device memory that the whole blocks take, in blocks: a block counts as 1/k if k requests can share it.
    pub held_blocks: Vec<f64>,
}

/// What all prompts together say about one block.
#[derive(Clone, Copy)]
struct Block {
    /// The request that can name the block first.
    first: u32,
    /// Number of requests that name the block.
    count: u32,
    /// Number of requests whose successor, if there is one, does not name the block.
    ends: u32,
    /// Whether all other requests that name the block follow from `first`.
    is_inherited: bool,
}

/// The requests in the order in which they can arrive, and the request that each one follows.
struct Order {
    /// Earliest arrival in any routing: milliseconds, or the rank of the conversation in a closed loop.
    earliest: Vec<f64>,
    /// Position of each request in a walk of its conversation, depth first.
    enter: Vec<u32>,
    /// Position after the last request that follows from it.
    leave: Vec<u32>,
    first_child: Vec<u32>,
}

impl Order {
    /// The order of all requests. O(requests): a predecessor has a lower index than its successors.
    fn new(spec: &FleetSpec, workload: &Workload) -> Self {
        let len = workload.len();
        let mut earliest = vec![0.0; len];
        let mut sizes = vec![1_u32; len];
        let mut first_child = vec![NONE; len];
        for i in 0..len {
            let after = workload.after[i];
            let pause_ms = workload.think_ms[i] / spec.rate;
            earliest[i] = match (after == NONE, spec.concurrency.is_some()) {
                (true, true) => i as f64,
                (true, false) => workload.arrival_ms[i] / spec.rate,
                (false, true) => earliest[after as usize],
                (false, false) => earliest[after as usize] + pause_ms,
            };
            if after != NONE && first_child[after as usize] == NONE {
                first_child[after as usize] = i as u32;
            }
        }
        for i in (0..len).rev() {
            if workload.after[i] != NONE {
                sizes[workload.after[i] as usize] += sizes[i];
            }
        }
        // A predecessor has a lower index, so its place is known; `free` is the next place below it.
        let (mut enter, mut free) = (vec![0; len], vec![0; len]);
        let mut end = 0;
        for i in 0..len {
            let after = workload.after[i];
            let place = if after == NONE {
                end += sizes[i];
                end - sizes[i]
            } else {
                let place = free[after as usize];
                free[after as usize] += sizes[i];
                place
            };
            enter[i] = place;
            free[i] = place + 1;
        }
        let leave = enter
            .iter()
            .zip(&sizes)
            .map(|(enter, size)| enter + size)
            .collect();
        Self {
            earliest,
            enter,
            leave,
            first_child,
        }
    }

    /// Whether `i` can arrive before `other`, among requests of equal time by index.
    fn is_earlier(&self, i: u32, other: u32) -> bool {
        let key = |at: u32| (self.earliest[at as usize], at);
        key(i) < key(other)
    }

    /// Whether `i` is `from` or follows from it in the same conversation.
    fn follows(&self, i: u32, from: u32) -> bool {
        let place = self.enter[i as usize];
        (self.enter[from as usize]..self.leave[from as usize]).contains(&place)
    }
}

impl Sharing {
    /// What the requests of a workload can share. O(blocks of all prompts).
    ///
    /// `left_blocks` has, for each request, the leading whole blocks that a request before the workload could have left.
    pub fn new(
        spec: &FleetSpec,
        workload: &Workload,
        names: BlockNames,
        left_blocks: Option<&[u32]>,
    ) -> Self {
        let len = workload.len();
        let order = Order::new(spec, workload);
        let prompts = Prompts { workload, names };
        let blocks = prompts.survey(&order);
        let mut sharing = Self {
            reusable_blocks: vec![0; len],
            later_sharers: vec![0; len],
            first_named_blocks: vec![0; len],
            names_last_first: vec![false; len],
            private_blocks: vec![0; len],
            held_blocks: vec![0.0; len],
        };
        for i in 0..len as u32 {
            let at = i as usize;
            let is_root = workload.after[at] == NONE;
            let mut is_reusable = true;
            let left = left_blocks.map_or(0, |left| left[at]) as usize;
            for (index, name) in prompts.whole(i).enumerate() {
                let block = blocks[name as usize];
                let is_left = index < left;
                let is_first = block.first == i && !is_left;
                let is_own = is_first && (is_root || block.is_inherited);
                if is_reusable && is_own {
                    is_reusable = false;
                    sharing.later_sharers[at] = block.count - 1;
                }
                sharing.reusable_blocks[at] += u32::from(is_reusable);
                sharing.first_named_blocks[at] += u32::from(is_first);
                sharing.names_last_first[at] = is_first;
                sharing.private_blocks[at] += u32::from(block.count == 1 && !is_left);
                sharing.held_blocks[at] += 1.0 / f64::from(block.ends.max(1));
            }
        }
        sharing
    }
}

/// The prompts of a workload as whole engine blocks.
struct Prompts<'a> {
    workload: &'a Workload,
    names: BlockNames,
}

impl Prompts<'_> {
    /// Names of the whole blocks of a prompt. A last block that is not full is never shared.
    fn whole(&self, i: u32) -> impl Iterator<Item = u32> + '_ {
        let whole = self.names.whole_blocks(self.workload, i);
        (0..whole).map(move |index| self.names.block(self.workload, i, index))
    }

    /// Whether block `index` of the prompt of `i` is the whole block `name`.
    fn has(&self, i: u32, index: usize, name: u32) -> bool {
        (index as u32) < self.names.whole_blocks(self.workload, i)
            && self.names.block(self.workload, i, index as u32) == name
    }

    /// Who names each block, by name. O(blocks of all prompts).
    fn survey(&self, order: &Order) -> Vec<Block> {
        let len = self.workload.len() as u32;
        let highest = (0..len).flat_map(|i| self.whole(i)).max();
        let unnamed = Block {
            first: NONE,
            count: 0,
            ends: 0,
            is_inherited: true,
        };
        let mut blocks = vec![unnamed; highest.map_or(0, |name| name as usize + 1)];
        for i in 0..len {
            let child = order.first_child[i as usize];
            for (index, name) in self.whole(i).enumerate() {
                let block = &mut blocks[name as usize];
                if block.first == NONE || order.is_earlier(i, block.first) {
                    block.first = i;
                }
                block.count += 1;
                // A turn and its successor never run at the same time, so only ends of conversations share.
                block.ends += u32::from(child == NONE || !self.has(child, index, name));
            }
        }
        for i in 0..len {
            for name in self.whole(i) {
                let block = &mut blocks[name as usize];
                block.is_inherited &= order.follows(i, block.first);
            }
        }
        blocks
    }
}
