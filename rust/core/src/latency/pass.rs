//! What an engine tells of one of its iterations (Dynamo's forward-pass metrics), and what curves learn from it.

use super::curve::PrefillWork;
use super::fleet::FleetCurves;

/// One iteration of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pass {
    /// Prompts that were computed, in whole or in part.
    pub prefills: u64,
    /// Their tokens computed here.
    pub prefill_tokens: u64,
    /// Their tokens that were there before.
    pub prefill_kv_tokens: u64,
    /// Sequences that only decoded.
    pub decodes: u64,
    /// Their tokens of context.
    pub decode_kv_tokens: u64,
    /// How long it took.
    pub seconds: f64,
}

impl FleetCurves {
    /// A pass with one kind of work tells its curve; in a mixed one the share of each is not known. Several prompts in one
    /// pass say nothing either, since only the sums of their lengths are told.
    pub fn pass(&mut self, position: usize, pass: &Pass) {
        if !(pass.seconds.is_finite() && pass.seconds > 0.0) {
            return;
        }
        match (pass.prefills, pass.decodes) {
            (1, 0) => {
                let work = PrefillWork::of(pass.prefill_tokens, pass.prefill_kv_tokens);
                self.prefill_pass(position, &work, pass.seconds);
            }
            (0, decodes) if decodes > 0 => {
                let load = (decodes as f64, pass.decode_kv_tokens as f64);
                self.step(position, load, pass.seconds);
            }
            _ => {}
        }
    }
}
