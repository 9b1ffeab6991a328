//! Arrivals that wait to be simulated, so that outcomes measured meanwhile are known by then.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// A request at its arrival in production.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Id that [`super::ShadowFleets::outcome`] refers to.
    pub id: u64,
    /// Arrival, in seconds of the caller's monotonic clock.
    pub at_s: f64,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Sequence hashes of the prompt's whole blocks.
    pub sequence_hashes: &'a [u64],
}

/// What production measured for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// Time to first token, in seconds.
    pub ttft_s: Option<f64>,
    /// Tokens of the answer.
    pub output_tokens: Option<u32>,
}

/// An arrival whose time has come, with everything known of it by then.
#[derive(Debug)]
pub(super) struct DueArrival {
    pub id: u64,
    pub at_s: f64,
    pub input_tokens: u32,
    /// Measured answer length, or the recent mean if the answer is still running.
    pub output_tokens: u32,
    pub ttft_s: Option<f64>,
    /// Whether the request failed in production.
    pub withdrawn: bool,
    pub sequence_hashes: Box<[u64]>,
}

/// An arrival that waits.
#[derive(Debug)]
struct WaitingArrival {
    id: u64,
    at_s: f64,
    input_tokens: u32,
    sequence_hashes: Box<[u64]>,
}

/// What is known of an arrival that waits.
#[derive(Debug, Default)]
struct Known {
    observed: Observed,
    withdrawn: bool,
}

/// Weight of the newest answer in the recent mean length.
const MEAN_WEIGHT: f64 = 0.01;
/// Assumed answer length before any answer has ended, in tokens.
const INITIAL_MEAN_TOKENS: f64 = 256.0;

/// Arrivals that wait, oldest first, with what production measured meanwhile.
#[derive(Debug)]
pub(super) struct Intake {
    /// Waiting arrivals in order of time.
    queue: VecDeque<WaitingArrival>,
    /// What is known of each waiting arrival, by its id.
    known: FxHashMap<u64, Known>,
    /// Number of blocks of all waiting arrivals.
    blocks: usize,
    /// Largest number of waiting arrivals.
    max_waiting: usize,
    /// Largest number of their blocks.
    max_blocks: usize,
    /// Recent mean of answer lengths, in tokens.
    mean_tokens: f64,
    /// Latest arrival time.
    newest_s: f64,
}

impl Intake {
    pub fn new(max_waiting: usize, max_blocks: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            known: FxHashMap::default(),
            blocks: 0,
            max_waiting,
            max_blocks,
            mean_tokens: INITIAL_MEAN_TOKENS,
            newest_s: f64::NEG_INFINITY,
        }
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether there is no room for a prompt of `blocks` blocks.
    pub fn is_full(&self, blocks: usize) -> bool {
        self.queue.len() >= self.max_waiting || self.blocks + blocks > self.max_blocks
    }

    /// Adds an arrival. Returns false if there is no room, the id already waits, or the time is not finite.
    pub fn push(&mut self, arrival: &Arrival<'_>) -> bool {
        let blocks = arrival.sequence_hashes.len();
        if self.is_full(blocks) || !arrival.at_s.is_finite() || self.known.contains_key(&arrival.id) {
            return false;
        }
        // Threads report arrivals slightly out of order, but the queue must be ordered by time.
        self.newest_s = self.newest_s.max(arrival.at_s);
        self.blocks += blocks;
        self.known.insert(arrival.id, Known::default());
        self.queue.push_back(WaitingArrival {
            id: arrival.id,
            at_s: self.newest_s,
            input_tokens: arrival.input_tokens,
            sequence_hashes: arrival.sequence_hashes.into(),
        });
        true
    }

    /// Records what was measured for a request. Returns true if the request still waits.
    pub fn outcome(&mut self, id: u64, observed: Observed) -> bool {
        if let Some(tokens) = observed.output_tokens {
            self.mean_tokens += MEAN_WEIGHT * (f64::from(tokens) - self.mean_tokens);
        }
        let Some(known) = self.known.get_mut(&id).map(|known| &mut known.observed) else {
            return false;
        };
        known.ttft_s = observed.ttft_s.or(known.ttft_s);
        known.output_tokens = observed.output_tokens.or(known.output_tokens);
        true
    }

    /// Marks a waiting request as failed in production, so that it is not simulated.
    pub fn withdraw(&mut self, id: u64) {
        if let Some(known) = self.known.get_mut(&id) {
            known.withdrawn = true;
        }
    }

    /// Time of the next arrival, in seconds.
    pub fn next_s(&self) -> Option<f64> {
        self.queue.front().map(|arrival| arrival.at_s)
    }

    /// The next arrival, if its time is not after `until_s`.
    pub fn pop_until(&mut self, until_s: f64) -> Option<DueArrival> {
        if self.next_s()? > until_s {
            return None;
        }
        let WaitingArrival {
            id,
            at_s,
            input_tokens,
            sequence_hashes,
        } = self.queue.pop_front()?;
        self.blocks -= sequence_hashes.len();
        let Known {
            observed: known,
            withdrawn,
        } = self.known.remove(&id).unwrap_or_default();
        let mean_tokens = self.mean_tokens.round().max(1.0) as u32;
        Some(DueArrival {
            id,
            at_s,
            input_tokens,
            output_tokens: known.output_tokens.unwrap_or(mean_tokens).max(1),
            ttft_s: known.ttft_s,
            withdrawn,
            sequence_hashes,
        })
    }
}
