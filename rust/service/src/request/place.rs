//! From a prepared prompt to booked workers, at once or late from a pool's queue: the decision step of a request's walk.
//!
//! A pool's router matches, prices, picks and books in one step under its lock. In a split the prefill leg comes first, then the decode
//! leg. O(prompt blocks + workers) per leg.
//!
//! A wait in a queue is bounded by the queue's own limit and a margin of one second; a longer wait
//! ends without a worker. Retries never wait: a client has waited once already.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wardrop_core::queue::{Cause, Limit, QueuedRequest};
use wardrop_core::{Error, RequestId, RouteRequest, Stage, WorkerId};

use super::Prepared;
use crate::peers::{Announced, OwnBooking};
use crate::pool::{Booking, Explanation, ImmediateChoice, Leg, QueueError, Role, WorkerPool};
use crate::prompt::{Abstention, Prompt};
use crate::service::Service;
use crate::tenants::TenantWeight;

/// Highest priority that a client may ask for; its negative is the lowest.
const PRIORITY_LIMIT: i32 = 10;
/// Time that a request waits beyond the queue's own limit before it gives up, seconds.
const WAIT_MARGIN_S: f64 = 1.0;

/// Facts about a request that decide its place in a queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlaceHints<'a> {
    /// Name of the tenant; `None` puts the request into the tenant of all requests without a name.
    pub tenant: Option<&'a str>,
    /// Levels above the usual priority, −10 to 10; other values are clamped.
    pub priority: i32,
    /// Milliseconds after which the first token is useless to the client.
    pub deadline_ms: Option<u64>,
    /// Bytes that the door keeps for the request while it waits.
    pub body_bytes: usize,
    /// Workers that may take the request, over all its roles. `None` allows every worker.
    pub allowed: Option<&'a [WorkerId]>,
}

/// Refusal of a request by the queue. A door maps it to the status of its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full.
    QueueFull {
        /// Seconds after which another attempt can succeed.
        retry_after_s: u32,
    },
    /// The tenant's waiting requests reach the tenant's limit.
    TenantQueueFull {
        /// Seconds after which another attempt can succeed.
        retry_after_s: u32,
    },
    /// No worker can meet the deadline.
    DeadlineHopeless {
        /// Seconds after which another attempt can succeed.
        retry_after_s: u32,
    },
}

/// Why a request has no booking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// The engine's own router chooses the worker.
    Abstain(Abstention),
    /// The client has to come back later.
    Refuse(Refusal),
}

/// A booking, and the time that the request waited for it.
pub(crate) struct Placed {
    /// The booking on the request's workers.
    pub booking: Booking,
    /// Seconds in the queue, over all legs; `None` for a request that met no queue.
    pub waited_s: Option<f64>,
}

/// Workers that may take a request; `None` allows every worker.
pub type Allowed<'a> = Option<&'a [WorkerId]>;

/// How a request meets the queues of its pools.
struct Queueing {
    /// Account and weight in the fair queue.
    tenant: TenantWeight,
    /// Levels above the usual priority, within ±[`PRIORITY_LIMIT`].
    priority: i32,
    /// Time on the service's clock after which the first token is useless.
    deadline_s: Option<f64>,
    /// Bytes that the door keeps while the request waits; they count against the queue's limit of
    /// bytes.
    body_bytes: u64,
}

impl Service {
    /// Chooses and books the workers of a request. Where the first pool has a queue, the request waits in the queue of each pool until the
    /// chosen worker has room: in a split for a prefill worker first, then for a decode worker.
    ///
    /// # Errors
    /// Why there is no booking.
    pub(crate) async fn place(
        &self,
        prepared: &Prepared,
        hints: &PlaceHints<'_>,
    ) -> Result<Placed, Unplaced> {
        let roles = prepared.model.roles();
        let first = prepared.model.pool(roles[0]);
        // A pool without workers would keep the request waiting for its full limit, so it is not
        // queued.
        if first.longest_wait_s().is_none() || first.size() == 0 {
            let booking = self
                .place_among(prepared, hints.allowed)
                .map_err(Unplaced::Abstain)?;
            return Ok(Placed {
                booking,
                waited_s: None,
            });
        }
        let queueing = Queueing {
            tenant: self.tenants.get(hints.tenant),
            priority: hints.priority.clamp(-PRIORITY_LIMIT, PRIORITY_LIMIT),
            deadline_s: hints.deadline_ms.map(|ms| self.clock.now_s() + ms as f64 / 1e3),
            body_bytes: hints.body_bytes as u64,
        };
        let mut booking = Booking::new(self.next_request_id(), self.clock);
        let mut waited_s = 0.0;
        for &role in roles {
            let leg = self
                .wait_for_leg(prepared, role, booking.id(), &queueing, hints.allowed)
                .await?;
            waited_s += leg.waited_s;
            booking.add(leg.leg);
        }
        Ok(Placed {
            booking: self.count(booking),
            waited_s: Some(waited_s),
        })
    }

    /// Chooses and books the workers of a request at once, past any queue.
    ///
    /// # Errors
    /// Why the engine's own router has to choose.
    pub(crate) fn place_now(&self, prepared: &Prepared) -> Result<Booking, Abstention> {
        self.place_among(prepared, None)
    }

    /// As `Service::place_now`, among the workers in `allowed`.
    ///
    /// # Errors
    /// Why no worker was chosen.
    pub fn place_among(&self, prepared: &Prepared, allowed: Allowed<'_>) -> Result<Booking, Abstention> {
        let mut booking = Booking::new(self.next_request_id(), self.clock);
        for &role in prepared.model.roles() {
            // When the next role has no worker, dropping the booking releases the legs that are booked already.
            booking.add(self.place_leg(prepared, role, booking.id(), allowed)?);
        }
        Ok(self.count(booking))
    }

    /// Chooses and books the workers of a request at once, each on another instance than `failed`'s.
    ///
    /// # Errors
    /// No other worker is available, or the router refuses the request.
    pub(super) fn place_without(&self, prepared: &Prepared, failed: WorkerId) -> Result<Booking, Abstention> {
        let mut booking = Booking::new(self.next_request_id(), self.clock);
        for &role in prepared.model.roles() {
            let others = prepared.model.pool(role).others(failed.instance);
            booking.add(self.place_leg(prepared, role, booking.id(), Some(&others))?);
        }
        Ok(self.count(booking))
    }

    /// Chooses and books one worker of a role for the whole request at once, among the instances that `is_able` names.
    ///
    /// # Errors
    /// None of these workers is available, or the router refuses the request.
    pub(super) fn place_whole(
        &self,
        prepared: &Prepared,
        role: Role,
        is_able: impl Fn(u64) -> bool,
    ) -> Result<Booking, Abstention> {
        let able = prepared.model.pool(role).workers_on(is_able);
        let mut booking = Booking::new(self.next_request_id(), self.clock);
        booking.add(self.place_leg(prepared, role, booking.id(), Some(&able))?);
        Ok(self.count(booking))
    }

    /// Books a worker that the client chose, without a decision; `None` when the pool does not know the worker.
    pub(super) fn book(&self, prepared: &Prepared, worker: WorkerId) -> Option<Booking> {
        self.book_as(prepared, worker, !prepared.prompt.is_streamed)
    }

    /// Books a worker without a decision. The prefill of an unstreamed request counts as done at the expected time.
    pub(super) fn book_as(
        &self,
        prepared: &Prepared,
        worker: WorkerId,
        is_unstreamed: bool,
    ) -> Option<Booking> {
        let role = *prepared.model.roles().last()?;
        let pool = prepared.model.pool(role);
        let mut booking = Booking::new(self.next_request_id(), self.clock);
        let request = RouteRequest {
            explain: false,
            expected_output_tokens: None,
            is_unstreamed,
            ..self.route_request(prepared, booking.id())
        };
        pool.book(&request, worker, self.clock.now_s()).ok()?;
        booking.add(Leg {
            pool: pool.clone(),
            worker,
            overlap_blocks: 0,
            pin_rank: false,
            explanation: None,
            announced: self.announce(&prepared.prompt, booking.id(), (pool, worker), is_unstreamed),
        });
        Some(booking)
    }

    /// Reports a booked leg to the routers that follow this one. O(prompt blocks) where peers may follow, else O(1).
    pub(super) fn announce(
        &self,
        prompt: &Prompt,
        id: RequestId,
        (pool, worker): (&WorkerPool, WorkerId),
        is_unstreamed: bool,
    ) -> Option<Announced> {
        let peers = self.peers.as_ref()?;
        peers.announce(|| OwnBooking {
            model: pool.model.clone(),
            role: pool.role,
            worker,
            work: pool.booked_work(id),
            hashes: prompt.hashes.iter().map(|hash| hash.0).collect(),
            further_blocks: 0,
            is_unstreamed,
        })
    }

    /// The decision's view of a prompt, with its candidates only where something explains them.
    fn route_request<'a>(&self, prepared: &'a Prepared, id: RequestId) -> RouteRequest<'a> {
        let prompt = &prepared.prompt;
        RouteRequest {
            request_id: Some(id),
            local_hashes: &prompt.hashes,
            sequence_hashes: &prompt.sequence,
            input_tokens: prompt.input_tokens,
            expected_output_tokens: prompt.expected_output_tokens,
            is_unstreamed: !prompt.is_streamed,
            explain: self.explains(),
            ..RouteRequest::default()
        }
    }

    /// Chooses and books one worker of one pool at once, and times the stages.
    ///
    /// # Errors
    /// [`Abstention::NoWorker`] without a candidate, [`Abstention::RouterRefused`] for any other
    /// refusal.
    fn place_leg(
        &self,
        prepared: &Prepared,
        role: Role,
        id: RequestId,
        allowed: Allowed<'_>,
    ) -> Result<Leg, Abstention> {
        let pool = prepared.model.pool(role);
        if pool.size() == 0 || allowed.is_some_and(<[WorkerId]>::is_empty) {
            return Err(Abstention::NoWorker);
        }
        let request = RouteRequest {
            allowed,
            ..self.route_request(prepared, id)
        };
        let mut last = Instant::now();
        let mark = |ended: Stage| {
            let now = Instant::now();
            let stages = &self.metrics.stages;
            let stage = match ended {
                Stage::Match => &stages.matching,
                Stage::Price => &stages.price,
                Stage::Pick => &stages.pick,
            };
            stage.observe((now - last).as_secs_f64());
            last = now;
        };
        match pool.route(&request, self.clock.now_s(), mark) {
            Ok(placement) => Ok(Leg {
                pool: pool.clone(),
                worker: placement.decision.worker,
                overlap_blocks: placement.decision.overlap_blocks,
                pin_rank: placement.several_ranks,
                explanation: request.explain.then(|| {
                    Box::new(Explanation {
                        cost: placement.decision.cost,
                        misfit: placement.decision.misfit,
                        candidates: placement.decision.candidates,
                        waited_s: 0.0,
                        cause: "at_once",
                        at_once: None,
                    })
                }),
                announced: self.announce(
                    &prepared.prompt,
                    id,
                    (pool, placement.decision.worker),
                    request.is_unstreamed,
                ),
            }),
            Err(Error::NoWorker { .. }) => Err(Abstention::NoWorker),
            Err(_) => Err(Abstention::RouterRefused),
        }
    }

    /// Waits for a worker of one pool and books it.
    ///
    /// Dropping the future takes the request out of the queue. A booking that was made meanwhile is
    /// released.
    ///
    /// # Errors
    /// A refusal of the queue, or an abstention when no worker came within the longest wait.
    async fn wait_for_leg(
        &self,
        prepared: &Prepared,
        role: Role,
        id: RequestId,
        queueing: &Queueing,
        allowed: Allowed<'_>,
    ) -> Result<WaitedLeg, Unplaced> {
        let pool = prepared.model.pool(role);
        let prompt = &prepared.prompt;
        let request = QueuedRequest {
            expected_output_tokens: prompt.expected_output_tokens,
            bytes: queueing.body_bytes + 8 * prompt.hashes.len() as u64,
            tenant: queueing.tenant.tenant,
            weight: queueing.tenant.weight,
            is_unstreamed: !prompt.is_streamed,
            explain: self.explains(),
            allowed: allowed.map(Box::from),
            priority: queueing.priority,
            deadline_s: queueing.deadline_s,
            ..QueuedRequest::new(id, prompt.hashes.as_slice().into(), prompt.input_tokens)
        };
        let entry = match pool.wait(request, self.clock) {
            Ok(entry) => entry,
            // The queue was switched off a moment ago.
            Err(QueueError::Off) => {
                let leg = self
                    .place_leg(prepared, role, id, allowed)
                    .map_err(Unplaced::Abstain)?;
                return Ok(WaitedLeg { leg, waited_s: 0.0 });
            }
            Err(error) => return Err(self.queue_failed(pool, error)),
        };
        // Pricing a request twice costs only a request that waits.
        let at_once = if self.explains() && entry.is_waiting() {
            self.immediate_choice(pool, prepared, allowed)
        } else {
            None
        };
        // The queue places every request in time while a worker is there. Without a worker the engine's own router reports that.
        let longest_s = pool.longest_wait_s().unwrap_or(0.0) + WAIT_MARGIN_S;
        let dispatch = match tokio::time::timeout(Duration::from_secs_f64(longest_s), entry.placed()).await {
            Ok(Some(Ok(dispatch))) => dispatch,
            Ok(Some(Err(error @ QueueError::Refused { .. }))) => return Err(self.queue_failed(pool, error)),
            _ => return Err(Unplaced::Abstain(Abstention::NoWorker)),
        };
        let cause = match dispatch.cause {
            Cause::Room => "room",
            Cause::Overflow => "overflow",
            Cause::Age => "age",
        };
        let (model, worker_type) = (&*pool.model, pool.role.name());
        self.metrics
            .queue
            .time
            .with_label_values(&[model, worker_type])
            .observe(dispatch.waited_s);
        self.metrics
            .queue
            .placed
            .with_label_values(&[model, worker_type, cause])
            .inc();
        let leg = Leg {
            pool: pool.clone(),
            worker: dispatch.worker,
            overlap_blocks: dispatch.overlap_blocks,
            pin_rank: pool.chosen(dispatch.worker, self.clock.now_s()),
            explanation: self.explains().then(|| {
                Box::new(Explanation {
                    cost: dispatch.cost,
                    misfit: dispatch.misfit,
                    candidates: dispatch.candidates,
                    waited_s: dispatch.waited_s,
                    cause,
                    at_once,
                })
            }),
            announced: self.announce(prompt, id, (pool, dispatch.worker), !prompt.is_streamed),
        };
        Ok(WaitedLeg {
            leg,
            waited_s: dispatch.waited_s,
        })
    }

    /// Whether decisions keep their candidates, for a receipt, a record or a span.
    pub(super) fn explains(&self) -> bool {
        self.receipts.is_on()
            || self.records.is_some()
            || self.tracing.is_some()
            || self.has_door_traces.load(Ordering::Relaxed)
    }

    /// The worker that the policy would choose now for a request that waits. O(prompt blocks + workers).
    fn immediate_choice(
        &self,
        pool: &WorkerPool,
        prepared: &Prepared,
        allowed: Allowed<'_>,
    ) -> Option<ImmediateChoice> {
        let request = RouteRequest {
            request_id: None,
            explain: false,
            allowed,
            ..self.route_request(prepared, RequestId(0))
        };
        let decision = pool.weigh(&request, self.clock.now_s()).ok()?;
        Some(ImmediateChoice {
            worker: decision.worker,
            cost: decision.cost,
        })
    }

    /// Counts a refusal of the queue, and says when to come back.
    fn queue_failed(&self, pool: &WorkerPool, error: QueueError) -> Unplaced {
        let (limit, retry_after_s) = match error {
            QueueError::Refused { limit, retry_after_s } => (limit, retry_after_s.ceil() as u32),
            QueueError::RouterRefused => return Unplaced::Abstain(Abstention::RouterRefused),
            QueueError::NoWorker | QueueError::Off => return Unplaced::Abstain(Abstention::NoWorker),
        };
        let (bound, refusal) = match limit {
            Limit::Requests => ("requests", Refusal::QueueFull { retry_after_s }),
            Limit::Bytes => ("bytes", Refusal::QueueFull { retry_after_s }),
            Limit::Tenant => ("tenant_requests", Refusal::TenantQueueFull { retry_after_s }),
            Limit::TenantBytes => ("tenant_bytes", Refusal::TenantQueueFull { retry_after_s }),
            Limit::Deadline => ("deadline", Refusal::DeadlineHopeless { retry_after_s }),
        };
        self.metrics
            .queue
            .refused
            .with_label_values(&[&*pool.model, pool.role.name(), bound])
            .inc();
        Unplaced::Refuse(refusal)
    }

    /// Counts the placement of every leg.
    fn count(&self, booking: Booking) -> Booking {
        for leg in booking.legs() {
            let labels = [&*leg.pool.model, leg.pool.role.name()];
            self.metrics.decisions.with_label_values(&labels).inc();
        }
        booking
    }
}

/// A leg that a queue placed.
struct WaitedLeg {
    /// The booked leg.
    leg: Leg,
    /// Seconds that the request waited for this leg.
    waited_s: f64,
}
