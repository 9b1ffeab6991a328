//! From first-token times to prefill service times.
//!
//! A router sees when it sent a request and when its first token came, not when the engine worked on it. An
//! engine computes prompts in order, so between two first tokens of a worker it served the later prompt
//! alone: `service = first token − max(sent, previous first token)`. Prompts that end in the same pass show
//! first tokens at nearly the same time. They are joined into one sample.
//!
//! Example. Two requests are sent to an idle worker at 0 s, and their first tokens come at 0.2 s and 0.5 s.
//! The first prompt took 0.2 s. The second one was not computed before 0.2 s, so it took 0.3 s, although it
//! was seen for 0.5 s.
//!
//! A pass closes only when the next first token comes later, so the last sample of a worker waits for the
//! next request.

use super::curve::PrefillWork;

/// First tokens closer than this belong to one engine pass, seconds. It is below the time of a pass, and
/// above the jitter between two answers of one pass.
const SAME_PASS_S: f64 = 0.003;
/// Smallest share of a pass that counts as prefill, regardless of the decode steps in it.
const MIN_PREFILL_SHARE: f64 = 0.3;

/// A first token, with the prompt that it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FirstToken {
    /// When the request was sent, seconds.
    pub sent_s: f64,
    /// When its first token came, seconds.
    pub at_s: f64,
    /// Prompt tokens that were computed.
    pub new_tokens: u64,
    /// Prompt tokens that were in the cache.
    pub cached_tokens: u64,
    /// Seconds in between that went to decode steps in the same passes.
    pub shared_s: f64,
}

/// Watches the first tokens of one worker. It holds two numbers and one open pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ServiceClock {
    /// End of the last closed pass, seconds.
    last_end_s: f64,
    /// The pass whose first tokens are still coming. `None` before the first one.
    open: Option<PrefillPass>,
}

/// A pass that further first tokens may still join. All times are seconds of the router's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PrefillPass {
    /// When the engine can have begun: the latest of the sending and the end of the pass before.
    start_s: f64,
    /// When the last of its first tokens came.
    end_s: f64,
    /// Seconds of it that went to decode steps.
    shared_s: f64,
    /// Sum of the work of its prompts.
    work: PrefillWork,
}

impl PrefillPass {
    /// Seconds of the pass that were prefill. The decode steps in it are estimates, so they may not explain
    /// it all away.
    fn prefill_s(&self) -> f64 {
        let whole_s = self.end_s - self.start_s;
        (whole_s - self.shared_s).max(MIN_PREFILL_SHARE * whole_s)
    }
}

impl ServiceClock {
    /// Counts a first token. Returns the work and the prefill seconds of the pass that it closes, if it closes one.
    pub fn first_token(&mut self, first: &FirstToken) -> Option<(PrefillWork, f64)> {
        let work = PrefillWork::of(first.new_tokens, first.cached_tokens);
        if let Some(pass) = &mut self.open
            && first.at_s - pass.end_s < SAME_PASS_S
        {
            pass.work.add(&work);
            pass.end_s = pass.end_s.max(first.at_s);
            pass.start_s = pass.start_s.min(first.sent_s.max(self.last_end_s));
            pass.shared_s = pass.shared_s.max(first.shared_s);
            return None;
        }
        let closed = self.open.take();
        if let Some(pass) = &closed {
            self.last_end_s = pass.end_s;
        }
        self.open = Some(PrefillPass {
            start_s: first.sent_s.max(self.last_end_s),
            end_s: first.at_s,
            shared_s: first.shared_s,
            work,
        });
        closed.map(|pass| (pass.work, pass.prefill_s()))
    }
}
