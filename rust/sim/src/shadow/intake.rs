//! Arrivals that wait for their time, so that what is learned of them meanwhile still counts.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// For [`super::ShadowFleets::outcome`].
    pub id: u64,
    /// When, s of the caller's monotonic clock.
    pub at_s: f64,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Sequence hashes of the prompt's whole blocks.
    pub sequence_hashes: &'a [u64],
}

/// What was measured of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// Time to its first token, s.
    pub ttft_s: Option<f64>,
    /// Tokens of its answer.
    pub output_tokens: Option<u32>,
}

/// An arrival with what is known when its time has come.
#[derive(Debug)]
pub(super) struct Waiting {
    pub id: u64,
    pub at_s: f64,
    pub input_tokens: u32,
    /// Known, or the mean of late.
    pub output_tokens: u32,
    pub ttft_s: Option<f64>,
    pub withdrawn: bool,
    pub sequence_hashes: Box<[u64]>,
}

#[derive(Debug, Default)]
struct Known {
    observed: Observed,
    withdrawn: bool,
}

/// Weight of the newest answer in the mean length.
const MEAN_WEIGHT: f64 = 0.01;
/// Answer length before any was seen, tokens.
const GUESSED_TOKENS: f64 = 256.0;

#[derive(Debug)]
pub(super) struct Intake {
    queue: VecDeque<(u64, f64, u32, Box<[u64]>)>,
    known: FxHashMap<u64, Known>,
    blocks: usize,
    max_waiting: usize,
    max_blocks: usize,
    mean_tokens: f64,
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
            mean_tokens: GUESSED_TOKENS,
            newest_s: f64::NEG_INFINITY,
        }
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether a prompt of so many blocks finds no room.
    pub fn is_full(&self, blocks: usize) -> bool {
        self.queue.len() >= self.max_waiting || self.blocks + blocks > self.max_blocks
    }

    /// False when there is no room, its id already waits, or its time is no number.
    pub fn push(&mut self, arrival: &Arrival<'_>) -> bool {
        let blocks = arrival.sequence_hashes.len();
        if self.is_full(blocks) || !arrival.at_s.is_finite() || self.known.contains_key(&arrival.id) {
            return false;
        }
        // Threads may tell of arrivals a moment out of order.
        self.newest_s = self.newest_s.max(arrival.at_s);
        self.blocks += blocks;
        self.known.insert(arrival.id, Known::default());
        self.queue.push_back((
            arrival.id,
            self.newest_s,
            arrival.input_tokens,
            arrival.sequence_hashes.into(),
        ));
        true
    }

    /// Keeps what waiting requests brought; whether it was for one of them.
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

    /// A waiting request is not to be simulated.
    pub fn withdraw(&mut self, id: u64) {
        if let Some(known) = self.known.get_mut(&id) {
            known.withdrawn = true;
        }
    }

    /// When the next one came.
    pub fn next_s(&self) -> Option<f64> {
        self.queue.front().map(|(_, at_s, _, _)| *at_s)
    }

    /// The next arrival not after `until_s`.
    pub fn pop_until(&mut self, until_s: f64) -> Option<Waiting> {
        if self.queue.front()?.1 > until_s {
            return None;
        }
        let (id, at_s, input_tokens, sequence_hashes) = self.queue.pop_front()?;
        self.blocks -= sequence_hashes.len();
        let Known {
            observed: known,
            withdrawn,
        } = self.known.remove(&id).unwrap_or_default();
        let guess = self.mean_tokens.round().max(1.0) as u32;
        Some(Waiting {
            id,
            at_s,
            input_tokens,
            output_tokens: known.output_tokens.unwrap_or(guess).max(1),
            ttft_s: known.ttft_s,
            withdrawn,
            sequence_hashes,
        })
    }
}
