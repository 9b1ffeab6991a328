//! From first-token times to prefill service times.
//!
//! A router sees when it sent a request and when its first token came, not when the engine worked on it. An engine takes
//! prompts in order, so between two first tokens of a worker it served the later prompt alone:
//! `service = first token − max(sent, previous first token)`. Prompts that end in the same pass show first tokens at
//! nearly the same moment; they are joined into one sample.

use super::curve::PrefillWork;

/// First tokens closer than this belong to one pass of the engine, seconds.
const SAME_PASS_S: f64 = 0.003;

/// Watches the first tokens of one worker. Two numbers and one open pass: no growth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServiceClock {
    last_end_s: f64,
    pass: Option<Pass>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Pass {
    start_s: f64,
    end_s: f64,
    /// Seconds of it that went to others' decode steps.
    shared_s: f64,
    work: PrefillWork,
}

/// Of a pass at least this share is prefill.
const MIN_SHARE: f64 = 0.3;

impl ServiceClock {
    /// Notes a first token; returns the pass that it shows to be over, with its prefill seconds. `shared_s` went to decode
    /// steps of others in the same passes.
    pub fn first_token(
        &mut self,
        (sent_s, now_s): (f64, f64),
        work: PrefillWork,
        shared_s: f64,
    ) -> Option<(PrefillWork, f64)> {
        if let Some(pass) = &mut self.pass
            && now_s - pass.end_s < SAME_PASS_S
        {
            pass.work.add(&work);
            pass.end_s = pass.end_s.max(now_s);
            pass.start_s = pass.start_s.min(sent_s.max(self.last_end_s));
            pass.shared_s = pass.shared_s.max(shared_s);
            return None;
        }
        let over = self.pass.take();
        if let Some(pass) = &over {
            self.last_end_s = pass.end_s;
        }
        let start_s = sent_s.max(self.last_end_s);
        self.pass = Some(Pass {
            start_s,
            end_s: now_s,
            shared_s,
            work,
        });
        over.map(|pass| {
            let whole_s = pass.end_s - pass.start_s;
            (pass.work, (whole_s - pass.shared_s).max(MIN_SHARE * whole_s))
        })
    }
}
