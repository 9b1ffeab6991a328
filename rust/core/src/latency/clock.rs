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
//!
//! While the index misjudges a worker, the router does not know which part of a prompt the engine computes. The end of
//! the request tells: the engine reports its cached tokens. Such a prompt keeps its pass waiting until then. A pass with a
//! prompt that the engine says nothing of teaches nothing.

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
    /// Whether the index may misjudge `new_tokens` and `cached_tokens`. They then count for nothing, and the pass waits for
    /// what the engine reports.
    pub is_unsure: bool,
}

/// Watches the first tokens of one worker. It holds two numbers, one open pass, and at most one pass for each request in
/// flight that it waits for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceClock {
    /// End of the last closed pass, seconds.
    last_end_s: f64,
    /// The pass whose first tokens are still coming. `None` before the first one.
    open: Option<PrefillPass>,
    /// Closed passes with a prompt whose computed part is not known yet.
    waiting: Vec<PrefillPass>,
    /// Number of the last pass.
    number: u64,
}

/// What a pass teaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PassSample {
    /// Sum of the work of its prompts.
    pub work: PrefillWork,
    /// Its prefill seconds.
    pub seconds: f64,
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
    /// Number of the pass on its worker.
    number: u64,
    /// Prompts whose computed part is not known yet.
    unknown: u32,
    /// Whether some prompt ended and its computed part was never known.
    is_spoilt: bool,
}

impl PrefillPass {
    /// Adds the first token of a prompt.
    fn add(&mut self, first: &FirstToken) {
        if first.is_unsure {
            self.unknown += 1;
        } else {
            self.work
                .add(&PrefillWork::of(first.new_tokens, first.cached_tokens));
        }
    }

    /// What the pass teaches, once the work of all its prompts is known.
    fn sample(&self) -> Option<PassSample> {
        (self.unknown == 0 && !self.is_spoilt).then(|| PassSample {
            work: self.work,
            seconds: self.prefill_s(),
        })
    }

    /// Seconds of the pass that were prefill. The decode steps in it are estimates, so they may not explain
    /// it all away.
    fn prefill_s(&self) -> f64 {
        let whole_s = self.end_s - self.start_s;
        (whole_s - self.shared_s).max(MIN_PREFILL_SHARE * whole_s)
    }
}

impl ServiceClock {
    /// Counts a first token. Returns the number of its pass, and what the pass that it closes teaches.
    pub fn first_token(&mut self, first: &FirstToken) -> (u64, Option<PassSample>) {
        if let Some(pass) = &mut self.open
            && first.at_s - pass.end_s < SAME_PASS_S
        {
            pass.add(first);
            pass.end_s = pass.end_s.max(first.at_s);
            pass.start_s = pass.start_s.min(first.sent_s.max(self.last_end_s));
            pass.shared_s = pass.shared_s.max(first.shared_s);
            return (pass.number, None);
        }
        let closed = self.open.take();
        if let Some(pass) = &closed {
            self.last_end_s = pass.end_s;
        }
        self.number += 1;
        let mut opened = PrefillPass {
            start_s: first.sent_s.max(self.last_end_s),
            end_s: first.at_s,
            shared_s: first.shared_s,
            work: PrefillWork::default(),
            number: self.number,
            unknown: 0,
            is_spoilt: false,
        };
        opened.add(first);
        self.open = Some(opened);
        let sample = closed.as_ref().and_then(PrefillPass::sample);
        if let Some(pass) = closed.filter(|pass| pass.unknown > 0) {
            self.waiting.push(pass);
        }
        (self.number, sample)
    }

    /// A request ended whose first token was not known to be computed or cached. `work` is what the engine reported, and
    /// `None` when it reported nothing. Returns what the pass teaches, if it waited for this request last. O(waiting passes).
    pub fn prompt_ended(&mut self, number: u64, work: Option<PrefillWork>) -> Option<PassSample> {
        let settle = |pass: &mut PrefillPass| {
            pass.unknown = pass.unknown.saturating_sub(1);
            match work {
                Some(work) => pass.work.add(&work),
                None => pass.is_spoilt = true,
            }
        };
        if let Some(open) = self.open.as_mut().filter(|open| open.number == number) {
            settle(open);
            return None;
        }
        let at = self.waiting.iter().position(|pass| pass.number == number)?;
        settle(&mut self.waiting[at]);
        if self.waiting[at].unknown > 0 {
            return None;
        }
        self.waiting.swap_remove(at).sample()
    }
}
