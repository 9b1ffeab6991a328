//! A request's way: to a router (or its queue), to an engine, and to its end.

use super::{Fleet, MAX_RETRIES, NOBODY, local_hash, refused, request_id, worker_id};
use crate::agenda::Event;
use crate::config::{Role, SimError};
use crate::engine::Signal;
use crate::record::End;
use wardrop_core::queue::{Offer, QueuedRequest};
use wardrop_core::{Error, RouteRequest};

impl Fleet<'_> {
    pub(super) fn arrive(&mut self, request: u32) -> Result<(), SimError> {
        let i = request as usize;
        if self.desk.requests.arrival_ms[i].is_nan() {
            self.desk.requests.arrival_ms[i] = self.now_ms;
            self.saw_arrival();
        }
        if self.pools[0].queue.is_some() {
            return self.offer(0, request);
        }
        let Some((worker, expected)) = self.route(0, request)? else {
            self.retry(request);
            return Ok(());
        };
        self.bound(request, worker, expected)
    }

    /// A request was placed on a worker of the first pool.
    pub(super) fn bound(&mut self, request: u32, worker: usize, expected: u32) -> Result<(), SimError> {
        let i = request as usize;
        if !self.standing[worker].alive {
            return self.connection_failed(request, worker);
        }
        self.desk.requests.worker[i] = worker as u32;
        self.desk.requests.expected_tokens[i] = expected;
        self.workers[worker].enqueue(request, &self.desk);
        self.nudge(worker as u32);
        Ok(())
    }

    pub(super) fn hash(&mut self, request: u32) {
        let (workload, naming) = (&*self.desk.workload, self.desk.naming);
        self.hashes.clear();
        let whole = naming.whole_blocks(workload, request);
        self.hashes
            .extend((0..whole).map(|index| local_hash(naming.block(workload, request, index))));
    }

    /// Put a request into pool `at`'s queue, and place what can be placed.
    pub(super) fn offer(&mut self, at: usize, request: u32) -> Result<(), SimError> {
        self.hash(request);
        let tokens = self.desk.workload.input_tokens[request as usize];
        let waiting = QueuedRequest::new(request_id(request), self.hashes.as_slice().into(), tokens);
        let now_s = self.now_ms * 1e-3;
        let pool = &mut self.pools[at];
        let queue = pool
            .queue
            .as_mut()
            .expect("a pool that is offered requests must have a queue");
        match queue.offer(&pool.router, waiting, now_s) {
            Ok(Offer::Taken) => self.pump(at),
            Ok(Offer::Refused { .. }) => {
                self.saw_refusal();
                self.close(request, End::Rejected);
                Ok(())
            }
            Err(Error::NoWorker { .. }) => {
                self.retry(request);
                Ok(())
            }
            Err(error) => Err(refused("a waiting request")(error)),
        }
    }

    /// Place what pool `at`'s queue can place now.
    pub(super) fn pump(&mut self, at: usize) -> Result<(), SimError> {
        self.pump_at(at, self.now_ms * 1e-3)
    }

    /// The same at a time of the caller's.
    pub(super) fn pump_at(&mut self, at: usize, now_s: f64) -> Result<(), SimError> {
        let pool = &mut self.pools[at];
        let Some(queue) = pool.queue.as_mut().filter(|queue| !queue.is_empty()) else {
            return Ok(());
        };
        let mut placed = Vec::new();
        match queue.pump(&pool.router, now_s, &mut placed) {
            // Without a worker all wait for the next one.
            Ok(()) | Err(Error::NoWorker { .. }) => {}
            Err(error) => return Err(refused("a queue's placement")(error)),
        }
        self.desk.totals.decisions += placed.len() as u64;
        self.measure(at)?;
        let block_size = self.spec.pools[at].engine.block_size;
        for dispatch in placed {
            let (request, worker) = (dispatch.id.0 as u32, dispatch.worker.instance as usize);
            if at == 0 {
                self.bound(request, worker, dispatch.overlap_blocks * block_size)?;
            } else {
                self.ask_for_room(request, worker)?;
            }
        }
        Ok(())
    }

    /// Ask pool `at`'s router. `None`: nobody is available.
    pub(super) fn route(&mut self, at: usize, request: u32) -> Result<Option<(usize, u32)>, SimError> {
        self.hash(request);
        let question = RouteRequest {
            request_id: Some(request_id(request)),
            local_hashes: &self.hashes,
            input_tokens: self.desk.workload.input_tokens[request as usize],
            ..RouteRequest::default()
        };
        self.desk.totals.decisions += 1;
        let decided = self.pools[at].router.route(&question, self.now_ms * 1e-3);
        self.measure(at)?;
        match decided {
            Ok(decision) => {
                let tokens = decision.overlap_blocks * self.spec.pools[at].engine.block_size;
                Ok(Some((decision.worker.instance as usize, tokens)))
            }
            Err(Error::NoWorker { .. }) => Ok(None),
            Err(error) => Err(refused("a request")(error)),
        }
    }

    pub(super) fn retry(&mut self, request: u32) {
        let i = request as usize;
        self.desk.requests.retries[i] += 1;
        if self.desk.requests.retries[i] > MAX_RETRIES {
            self.close(request, End::Failed);
            return;
        }
        self.agenda.push(
            self.now_ms + self.spec.retry_ms.max(0.001),
            Event::Arrival(request),
        );
    }

    /// The router sent a request to a dead worker: the caller sees a broken connection, and so does the router.
    pub(super) fn connection_failed(&mut self, request: u32, worker: usize) -> Result<(), SimError> {
        let pool = &mut self.pools[self.pool_of[worker]];
        pool.router
            .release(request_id(request), self.now_ms * 1e-3)
            .map_err(refused("a release"))?;
        pool.router
            .set_available(worker_id(worker), false)
            .map_err(refused("a quarantine"))?;
        self.retry(request);
        Ok(())
    }

    pub(super) fn close(&mut self, request: u32, end: End) {
        let i = request as usize;
        self.desk.requests.end[i] = end as u8;
        self.desk.requests.end_ms[i] = self.now_ms;
        self.open -= 1;
        self.saw_end(request);
        if let Some(closed) = &mut self.closed {
            closed.push(request);
        }
        let mut child = self.first_child[i];
        let last_turn = child == NOBODY;
        while child != NOBODY {
            self.agenda.push(
                self.now_ms + self.desk.workload.think_ms[child as usize] / self.spec.rate,
                Event::Arrival(child),
            );
            child = self.next_sibling[child as usize];
        }
        if last_turn && self.spec.concurrency.is_some() && self.next_root < self.roots.len() {
            self.agenda
                .push(self.now_ms, Event::Arrival(self.roots[self.next_root]));
            self.next_root += 1;
        }
    }

    /// Act on what a worker's iterations brought.
    pub(super) fn signals(&mut self, worker: u32) -> Result<(), SimError> {
        let now_s = self.now_ms * 1e-3;
        let at = self.pool_of[worker as usize];
        let role = self.pools[at].role;
        let mut signals = std::mem::take(&mut self.desk.signals);
        for signal in signals.drain(..) {
            if let Signal::First(request) = signal
                && role != Role::Prefill
            {
                self.saw_first(request);
            }
            match signal {
                Signal::First(request) if role == Role::Aggregated => {
                    self.pools[at]
                        .router
                        .prefill_done(request_id(request), now_s)
                        .map_err(refused("the end of a prefill"))?;
                    self.compare(at, request);
                }
                Signal::First(request) if role == Role::Decode => {
                    // A run of iterations is told at its end, after the token.
                    let requests = &self.desk.requests;
                    let i = request as usize;
                    let ttft_s = (requests.first_token_ms[i] - requests.arrival_ms[i]) * 1e-3;
                    self.pools[at].router.observe_first_token(ttft_s, now_s);
                }
                Signal::First(_) => {}
                Signal::Done(request) => {
                    let output = self.desk.workload.output_tokens[request as usize];
                    let told = wardrop_core::ledger::Outcome {
                        output_tokens: Some(output),
                        cached_tokens: None,
                        at_first_token: role == Role::Prefill,
                    };
                    self.pools[at]
                        .router
                        .finish(request_id(request), told, now_s)
                        .map_err(refused("a release"))?;
                    if role == Role::Prefill {
                        self.compare(at, request);
                        self.hand_over(request)?;
                    } else {
                        self.close(request, End::Complete);
                    }
                }
                Signal::Rejected(request) => {
                    self.pools[at]
                        .router
                        .release(request_id(request), now_s)
                        .map_err(refused("a release"))?;
                    if role == Role::Decode {
                        // Its prompt was computed for nothing: the sender's blocks go.
                        let from = self.desk.requests.worker[request as usize];
                        self.workers[from as usize].let_go(request);
                        self.mark(from);
                    }
                    self.close(request, End::Rejected);
                }
            }
        }
        self.desk.signals = signals;
        self.pump(at)
    }
}
