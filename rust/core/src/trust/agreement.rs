//! Agreement of predicted with reported cached tokens, over recent requests of one worker. O(1) per request.

/// Requests over which the weight of evidence falls to 1/e.
const MEMORY: f64 = 16.0;

/// What was said of the chosen worker's cache when a request was placed. Counts are leading blocks of the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Full blocks of the prompt.
    pub request_blocks: u32,
    /// Blocks in device memory, as the index lists them.
    pub device_blocks: u32,
    /// Blocks in any tier, as the index lists them.
    pub all_tiers_blocks: u32,
    /// Blocks of other requests in flight on the worker.
    pub in_flight_blocks: u32,
    /// Blocks of the requests that were placed on the worker; `None` while nothing is predicted for the worker.
    pub placed_blocks: Option<u32>,
    /// Number of the worker's incarnation and clears.
    pub epoch: u32,
}

/// One finished request. The engine may find any number of tokens from `listed_tokens` to `most_tokens`.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_field_names, reason = "the unit comes last")]
pub(super) struct Evidence {
    /// Tokens that must be in the cache.
    pub listed_tokens: u64,
    /// Tokens that may be in the cache, at least `listed_tokens`.
    pub most_tokens: u64,
    /// Tokens that the engine found.
    pub reported_tokens: u64,
    /// Tokens of the prompt's whole blocks.
    pub prompt_tokens: u64,
    /// Tokens of a block, above 0. A smaller error is no error: engines compute the last token of each prompt.
    pub block_tokens: u64,
}

/// Decayed sums of evidence, in tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreement {
    /// Listed tokens.
    listed: f64,
    /// Listed tokens that the engine did not find, at most `listed`.
    excess: f64,
    /// Tokens that the engine found beyond all that was listed.
    deficit: f64,
    /// Requests since the sums were empty, saturating.
    requests: u32,
    /// Tokens beyond all that was listed. Requests without evidence count as well.
    unlisted: f64,
    /// Unlisted tokens that the engine found.
    unlisted_found: f64,
}

impl Agreement {
    /// Adds a request. Returns whether the request is evidence.
    pub fn add(&mut self, found: Evidence) -> bool {
        let beyond_a_block = |tokens: u64| if tokens > found.block_tokens { tokens } else { 0 };
        let excess = beyond_a_block(found.listed_tokens.saturating_sub(found.reported_tokens));
        let deficit = beyond_a_block(found.reported_tokens.saturating_sub(found.most_tokens));
        let kept = 1.0 - 1.0 / MEMORY;
        let unlisted_tokens = found.prompt_tokens.saturating_sub(found.most_tokens);
        self.unlisted = self.unlisted * kept + unlisted_tokens as f64;
        self.unlisted_found = self.unlisted_found * kept + deficit as f64;
        if found.listed_tokens == 0 && deficit == 0 {
            return false;
        }
        self.listed = self.listed * kept + found.listed_tokens as f64;
        self.excess = self.excess * kept + excess as f64;
        self.deficit = self.deficit * kept + deficit as f64;
        self.requests = self.requests.saturating_add(1);
        true
    }

    /// Requests of evidence.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Whether any block was listed for a recent request.
    pub fn lists_blocks(&self) -> bool {
        self.listed > 0.0
    }

    /// Share of listed and found tokens on which both agree, 0 to 1. 1 without evidence.
    pub fn score(&self) -> f64 {
        share(self.excess + self.deficit, self.listed + self.deficit)
    }

    /// Adds the sums of another worker.
    pub fn merge(&mut self, other: &Self) {
        self.listed += other.listed;
        self.excess += other.excess;
        self.deficit += other.deficit;
        self.unlisted += other.unlisted;
        self.unlisted_found += other.unlisted_found;
    }

    /// Found share of listed tokens beyond the found share of unlisted tokens, 0 to 1: what a listed token adds to the
    /// expected length of a found prefix. 0 when the index says nothing of the cache, as with crossed feeds.
    pub fn gained_share(&self) -> f64 {
        let base_share = 1.0 - share(self.unlisted_found, self.unlisted);
        (self.found_share() - base_share).max(0.0)
    }

    /// Share of the listed tokens that the engine found, 0 to 1. 1 without evidence.
    pub fn found_share(&self) -> f64 {
        share(self.excess, self.listed)
    }
}

/// `1 − error / all`, within 0 to 1; 1 when `all` is 0.
fn share(error: f64, all: f64) -> f64 {
    if all > 0.0 {
        (1.0 - error / all).clamp(0.0, 1.0)
    } else {
        1.0
    }
}
