//! What really waits in an engine: its own last word, corrected by what was sent since.

use std::collections::VecDeque;

/// A report older than this says nothing of the queue any more, seconds.
const FRESH_S: f64 = 1.0;
/// A prompt sent less than this before a report may not be in it: it was on its way, or the step had begun. Seconds.
const ON_ITS_WAY_S: f64 = 0.1;
/// So many bookings in a row that ended by age alone: the worker's own outcomes do not reach the router.
const SILENT_BOOKINGS: u32 = 3;
/// Prompts that are remembered between two reports; with more, the next report must come first.
const MAX_UNSEEN: usize = 1024;

/// What an engine says of its prompts at the end of a step (Dynamo's forward-pass metrics).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineQueue {
    /// Prompts that no step has taken yet.
    pub waiting_prompts: u32,
    /// Their tokens to compute.
    pub waiting_tokens: u64,
    /// Prompts of which the step computed a part or all.
    pub computed_prompts: u32,
}

/// Prompts before their first token, with their tokens to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompts {
    /// How many.
    pub count: u32,
    /// Tokens to compute.
    pub tokens: u64,
}

/// Of one worker. Bounded; O(1) amortised per call.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    word: Option<(f64, EngineQueue)>,
    /// Sent since about the last report: (time, tokens).
    unseen: VecDeque<(f64, u64)>,
    unseen_tokens: u64,
    expired_in_a_row: u32,
}

impl Truth {
    /// The engine's word of `now_s`.
    pub fn report(&mut self, queue: EngineQueue, now_s: f64) {
        while let Some(&(sent_s, tokens)) = self.unseen.front()
            && sent_s <= now_s - ON_ITS_WAY_S
        {
            self.unseen.pop_front();
            self.unseen_tokens -= tokens;
        }
        self.word = Some((now_s, queue));
    }

    /// A prompt was sent.
    pub fn sent(&mut self, tokens: u64, now_s: f64) {
        if self.word.is_none() {
            return;
        }
        if self.unseen.len() == MAX_UNSEEN {
            *self = Self {
                expired_in_a_row: self.expired_in_a_row,
                ..Self::default()
            };
            return;
        }
        self.unseen.push_back((now_s, tokens));
        self.unseen_tokens += tokens;
    }

    /// The first token, or the end before it, of a prompt sent at `sent_s` was seen: it waits no more, whatever the last
    /// report said of it. O(log of the prompts between two reports, and those after it).
    pub fn over(&mut self, sent_s: f64, tokens: u64) {
        self.seen();
        let from = self.unseen.partition_point(|&(at_s, _)| at_s < sent_s);
        let found = (from..self.unseen.len()).find(|&i| self.unseen[i] == (sent_s, tokens));
        if let Some(at) = found {
            self.unseen.remove(at);
            self.unseen_tokens -= tokens;
        } else if let Some((_, queue)) = &mut self.word {
            queue.waiting_prompts = queue.waiting_prompts.saturating_sub(1);
            queue.waiting_tokens = queue.waiting_tokens.saturating_sub(tokens);
        }
    }

    /// An end was seen: the router's own count follows the engine.
    pub fn seen(&mut self) {
        self.expired_in_a_row = 0;
    }

    /// A booking ended by age: nobody told of its end.
    pub fn expired(&mut self) {
        self.expired_in_a_row = self.expired_in_a_row.saturating_add(1);
    }

    /// The prompts before first token, `own` being the router's count of them. `None`: neither the engine nor the outcomes
    /// tell, so nothing may be held back for this worker.
    ///
    /// With a fresh report at least what waits there and what it cannot have seen yet; and no more than that when its step
    /// computed no prompt (of one that it did, the rest is not told: the own count knows). With a stale one the own count.
    pub fn prompts(&self, own: Prompts, now_s: f64) -> Option<Prompts> {
        match self.word {
            Some((at_s, queue)) if now_s - at_s <= FRESH_S => {
                let told = Prompts {
                    count: queue.waiting_prompts.saturating_add(self.unseen.len() as u32),
                    tokens: queue.waiting_tokens.saturating_add(self.unseen_tokens),
                };
                Some(if queue.computed_prompts == 0 {
                    told
                } else {
                    Prompts {
                        count: told.count.max(own.count),
                        tokens: told.tokens.max(own.tokens),
                    }
                })
            }
            _ if self.expired_in_a_row >= SILENT_BOOKINGS => None,
            _ => Some(own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Prompts = Prompts {
        count: 5,
        tokens: 5000,
    };

    #[test]
    fn fresh_report_corrects_the_own_count_by_what_it_cannot_have_seen() {
        let mut truth = Truth::default();
        truth.report(EngineQueue::default(), 10.0);
        truth.sent(300, 10.0);
        truth.sent(200, 10.3);
        let unseen = Prompts {
            count: 2,
            tokens: 500,
        };
        assert_eq!(truth.prompts(OWN, 10.4), Some(unseen));
        // The second report has seen the first prompt, and may have missed the second.
        let waiting = EngineQueue {
            waiting_prompts: 1,
            waiting_tokens: 100,
            computed_prompts: 0,
        };
        truth.report(waiting, 10.35);
        assert_eq!(
            truth.prompts(OWN, 10.4),
            Some(Prompts {
                count: 2,
                tokens: 300
            })
        );
        let computing = EngineQueue {
            computed_prompts: 1,
            ..waiting
        };
        truth.report(computing, 10.5);
        assert_eq!(
            truth.prompts(OWN, 10.5),
            Some(OWN),
            "the rest of a chunked prompt is not told"
        );
    }

    #[test]
    fn engine_tells_of_prompts_that_others_sent() {
        let mut truth = Truth::default();
        let queue = EngineQueue {
            waiting_prompts: 9,
            waiting_tokens: 90_000,
            computed_prompts: 1,
        };
        truth.report(queue, 0.0);
        let told = Prompts {
            count: 9,
            tokens: 90_000,
        };
        assert_eq!(truth.prompts(OWN, 0.5), Some(told));
    }

    #[test]
    fn prompt_whose_first_token_was_seen_waits_no_more() {
        let mut truth = Truth::default();
        truth.report(EngineQueue::default(), 0.0);
        truth.sent(300, 0.50);
        let computed = EngineQueue {
            computed_prompts: 1,
            ..EngineQueue::default()
        };
        truth.report(computed, 0.55);
        truth.over(0.50, 300);
        let none = Prompts::default();
        assert_eq!(
            truth.prompts(none, 0.56),
            Some(none),
            "sent just before the report, over just after it"
        );
        let waiting = EngineQueue {
            waiting_prompts: 2,
            waiting_tokens: 700,
            computed_prompts: 0,
        };
        truth.report(waiting, 0.9);
        truth.over(0.6, 300);
        let other = Prompts {
            count: 1,
            tokens: 400,
        };
        assert_eq!(truth.prompts(none, 0.95), Some(other));
    }

    #[test]
    fn stale_report_gives_way_to_the_own_count_and_silence_to_no_queue() {
        let mut truth = Truth::default();
        truth.report(EngineQueue::default(), 0.0);
        assert_eq!(truth.prompts(OWN, 1.5), Some(OWN));
        (0..3).for_each(|_| truth.expired());
        assert_eq!(truth.prompts(OWN, 1.5), None);
        truth.report(EngineQueue::default(), 2.0);
        assert_eq!(truth.prompts(OWN, 2.0), Some(Prompts::default()));
        truth.seen();
        assert_eq!(truth.prompts(OWN, 9.0), Some(OWN));
    }

    #[test]
    fn what_is_remembered_between_reports_is_bounded() {
        let mut truth = Truth::default();
        truth.report(EngineQueue::default(), 0.0);
        (0..=MAX_UNSEEN).for_each(|_| truth.sent(1, 0.5));
        assert_eq!(truth.prompts(OWN, 0.5), Some(OWN), "the report no longer counts");
        assert!(truth.unseen.is_empty());
    }
}
