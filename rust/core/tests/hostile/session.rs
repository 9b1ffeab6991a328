//! A router with its queue, called with hostile figures. Every call checks what must hold after it.

use wardrop_core::ledger::Outcome;
use wardrop_core::queue::{LateQueue, QueuedRequest, Tenant};
use wardrop_core::{
    Error, LocalHash, PolicyConfig, RequestId, RouteRequest, Router, RouterConfig, WorkerId, WorkerSpec,
};

use super::BLOCK;
use super::figures::Step;

/// A router with one worker per specification. The pair says whether its pool prefills and decodes.
pub fn router(policy: PolicyConfig, specs: &[WorkerSpec], (prefills, decodes): (bool, bool)) -> Router {
    let config = RouterConfig::new(BLOCK)
        .with_policy(policy)
        .with_prefill_tracking(prefills)
        .with_decode_tracking(decodes);
    let router = Router::new(config).unwrap();
    for (at, spec) in specs.iter().enumerate() {
        router
            .add_worker(WorkerId::new(at as u64, 0), spec.clone())
            .unwrap();
    }
    router
}

/// Errors that a hostile request may get. Any other error means that a figure was misread.
pub fn is_expected(error: &Error) -> bool {
    matches!(
        error,
        Error::NoWorker { .. } | Error::Parameter { .. } | Error::RequestExists(_) | Error::UnknownRequest(_)
    )
}

/// Panics unless every learned figure and every load is finite.
pub fn assert_usable(router: &Router) {
    let curves = router.fleet_curves();
    for seconds in [
        curves.prefill_s(1, 0),
        curves.prefill_s(100_000, 10_000),
        curves.step_s(100.0, 1e6),
        router.mean_output_tokens(),
    ] {
        assert!(seconds.is_finite() && seconds >= 0.0, "{seconds}");
    }
    let load = router.fleet_load(1.0);
    assert!(
        load.backlog_s.is_finite() && load.kv_tokens.is_finite(),
        "{load:?}"
    );
}

/// A router with its queue, under hostile calls.
pub struct Session {
    pub router: Router,
    pub queue: LateQueue,
    pub booked: Vec<RequestId>,
    pub next_id: u64,
}

impl Session {
    /// An id that was never used.
    pub fn id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id)
    }

    /// One of the requests booked so far, ended or not.
    pub fn booked(&mut self, at: usize) -> Option<RequestId> {
        let len = self.booked.len();
        (len > 0).then(|| self.booked[at % len])
    }

    /// Pumps the queue, and keeps the ids of the requests that it placed.
    pub fn pump(&mut self, now_s: f64) {
        let mut placed = Vec::new();
        if let Err(error) = self.queue.pump(&self.router, now_s, &mut placed) {
            assert!(is_expected(&error), "{error}");
        }
        for dispatch in placed {
            assert!(!dispatch.cost.is_nan());
            self.booked.push(dispatch.id);
        }
        self.queue.take_too_late();
    }

    /// Makes one call with hostile figures, and checks its answer.
    pub fn run(&mut self, step: Step, now_s: f64) {
        let worker = WorkerId::new(0, 0);
        match step {
            Step::Route {
                input_tokens,
                output_tokens,
                blocks,
            } => {
                let id = self.id();
                let hashes: Vec<LocalHash> = (0..blocks as u64).map(LocalHash).collect();
                let request = RouteRequest {
                    request_id: Some(id),
                    local_hashes: &hashes,
                    input_tokens,
                    expected_output_tokens: output_tokens,
                    explain: true,
                    ..RouteRequest::default()
                };
                match self.router.route(&request, now_s) {
                    Ok(decision) => {
                        assert!(!decision.cost.is_nan());
                        assert!(self.router.workers().any(|worker| worker == decision.worker));
                        self.booked.push(id);
                    }
                    Err(error) => assert!(is_expected(&error), "{error}"),
                }
            }
            Step::Offer {
                input_tokens,
                weight,
                priority,
                deadline_s,
            } => {
                let id = self.id();
                let request = QueuedRequest {
                    weight,
                    priority,
                    deadline_s,
                    tenant: Tenant(priority.unsigned_abs() % 5),
                    ..QueuedRequest::new(id, Box::new([LocalHash(7); 3]), input_tokens)
                };
                if let Err(error) = self.queue.offer(&self.router, request, now_s) {
                    assert!(is_expected(&error), "{error}");
                }
                self.pump(now_s);
            }
            Step::FirstToken { at } => {
                if let Some(id) = self.booked(at) {
                    let _ = self.router.prefill_done(id, now_s);
                }
            }
            Step::Finish { at, output_tokens } => {
                if let Some(id) = self.booked(at) {
                    let outcome = Outcome {
                        output_tokens,
                        ..Outcome::default()
                    };
                    let _ = self.router.finish(id, outcome, now_s);
                    self.pump(now_s);
                }
            }
            Step::Pass(pass) => {
                self.router.report_pass(worker, &pass);
            }
            Step::Queue(queue) => {
                self.router.report_engine_queue(worker, queue, now_s);
                self.pump(now_s);
            }
            Step::Rejoin(spec) => {
                self.router.remove_worker(worker).unwrap();
                self.router.add_worker(worker, spec).unwrap();
                self.pump(now_s);
            }
            Step::Availability { at, available } => {
                self.router
                    .set_available(WorkerId::new(at, 0), available)
                    .unwrap();
                self.pump(now_s);
            }
            Step::Observe(ttft_s) => self.router.observe_first_token(ttft_s, now_s),
            Step::Expire => {
                self.router.expire(now_s);
            }
        }
        assert_usable(&self.router);
    }
}
