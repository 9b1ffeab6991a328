//! Course of a request: arrival at the router or its queue, dispatch to an engine, retries, and its end.

use wardrop_core::queue::{Offer, QueuedRequest};
use wardrop_core::{Error, RouteRequest};

use super::agenda::{Event, Incarnation};
use super::ids::{request_id, worker_id};
use super::{Fleet, NO_REQUEST};
use crate::error::{SimError, router_refused};
use crate::record::End;

/// Number of retries after which a request has failed.
const MAX_RETRIES: u32 = 1_000;

/// A routed request.
#[derive(Clone, Copy)]
pub(super) struct Routed {
    /// Index of the worker over all pools.
    pub worker: usize,
    /// Prompt tokens that the router expects in the worker's cache.
    pub expected_tokens: u32,
}

impl Fleet<'_> {
    /// A request reaches the router of the first pool.
    pub(super) fn arrive(&mut self, request: u32) -> Result<(), SimError> {
        let i = request as usize;
        if self.state.requests.arrival_ms[i].is_nan() {
            self.state.requests.arrival_ms[i] = self.now_ms;
            self.observe_arrival();
        }
        if self.plan.is_some() {
            return self.arrive_planned(request);
        }
        if let Some(worker) = self.spec.unseen.worker_of(request) {
            let expected_tokens = 0;
            return self.dispatch(
                request,
                Routed {
                    worker,
                    expected_tokens,
                },
            );
        }
        if self.pools[0].queue.is_some() {
            return self.enqueue(0, request);
        }
        let Some(routed) = self.route(0, request)? else {
            self.retry(request);
            return Ok(());
        };
        self.dispatch(request, routed)
    }

    /// Sends a request to the worker of the first pool that was chosen for it.
    pub(super) fn dispatch(&mut self, request: u32, routed: Routed) -> Result<(), SimError> {
        let Routed {
            worker,
            expected_tokens,
        } = routed;
        let i = request as usize;
        if !self.status[worker].is_alive {
            return self.connection_failed(request, worker);
        }
        self.state.requests.worker[i] = worker as u32;
        self.state.requests.expected_tokens[i] = expected_tokens;
        if self.spec.unseen.wait_ms > 0.0 {
            let wait_ms = -self.spec.unseen.wait_ms * (1.0 - self.rng.unit()).ln();
            let at = Incarnation {
                worker: worker as u32,
                number: self.status[worker].incarnation,
            };
            self.entering.insert(request, at);
            self.agenda
                .push(self.now_ms + wait_ms, Event::Entry { request, at });
            return Ok(());
        }
        self.enter(worker, request)
    }

    /// A request enters the queue of its worker's engine after its wait, unless the worker crashed meanwhile.
    pub(super) fn enter_after_wait(&mut self, request: u32, at: Incarnation) -> Result<(), SimError> {
        if self.entering.get(&request) != Some(&at) {
            return Ok(());
        }
        self.entering.remove(&request);
        self.enter(at.worker as usize, request)
    }

    /// The requests that wait to enter a worker's engine, which no longer wait for it.
    pub(super) fn leave_entrance(&mut self, worker: usize) -> Vec<u32> {
        let of_worker = |(_, at): &(&u32, &Incarnation)| at.worker as usize == worker;
        let requests: Vec<u32> = self
            .entering
            .iter()
            .filter(of_worker)
            .map(|(&request, _)| request)
            .collect();
        for request in &requests {
            self.entering.remove(request);
        }
        requests
    }

    /// A request enters the queue of its worker's engine.
    pub(super) fn enter(&mut self, worker: usize, request: u32) -> Result<(), SimError> {
        if !self.status[worker].is_alive {
            return self.connection_failed(request, worker);
        }
        self.workers[worker].enqueue(request, &self.state);
        self.wake(worker as u32);
        Ok(())
    }

    /// Computes the local hashes of a prompt's whole blocks into `hashes`.
    pub(super) fn hash_prompt(&mut self, request: u32) {
        let (workload, names) = (&*self.state.workload, self.state.names);
        let whole = names.whole_blocks(workload, request);
        let mut hashes = std::mem::take(&mut self.hashes);
        hashes.clear();
        hashes.extend((0..whole).map(|index| self.prompt_hash(names.block(workload, request, index))));
        self.hashes = hashes;
    }

    /// Puts a request into the queue of pool `at`, and places the requests that can be placed.
    pub(super) fn enqueue(&mut self, at: usize, request: u32) -> Result<(), SimError> {
        self.hash_prompt(request);
        let tokens = self.state.workload.input_tokens[request as usize];
        let waiting = QueuedRequest::new(request_id(request), self.hashes.as_slice().into(), tokens);
        let now_s = self.now_ms * 1e-3;
        let pool = &mut self.pools[at];
        let queue = pool
            .queue
            .as_mut()
            .expect("a pool that is offered requests must have a queue");
        match queue.offer(&pool.router, waiting, now_s) {
            Ok(Offer::Taken) => self.place_waiting(at),
            Ok(Offer::Refused { .. }) => {
                self.observe_refusal();
                self.end_request(request, End::Rejected);
                Ok(())
            }
            Err(Error::NoWorker { .. }) => {
                self.retry(request);
                Ok(())
            }
            Err(error) => Err(router_refused("a waiting request")(error)),
        }
    }

    /// Places the waiting requests of pool `at` that can be placed now.
    pub(super) fn place_waiting(&mut self, at: usize) -> Result<(), SimError> {
        self.place_waiting_at(at, self.now_ms * 1e-3)
    }

    /// Places the waiting requests of pool `at` that can be placed at `now_s`.
    pub(super) fn place_waiting_at(&mut self, at: usize, now_s: f64) -> Result<(), SimError> {
        let pool = &mut self.pools[at];
        let Some(queue) = pool.queue.as_mut().filter(|queue| !queue.is_empty()) else {
            return Ok(());
        };
        let mut placed = Vec::new();
        match queue.pump(&pool.router, now_s, &mut placed) {
            // Without a worker, all requests wait for the next worker.
            Ok(()) | Err(Error::NoWorker { .. }) => {}
            Err(error) => return Err(router_refused("a queue's placement")(error)),
        }
        self.state.totals.decisions += placed.len() as u64;
        self.record_decisions(at)?;
        let block_size = self.spec.pools[at].engine.block_size;
        for dispatch in placed {
            let (request, worker) = (dispatch.id.0 as u32, dispatch.worker.instance as usize);
            if at == 0 {
                let expected_tokens = dispatch.overlap_blocks * block_size;
                self.dispatch(
                    request,
                    Routed {
                        worker,
                        expected_tokens,
                    },
                )?;
            } else {
                self.request_room(request, worker)?;
            }
        }
        Ok(())
    }

    /// Routes a request in pool `at`. `None` if no worker is available.
    pub(super) fn route(&mut self, at: usize, request: u32) -> Result<Option<Routed>, SimError> {
        self.hash_prompt(request);
        let planned = self.plan.as_ref().map(|run| [worker_id(run.worker(at, request))]);
        let question = RouteRequest {
            allowed: planned.as_ref().map(<[_; 1]>::as_slice),
            request_id: Some(request_id(request)),
            local_hashes: &self.hashes,
            input_tokens: self.state.workload.input_tokens[request as usize],
            ..RouteRequest::default()
        };
        self.state.totals.decisions += 1;
        let decided = self.pools[at].router.route(&question, self.now_ms * 1e-3);
        self.record_decisions(at)?;
        match decided {
            Ok(decision) => Ok(Some(Routed {
                worker: decision.worker.instance as usize,
                expected_tokens: decision.overlap_blocks * self.spec.pools[at].engine.block_size,
            })),
            Err(Error::NoWorker { .. }) => Ok(None),
            Err(error) => Err(router_refused("a request")(error)),
        }
    }

    /// Lets a request arrive again after `retry_ms`, or fails it after [`MAX_RETRIES`] retries.
    pub(super) fn retry(&mut self, request: u32) {
        let i = request as usize;
        self.state.requests.retries[i] += 1;
        if self.state.requests.retries[i] > MAX_RETRIES {
            self.end_request(request, End::Failed);
            return;
        }
        self.agenda.push(
            self.now_ms + self.spec.retry_ms.max(0.001),
            Event::Arrival(request),
        );
    }

    /// Handles a request that was sent to a crashed worker: it is released, and the worker takes no further requests.
    pub(super) fn connection_failed(&mut self, request: u32, worker: usize) -> Result<(), SimError> {
        if self.spec.unseen.worker_of(request).is_some() {
            self.retry(request);
            return Ok(());
        }
        let pool = &mut self.pools[self.pool_of[worker]];
        pool.router
            .release(request_id(request), self.now_ms * 1e-3)
            .map_err(router_refused("a release"))?;
        pool.router
            .set_available(worker_id(worker), false)
            .map_err(router_refused("a quarantine"))?;
        self.retry(request);
        Ok(())
    }

    /// Ends a request, and lets its successors arrive after their pauses.
    ///
    /// In a closed loop, the end of a session also lets the next session arrive.
    pub(super) fn end_request(&mut self, request: u32, end: End) {
        let i = request as usize;
        self.state.requests.end[i] = end as u8;
        self.state.requests.end_ms[i] = self.now_ms;
        self.open_requests -= 1;
        self.observe_end(request);
        if let Some(ended) = &mut self.ended_rows {
            ended.push(request);
        }
        let mut child = self.first_child[i];
        let last_turn = child == NO_REQUEST;
        while child != NO_REQUEST {
            self.agenda.push(
                self.now_ms + self.state.workload.think_ms[child as usize] / self.spec.rate,
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
}
