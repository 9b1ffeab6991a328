//! One engine pass as its engine reports it (Dynamo's forward-pass metrics), and which reports curves learn
//! from.
//!
//! A report gives sums over the pass, so it teaches a curve only when one kind of work made it: a single
//! prompt, or decoding alone. An engine sends a hundred reports a second. Most repeat the load of the step
//! before and would only make a curve forget other loads.

use super::curve::StepLoad;

/// One pass of an engine.
///
/// Figures come from outside and may be anything. [`Pass::is_believable`] decides before anything is computed
/// with them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pass {
    /// Prompts that were computed, in whole or in part.
    pub prefills: u64,
    /// Tokens of these prompts that the pass computed.
    pub prefill_tokens: u64,
    /// Tokens of these prompts that were in the cache before.
    pub prefill_kv_tokens: u64,
    /// Sequences that only decoded.
    pub decodes: u64,
    /// Tokens of context of these sequences.
    pub decode_kv_tokens: u64,
    /// Duration of the pass, seconds.
    pub seconds: f64,
}

/// Longest pass that is believed, seconds. One report of 10¹²⁰ s would otherwise make every later price
/// infinite.
const MAX_PASS_S: f64 = 600.0;
/// Largest number of sequences in one pass that is believed.
const MAX_SEQUENCES: u64 = 1 << 20;
/// Largest number of tokens of new prompt in one pass that is believed.
const MAX_NEW_TOKENS: u64 = 1 << 27;
/// Largest number of tokens of context in one pass that is believed.
const MAX_KV_TOKENS: u64 = 1 << 40;

impl Pass {
    /// Whether the figures can be true. A pass whose figures cannot teaches nothing.
    ///
    /// NaN fails every comparison, so an undefined duration is refused too.
    pub fn is_believable(&self) -> bool {
        self.seconds > 0.0
            && self.seconds <= MAX_PASS_S
            && self.prefills <= MAX_SEQUENCES
            && self.decodes <= MAX_SEQUENCES
            && self.prefill_tokens <= MAX_NEW_TOKENS
            && self.prefill_kv_tokens <= MAX_KV_TOKENS
            && self.decode_kv_tokens <= MAX_KV_TOKENS
    }
}

/// Passes on a step report only when its load differs from the last load that was passed on.
///
/// An engine reports a hundred steps a second, nearly all of them at the load of the step before. A curve that
/// forgets by samples would keep about a second of them, at one load, and lose its slopes: its values at other loads
/// would be noise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct LoadFilter {
    /// The last load that passed.
    last: StepLoad,
}

/// Relative change of sequences or of context from which a load counts as a new one.
const NEW_LOAD_SHARE: f64 = 0.1;

impl LoadFilter {
    /// Whether a load differs from the last one that passed. It then is the last one. From the idle load 0 every load
    /// differs.
    pub fn is_new(&mut self, load: StepLoad) -> bool {
        let moved = |now: f64, then: f64| (now - then).abs() > NEW_LOAD_SHARE * then;
        let is_new = moved(load.batch, self.last.batch) || moved(load.kv_tokens, self.last.kv_tokens);
        if is_new {
            self.last = load;
        }
        is_new
    }
}
