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

/// The last step report of a worker that was learned from.
///
/// An engine reports a hundred steps a second, nearly all at the load of the one before. A curve that forgets by samples
/// would keep a second of them, at one point, and lose its slopes: what it then says of another load is noise. So a report
/// counts when its load is another one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Told {
    batch: f64,
    kv_tokens: f64,
}

/// A load is another one from this share on, of sequences or of their context.
const NEWS: f64 = 0.1;

impl Told {
    fn is_news(&mut self, (batch, kv_tokens): (f64, f64)) -> bool {
        let moved = |now: f64, then: f64| (now - then).abs() > NEWS * then;
        let news = moved(batch, self.batch) || moved(kv_tokens, self.kv_tokens);
        if news {
            *self = Self { batch, kv_tokens };
        }
        news
    }
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
                if self.told.entry(position).or_default().is_news(load) {
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
        let mut tell = |batch: u64, kv_tokens: u64, curves: &mut FleetCurves| {
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
                curves.step(0, (batch as f64, kv_tokens as f64), seconds);
            }
        };
        for i in 0..400u64 {
            tell(1 + i * 7 % 200, (1 + i * 11 % 190) * 5_000, &mut curves);
        }
        for _ in 0..reports {
            tell(3, 20_000, &mut curves);
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
