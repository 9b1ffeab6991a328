//! One engine pass as its engine reports it (Dynamo's forward-pass metrics), and what curves learn from it.

use super::curve::{PrefillWork, StepLoad};
use super::fleet::FleetCurves;

/// One pass of an engine.
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

/// Longest pass that is believed, seconds.
const MAX_PASS_S: f64 = 600.0;
/// Largest number of sequences in one pass that is believed.
const MAX_SEQUENCES: u64 = 1 << 20;
/// Largest number of tokens of new prompt in one pass that is believed.
const MAX_NEW_TOKENS: u64 = 1 << 27;
/// Largest number of tokens of context in one pass that is believed.
const MAX_KV_TOKENS: u64 = 1 << 40;

impl Pass {
    /// Whether the figures can be true. A pass whose figures cannot teaches nothing.
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
    last: StepLoad,
}

/// Relative change of sequences or of context from which a load counts as a new one.
const NEW_LOAD_SHARE: f64 = 0.1;

impl LoadFilter {
    fn is_new(&mut self, load: StepLoad) -> bool {
        let moved = |now: f64, then: f64| (now - then).abs() > NEW_LOAD_SHARE * then;
        let is_new = moved(load.batch, self.last.batch) || moved(load.kv_tokens, self.last.kv_tokens);
        if is_new {
            self.last = load;
        }
        is_new
    }
}

impl FleetCurves {
    /// Learns from a pass with one kind of work. In a mixed pass the share of each kind is unknown. A pass with
    /// several prompts teaches nothing either, since only the sums of their lengths are reported.
    pub fn pass(&mut self, position: usize, pass: &Pass) {
        if !pass.is_believable() {
            return;
        }
        match (pass.prefills, pass.decodes) {
            (1, 0) if pass.prefill_tokens > 0 => {
                let work = PrefillWork::of(pass.prefill_tokens, pass.prefill_kv_tokens);
                self.prefill_pass(position, &work, pass.seconds);
            }
            (0, decodes) if decodes > 0 => {
                let load = StepLoad {
                    batch: decodes as f64,
                    kv_tokens: pass.decode_kv_tokens as f64,
                };
                if self.filters.entry(position).or_default().is_new(load) {
                    self.step(position, load, pass.seconds);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Learning, Prior};
    use super::*;
    use crate::rng::Rng;

    const TRUE: [f64; 3] = [9e-3, 3e-5, 1.1e-8];

    fn step_s(batch: f64, kv_tokens: f64, rng: &mut Rng) -> f64 {
        (TRUE[0] + TRUE[1] * batch + TRUE[2] * kv_tokens) * (1.0 + 0.1 * (rng.unit() - 0.5))
    }

    /// Error at a load far from the last one, after `reports` at that one.
    fn error_after(reports: usize, filtered: bool) -> f64 {
        let mut curves = FleetCurves::new(&Prior::default(), Learning::default());
        curves.add(0);
        let mut rng = Rng::new(5);
        let mut report = |batch: u64, kv_tokens: u64, curves: &mut FleetCurves| {
            let seconds = step_s(batch as f64, kv_tokens as f64, &mut rng);
            if filtered {
                let pass = Pass {
                    decodes: batch,
                    decode_kv_tokens: kv_tokens,
                    seconds,
                    ..Pass::default()
                };
                curves.pass(0, &pass);
            } else {
                let load = StepLoad {
                    batch: batch as f64,
                    kv_tokens: kv_tokens as f64,
                };
                curves.step(0, load, seconds);
            }
        };
        for i in 0..400u64 {
            report(1 + i * 7 % 200, (1 + i * 11 % 190) * 5_000, &mut curves);
        }
        for _ in 0..reports {
            report(3, 20_000, &mut curves);
        }
        let want = TRUE[0] + TRUE[1] * 150.0 + TRUE[2] * 900_000.0;
        (curves.of(0).step_s(150.0, 900_000.0) / want - 1.0).abs()
    }

    #[test]
    fn hours_at_one_load_do_not_unlearn_the_others() {
        assert!(error_after(0, true) < 0.05, "{}", error_after(0, true));
        assert!(error_after(50_000, true) < 0.05, "{}", error_after(50_000, true));
        let (least, most) = (error_after(0, false), error_after(50_000, false));
        assert!(
            most > 2.0 * least && most > 0.1,
            "the control must unlearn: {least} before, {most} after"
        );
    }
}
