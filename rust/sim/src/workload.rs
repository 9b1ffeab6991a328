//! Workload: arrival times, lengths and prompt blocks of all requests, as flat columns.
//!
//! A trace names a prompt by block ids. An id stands for one block and for everything before that block. Engines may use
//! smaller or larger blocks than the trace. A trace block of 512 tokens is eight engine blocks of 64 tokens, with the
//! names `id · 8 + 0..8`. An engine block of 512 tokens over a trace with blocks of 64 has the name of its last id.

use crate::error::{SimError, out_of_range};

/// Requests of a run. Every column has one entry per request, unless its documentation says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Arrival in milliseconds, never falling. Ignored if `after` names a request, and in a closed loop.
    pub arrival_ms: Vec<f64>,
    /// Prompt tokens, at least 1.
    pub input_tokens: Vec<u32>,
    /// Output tokens, at least 1.
    pub output_tokens: Vec<u32>,
    /// The prompt of request i has the ids `blocks[block_start[i]..block_start[i + 1]]`. One entry more than requests.
    pub block_start: Vec<u64>,
    /// Block ids of all prompts, numbered from 0 without gaps.
    pub blocks: Vec<u32>,
    /// Tokens per trace block.
    pub block_size: u32,
    /// The request that must end first, as the previous turn of a session; `u32::MAX` for none.
    pub after: Vec<u32>,
    /// Milliseconds from the end of the request in `after` to the arrival.
    pub think_ms: Vec<f64>,
}

impl Workload {
    /// Number of requests.
    pub fn len(&self) -> usize {
        self.input_tokens.len()
    }

    /// True if there is no request.
    pub fn is_empty(&self) -> bool {
        self.input_tokens.is_empty()
    }

    /// Checks every column. O(requests + blocks).
    ///
    /// # Errors
    /// [`SimError::Config`] names the first field that is out of range.
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
                return Err(out_of_range(
                    field,
                    got,
                    "one entry per request (block_start: one more)",
                ));
            }
        }
        if len >= u32::MAX as usize {
            return Err(out_of_range("requests", len, "below 2^32 − 1"));
        }
        if self.block_size == 0 {
            return Err(out_of_range("block_size", 0, "at least 1"));
        }
        if self.block_start[0] != 0 || self.block_start[len] != self.blocks.len() as u64 {
            return Err(out_of_range(
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
                return Err(out_of_range(
                    "blocks",
                    format!("request {i}"),
                    "an id for every started block of the prompt",
                ));
            }
            if self.input_tokens[i] == 0 || self.output_tokens[i] == 0 {
                return Err(out_of_range(
                    "tokens",
                    format!("request {i}"),
                    "at least 1 in and 1 out",
                ));
            }
            if self.input_tokens[i].checked_add(self.output_tokens[i]).is_none() {
                return Err(out_of_range(
                    "tokens",
                    format!("request {i}"),
                    "below 2^32 in all",
                ));
            }
            let after = self.after[i];
            if after != u32::MAX && after as usize >= i {
                return Err(out_of_range("after", after, "an earlier request"));
            }
            if !(self.think_ms[i].is_finite() && self.think_ms[i] >= 0.0) {
                return Err(out_of_range(
                    "think_ms",
                    self.think_ms[i],
                    "finite and at least 0",
                ));
            }
            if after == u32::MAX {
                if !self.arrival_ms[i].is_finite() || self.arrival_ms[i] < last_ms {
                    return Err(out_of_range(
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

/// Translation from the block ids of a trace to the block names of an engine with another block size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockNames {
    /// Tokens per engine block.
    engine: u32,
    /// Tokens per trace block.
    trace: u32,
}

impl BlockNames {
    /// The translation for an engine with blocks of `engine` tokens. O(blocks).
    ///
    /// # Errors
    /// [`SimError::Config`] when no block size is a multiple of the other, or when the names do not fit into
    /// 32 bits.
    pub fn new(workload: &Workload, engine: u32) -> Result<Self, SimError> {
        let trace = workload.block_size;
        if !trace.is_multiple_of(engine) && !engine.is_multiple_of(trace) {
            return Err(out_of_range(
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
            return Err(out_of_range(
                "blocks",
                highest,
                "fewer than 2^32 − 2 engine blocks",
            ));
        }
        Ok(Self { engine, trace })
    }

    /// Name of engine block `index` of the prompt of request `i`.
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

    /// Number of whole engine blocks in the prompt of request `i`.
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
        let names = BlockNames::new(&workload, 64).expect("multiples");
        let blocks: Vec<u32> = (0..names.whole_blocks(&workload, 0))
            .map(|k| names.block(&workload, 0, k))
            .collect();
        assert_eq!(blocks, vec![24, 25, 26, 27, 28, 29, 30, 31, 72, 73]);
    }

    #[test]
    fn a_large_engine_block_is_named_by_its_last_trace_block() {
        let workload = one(16, 100, vec![0, 1, 2, 3, 4, 5, 6]);
        let names = BlockNames::new(&workload, 32).expect("multiples");
        let blocks: Vec<u32> = (0..names.whole_blocks(&workload, 0))
            .map(|k| names.block(&workload, 0, k))
            .collect();
        assert_eq!(blocks, vec![1, 3, 5]);
    }

    #[test]
    fn a_prompt_without_ids_for_all_its_blocks_is_refused() {
        assert!(one(16, 33, vec![0, 1]).validate().is_err());
        assert!(BlockNames::new(&one(24, 24, vec![0]), 16).is_err());
    }
}
