//! Reaction of the fleet to what iterations did: first tokens, finished and rejected requests.

use wardrop_core::ledger;

use super::Fleet;
use super::ids::request_id;
use crate::engine::Signal;
use crate::error::{SimError, router_refused};
use crate::record::End;
use crate::spec::Role;

impl Fleet<'_> {
    /// Handles the signals of the last engine call, which belong to `worker`, and places waiting requests.
    pub(super) fn handle_signals(&mut self, worker: u32) -> Result<(), SimError> {
        let at = self.pool_of[worker as usize];
        let mut signals = std::mem::take(&mut self.state.signals);
        for signal in signals.drain(..) {
            if self.is_of_another_client(signal) {
                continue;
            }
            match signal {
                Signal::FirstToken(request) => {
                    self.first_token(at, request)?;
                    if at == 0 {
                        self.planned_first_token(request)?;
                    }
                }
                Signal::Finished(request) => {
                    self.finished(at, request)?;
                    if at + 1 == self.pools.len() {
                        self.planned_end(request)?;
                    }
                }
                Signal::Rejected(request) => {
                    self.rejected(at, request)?;
                    if at == 0 {
                        self.planned_first_token(request)?;
                    }
                    self.planned_end(request)?;
                }
            }
        }
        self.state.signals = signals;
        self.place_waiting(at)
    }

    /// Ends a request of another client, which no router knows. False for a request that a router placed.
    fn is_of_another_client(&mut self, signal: Signal) -> bool {
        let (Signal::FirstToken(request) | Signal::Finished(request) | Signal::Rejected(request)) = signal;
        if self.spec.unseen.worker_of(request).is_none() {
            return false;
        }
        match signal {
            Signal::FirstToken(_) => {}
            Signal::Finished(_) => self.end_request(request, End::Complete),
            Signal::Rejected(_) => self.end_request(request, End::Rejected),
        }
        true
    }

    fn first_token(&mut self, at: usize, request: u32) -> Result<(), SimError> {
        let now_s = self.now_ms * 1e-3;
        let role = self.pools[at].role;
        if role != Role::Prefill {
            self.observe_first_token(request);
        }
        match role {
            Role::Aggregated => {
                let loss = self.spec.feed.first_token_loss;
                if loss == 0.0 || self.rng.unit() >= loss {
                    self.pools[at]
                        .router
                        .prefill_done(request_id(request), now_s)
                        .map_err(router_refused("the end of a prefill"))?;
                }
                self.record_first_token(at, request);
            }
            Role::Decode => {
                // The engine reports a run of iterations at its end, so the token may be older than `now_s`.
                let requests = &self.state.requests;
                let i = request as usize;
                let ttft_s = (requests.first_token_ms[i] - requests.arrival_ms[i]) * 1e-3;
                self.pools[at].router.observe_first_token(ttft_s, now_s);
            }
            Role::Prefill => {}
        }
        Ok(())
    }

    fn finished(&mut self, at: usize, request: u32) -> Result<(), SimError> {
        let role = self.pools[at].role;
        // In a split the engine that answers never saw the prefill of the prompt, so it reports no cached tokens.
        let cached_tokens = self.state.requests.cached_tokens[request as usize];
        let outcome = ledger::Outcome {
            output_tokens: Some(self.state.workload.output_tokens[request as usize]),
            cached_tokens: (role == Role::Aggregated).then_some(cached_tokens),
            at_first_token: role == Role::Prefill,
            is_refused: false,
        };
        self.pools[at]
            .router
            .finish(request_id(request), outcome, self.now_ms * 1e-3)
            .map_err(router_refused("a release"))?;
        if role == Role::Prefill {
            self.record_first_token(at, request);
            self.hand_over(request)
        } else {
            self.end_request(request, End::Complete);
            Ok(())
        }
    }

    fn rejected(&mut self, at: usize, request: u32) -> Result<(), SimError> {
        self.pools[at]
            .router
            .release(request_id(request), self.now_ms * 1e-3)
            .map_err(router_refused("a release"))?;
        if self.pools[at].role == Role::Decode {
            // The prefill worker kept its blocks for a transfer that will not take place.
            let from = self.state.requests.worker[request as usize];
            self.workers[from as usize].kv_sent(request);
            self.queue_start(from);
        }
        self.end_request(request, End::Rejected);
        Ok(())
    }
}
