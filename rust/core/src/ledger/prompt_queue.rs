//! The prompts that wait in an engine: its last report, corrected by what was sent since.
//!
//! A queue that holds requests back must know whether a worker is computing a prompt. The router's own count
//! lags behind the engine by one way of the network, and it is wrong when first tokens go unreported. The
//! engine's report is right for its moment, and misses what was on its way then. This file joins both:
//!
//! ```text
//! fresh report ─▶ prompts waiting in the report + prompts sent since about the report
//!                 and at least the own count, while the step computed a prompt (its rest is not reported)
//! stale report ─▶ the own count
//! nothing reported and outcomes missing ─▶ None: no reason to hold anything back
//! ```
//!
//! Example. The engine reports two waiting prompts at 10.00 s. The router sent a prompt at 9.95 s and one at
//! 10.20 s. Both may be missing from the report, so at 10.3 s four prompts wait.
//!
//! Bounded, O(1) amortised per call.

use std::collections::VecDeque;

/// Age from which a report is stale, seconds. An engine reports at every step, so silence means that it is
/// idle or gone.
const FRESH_S: f64 = 1.0;
/// Time before a report within which a sent prompt may be missing from it, seconds: it was on its way, or the step
/// had begun.
const IN_TRANSIT_S: f64 = 0.1;
/// Bookings in a row that ended by expiry, from which on the worker's outcomes count as unreported.
const MAX_EXPIRED_IN_A_ROW: u32 = 3;
/// Prompts that are remembered between two reports. With more, the last report is dropped: an engine that
/// stays silent for so many prompts is not reporting.
const MAX_UNSEEN: usize = 1024;

/// What an engine reports of its prompts at the end of a step (Dynamo's forward-pass metrics).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineQueue {
    /// Prompts that no step has taken yet.
    pub waiting_prompts: u32,
    /// Tokens to compute of these prompts.
    pub waiting_tokens: u64,
    /// Prompts that the step computed, in part or in whole.
    pub computed_prompts: u32,
}

/// Largest backlog of an engine that is believed, tokens.
const MAX_WAITING_TOKENS: u64 = 1 << 40;
/// Largest number of prompts in an engine that is believed.
const MAX_PROMPTS: u32 = 1 << 24;

impl EngineQueue {
    /// Whether the figures can be true. A router ignores a report whose figures cannot.
    ///
    /// Sums over prompts are compared with token limits, so a report near 2⁶⁴ tokens would overflow them.
    pub(crate) const fn is_believable(&self) -> bool {
        self.waiting_tokens <= MAX_WAITING_TOKENS
            && self.waiting_prompts <= MAX_PROMPTS
            && self.computed_prompts <= MAX_PROMPTS
    }
}

/// Prompts before their first token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WaitingPrompts {
    /// Number of prompts.
    pub count: u32,
    /// Tokens to compute of these prompts.
    pub tokens: u64,
}

/// The prompts of one worker. Bounded, O(1) amortised per call.
#[derive(Clone, Debug, Default)]
pub(super) struct PromptQueue {
    /// The last report, and when it came, seconds.
    report: Option<(f64, EngineQueue)>,
    /// Prompts sent since about the last report: time in seconds, tokens. Invariant: ascending times, at most
    /// [`MAX_UNSEEN`].
    unseen: VecDeque<(f64, u64)>,
    /// Sum of the tokens of `unseen`.
    unseen_tokens: u64,
    /// Bookings that ended by expiry since the last outcome.
    expired_in_a_row: u32,
}

impl PromptQueue {
    /// The engine reported at `now_s`. Prompts sent clearly before the report are in it, and are forgotten
    /// here.
    pub fn report(&mut self, queue: EngineQueue, now_s: f64) {
        self.forget_seen(now_s);
        self.report = Some((now_s, queue));
    }

    /// Forgets the prompts that a report of `now_s` has seen.
    fn forget_seen(&mut self, now_s: f64) {
        while let Some(&(sent_s, tokens)) = self.unseen.front()
            && sent_s <= now_s - IN_TRANSIT_S
        {
            self.unseen.pop_front();
            self.unseen_tokens -= tokens;
        }
    }

    /// A prompt was sent.
    ///
    /// It is remembered before the first report too, because that report may miss it. A worker whose metrics were read
    /// just before its first request looked idle for a second, and a queue let a second prompt through.
    pub fn sent(&mut self, tokens: u64, now_s: f64) {
        if self.report.is_none() {
            // Every report to come has seen the older prompts.
            self.forget_seen(now_s);
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

    /// A prompt sent at `sent_s` waits no more, regardless of the last report: its first token came, or its request
    /// ended. O(log n + k) for n prompts since the last report and k of them sent after this one.
    ///
    /// A prompt that is no longer remembered was in the report, so the report's count falls instead.
    pub fn end(&mut self, sent_s: f64, tokens: u64) {
        self.count_outcome();
        let from = self.unseen.partition_point(|&(at_s, _)| at_s < sent_s);
        let found = (from..self.unseen.len()).find(|&i| self.unseen[i] == (sent_s, tokens));
        if let Some(at) = found {
            self.unseen.remove(at);
            self.unseen_tokens -= tokens;
        } else if let Some((_, queue)) = &mut self.report {
            queue.waiting_prompts = queue.waiting_prompts.saturating_sub(1);
            queue.waiting_tokens = queue.waiting_tokens.saturating_sub(tokens);
        }
    }

    /// An outcome of the worker came, so the router's own count follows the engine.
    pub fn count_outcome(&mut self) {
        self.expired_in_a_row = 0;
    }

    /// A booking ended by expiry: its end was not reported.
    pub fn count_expiry(&mut self) {
        self.expired_in_a_row = self.expired_in_a_row.saturating_add(1);
    }

    /// Prompts before their first token, where `booked` is the router's own count. `None` when neither the engine nor
    /// the outcomes report anything: nothing may be held back for the worker then.
    ///
    /// With a fresh report it is what waits there and what the report cannot have seen. When the step computed a
    /// prompt, it is at least the own count, since the rest of a chunked prompt is not reported. With a stale report
    /// it is the own count.
    pub fn prompts(&self, booked: WaitingPrompts, now_s: f64) -> Option<WaitingPrompts> {
        match self.report {
            Some((at_s, queue)) if now_s - at_s <= FRESH_S => {
                let reported = WaitingPrompts {
                    count: queue.waiting_prompts.saturating_add(self.unseen.len() as u32),
                    tokens: queue.waiting_tokens.saturating_add(self.unseen_tokens),
                };
                Some(if queue.computed_prompts == 0 {
                    reported
                } else {
                    WaitingPrompts {
                        count: reported.count.max(booked.count),
                        tokens: reported.tokens.max(booked.tokens),
                    }
                })
            }
            _ if self.expired_in_a_row >= MAX_EXPIRED_IN_A_ROW => None,
            _ => Some(booked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: WaitingPrompts = WaitingPrompts {
        count: 5,
        tokens: 5000,
    };

    #[test]
    fn fresh_report_corrects_the_own_count_by_what_it_cannot_have_seen() {
        let mut queue = PromptQueue::default();
        queue.report(EngineQueue::default(), 10.0);
        queue.sent(300, 10.0);
        queue.sent(200, 10.3);
        let unseen = WaitingPrompts {
            count: 2,
            tokens: 500,
        };
        assert_eq!(queue.prompts(OWN, 10.4), Some(unseen));
        // The second report has seen the first prompt, and may have missed the second.
        let waiting = EngineQueue {
            waiting_prompts: 1,
            waiting_tokens: 100,
            computed_prompts: 0,
        };
        queue.report(waiting, 10.35);
        assert_eq!(
            queue.prompts(OWN, 10.4),
            Some(WaitingPrompts {
                count: 2,
                tokens: 300
            })
        );
        let computing = EngineQueue {
            computed_prompts: 1,
            ..waiting
        };
        queue.report(computing, 10.5);
        assert_eq!(
            queue.prompts(OWN, 10.5),
            Some(OWN),
            "the rest of a chunked prompt is not reported"
        );
    }

    #[test]
    fn the_first_report_does_not_hide_a_prompt_that_was_sent_just_before_it() {
        let mut queue = PromptQueue::default();
        queue.sent(300, 9.5);
        queue.sent(200, 10.0);
        assert_eq!(queue.prompts(OWN, 10.0), Some(OWN));
        queue.report(EngineQueue::default(), 10.05);
        let unseen = WaitingPrompts {
            count: 1,
            tokens: 200,
        };
        assert_eq!(queue.prompts(OWN, 10.1), Some(unseen));
        queue.end(10.0, 200);
        assert_eq!(queue.prompts(OWN, 10.2), Some(WaitingPrompts::default()));
    }

    #[test]
    fn without_a_report_only_prompts_in_transit_are_remembered() {
        let mut queue = PromptQueue::default();
        (0..100).for_each(|at| queue.sent(1, f64::from(at) * 0.06));
        assert!(queue.unseen.len() <= 2, "{}", queue.unseen.len());
        assert_eq!(queue.unseen_tokens, queue.unseen.len() as u64);
    }

    #[test]
    fn report_counts_prompts_that_other_routers_sent() {
        let mut queue = PromptQueue::default();
        let report = EngineQueue {
            waiting_prompts: 9,
            waiting_tokens: 90_000,
            computed_prompts: 1,
        };
        queue.report(report, 0.0);
        let reported = WaitingPrompts {
            count: 9,
            tokens: 90_000,
        };
        assert_eq!(queue.prompts(OWN, 0.5), Some(reported));
    }

    #[test]
    fn prompt_whose_first_token_was_seen_waits_no_more() {
        let mut queue = PromptQueue::default();
        queue.report(EngineQueue::default(), 0.0);
        queue.sent(300, 0.50);
        let computed = EngineQueue {
            computed_prompts: 1,
            ..EngineQueue::default()
        };
        queue.report(computed, 0.55);
        queue.end(0.50, 300);
        let none = WaitingPrompts::default();
        assert_eq!(
            queue.prompts(none, 0.56),
            Some(none),
            "sent just before the report, over just after it"
        );
        let waiting = EngineQueue {
            waiting_prompts: 2,
            waiting_tokens: 700,
            computed_prompts: 0,
        };
        queue.report(waiting, 0.9);
        queue.end(0.6, 300);
        let other = WaitingPrompts {
            count: 1,
            tokens: 400,
        };
        assert_eq!(queue.prompts(none, 0.95), Some(other));
    }

    #[test]
    fn stale_report_gives_way_to_the_own_count_and_silence_to_no_queue() {
        let mut queue = PromptQueue::default();
        queue.report(EngineQueue::default(), 0.0);
        assert_eq!(queue.prompts(OWN, 1.5), Some(OWN));
        (0..3).for_each(|_| queue.count_expiry());
        assert_eq!(queue.prompts(OWN, 1.5), None);
        queue.report(EngineQueue::default(), 2.0);
        assert_eq!(queue.prompts(OWN, 2.0), Some(WaitingPrompts::default()));
        queue.count_outcome();
        assert_eq!(queue.prompts(OWN, 9.0), Some(OWN));
    }

    #[test]
    fn what_is_remembered_between_reports_is_bounded() {
        let mut queue = PromptQueue::default();
        queue.report(EngineQueue::default(), 0.0);
        (0..=MAX_UNSEEN).for_each(|_| queue.sent(1, 0.5));
        assert_eq!(queue.prompts(OWN, 0.5), Some(OWN), "the report no longer counts");
        assert!(queue.unseen.is_empty());
    }
}
