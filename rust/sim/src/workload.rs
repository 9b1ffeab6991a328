//! Requests as flat columns: when they come, how long they are, and which blocks their prompts consist of.
//!
//! A trace names a prompt by ids, each standing for one block *and everything before it*. Engines may use smaller or larger
//! blocks than the trace: a trace block of 512 tokens is eight engine blocks of 64 (`id · 8 + 0..8`), and an engine block of
//! 512 over a trace of 64 is named by the last of its eight ids.

use crate::config::{SimError, bad};

/// See the module. Columns have one entry per request.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Arrival, ms, not falling. Ignored where `after` names a request, and in a closed loop.
    pub arrival_ms: Vec<f64>,
    /// Prompt tokens, at least 1.
    pub input_tokens: Vec<u32>,
    /// Output tokens, at least 1.
    pub output_tokens: Vec<u32>,
    /// `blocks[block_start[i]..block_start[i + 1]]` are request i's prompt ids.
    pub block_start: Vec<u64>,
    /// Dense ids (0, 1, 2, …).
    pub blocks: Vec<u32>,
    /// Tokens per trace block.
    pub block_size: u32,
    /// The request that must end first (a session's previous turn), or `u32::MAX`.
    pub after: Vec<u32>,
    /// Pause after that end, ms.
    pub think_ms: Vec<f64>,
}

impl Workload {
    /// Number of requests.
    pub fn len(&self) -> usize {
        self.input_tokens.len()
    }

    /// True without a request.
    pub fn is_empty(&self) -> bool {
        self.input_tokens.is_empty()
    }

    /// Check every column. O(requests + blocks).
    pub fn validate(&self) -> Result<(), SimError> {
        let len = self.len();
        let lengths = [
            ("arrival_ms", self.arrival_ms.len()),
            ("output_tokens", self.output_tokens.len()),
            ("after", self.after.len()),
            ("think_ms", self.think_ms.len()),
            ("block_start", self.block_start.len().wrapping_sub(1)),
        ];
        for (field, got) in lengths {
            if got != len {
                return Err(bad(field, got, "one entry per request (block_start: one more)"));
            }
        }
        if len >= u32::MAX as usize {
            return Err(bad("requests", len, "below 2^32 − 1"));
        }
        if self.block_size == 0 {
            return Err(bad("block_size", 0, "at least 1"));
        }
        if self.block_start[0] != 0 || self.block_start[len] != self.blocks.len() as u64 {
            return Err(bad(
                "block_start",
                format!("{:?}", self.block_start.last()),
                "offsets from 0 to blocks.len()",
            ));
        }
        let mut last_ms = 0.0;
        for i in 0..len {
            let blocks = self.block_start[i + 1].checked_sub(self.block_start[i]);
            let need = u64::from(self.input_tokens[i].div_ceil(self.block_size));
            if blocks.is_none_or(|have| have < need) {
                return Err(bad(
                    "blocks",
                    format!("request {i}"),
                    "an id for every started block of the prompt",
                ));
            }
            if self.input_tokens[i] == 0 || self.output_tokens[i] == 0 {
                return Err(bad("tokens", format!("request {i}"), "at least 1 in and 1 out"));
            }
            if self.input_tokens[i].checked_add(self.output_tokens[i]).is_none() {
                return Err(bad("tokens", format!("request {i}"), "below 2^32 in all"));
            }
            let after = self.after[i];
            if after != u32::MAX && after as usize >= i {
                return Err(bad("after", after, "an earlier request"));
            }
            if !(self.think_ms[i].is_finite() && self.think_ms[i] >= 0.0) {
                return Err(bad("think_ms", self.think_ms[i], "finite and at least 0"));
            }
            if after == u32::MAX {
                if !self.arrival_ms[i].is_finite() || self.arrival_ms[i] < last_ms {
                    return Err(bad(
                        "arrival_ms",
                        self.arrival_ms[i],
                        "finite, at least 0 and not falling",
                    ));
                }
                last_ms = self.arrival_ms[i];
            }
        }
        Ok(())
    }
}

/// Translates a request's trace ids into engine blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Naming {
    engine: u32,
    trace: u32,
}

impl Naming {
    pub fn new(workload: &Workload, engine: u32) -> Result<Self, SimError> {
        let trace = workload.block_size;
        if !trace.is_multiple_of(engine) && !engine.is_multiple_of(trace) {
            return Err(bad(
                "block_size",
                format!("{trace} (trace) and {engine} (engine)"),
                "multiples of one another",
            ));
        }
        let parts = u64::from((trace / engine).max(1));
        let highest = workload
            .blocks
            .iter()
            .copied()
            .max()
            .map_or(0, |id| (u64::from(id) + 1) * parts);
        if highest >= u64::from(u32::MAX) - 1 {
            return Err(bad("blocks", highest, "fewer than 2^32 − 2 engine blocks"));
        }
        Ok(Self { engine, trace })
    }

    /// Engine block `index` of request `i`.
    pub fn block(self, workload: &Workload, i: u32, index: u32) -> u32 {
        let ids = &workload.blocks[workload.block_start[i as usize] as usize..];
        if self.trace > self.engine {
            let parts = self.trace / self.engine;
            ids[(index / parts) as usize] * parts + index % parts
        } else {
            let parts = self.engine / self.trace;
            ids[((index + 1) * parts - 1) as usize]
        }
    }

    /// Whole engine blocks of request `i`'s prompt.
    pub fn whole_blocks(self, workload: &Workload, i: u32) -> u32 {
        workload.input_tokens[i as usize] / self.engine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(block_size: u32, input: u32, ids: Vec<u32>) -> Workload {
        Workload {
            arrival_ms: vec![0.0],
            input_tokens: vec![input],
            output_tokens: vec![1],
            block_start: vec![0, ids.len() as u64],
            blocks: ids,
            block_size,
            after: vec![u32::MAX],
            think_ms: vec![0.0],
        }
    }

    #[test]
    fn a_large_trace_block_is_several_engine_blocks() {
        let workload = one(512, 700, vec![3, 9]);
        workload.validate().expect("valid");
        let naming = Naming::new(&workload, 64).expect("multiples");
        let blocks: Vec<u32> = (0..naming.whole_blocks(&workload, 0))
            .map(|k| naming.block(&workload, 0, k))
            .collect();
        assert_eq!(blocks, vec![24, 25, 26, 27, 28, 29, 30, 31, 72, 73]);
    }

    #[test]
    fn a_large_engine_block_is_named_by_its_last_trace_block() {
        let workload = one(16, 100, vec![0, 1, 2, 3, 4, 5, 6]);
        let naming = Naming::new(&workload, 32).expect("multiples");
        let blocks: Vec<u32> = (0..naming.whole_blocks(&workload, 0))
            .map(|k| naming.block(&workload, 0, k))
            .collect();
        assert_eq!(blocks, vec![1, 3, 5]);
    }

    #[test]
    fn a_prompt_without_ids_for_all_its_blocks_is_refused() {
        assert!(one(16, 33, vec![0, 1]).validate().is_err());
        assert!(Naming::new(&one(24, 24, vec![0]), 16).is_err());
    }
}
