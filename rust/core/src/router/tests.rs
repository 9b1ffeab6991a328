//! The fallback of a decision without any usable cost. No policy of the crate gives one, so the test brings its own.

use super::pricing::Pricing;
use super::*;
use crate::price::{Policy, View};
use crate::queue::{LateQueue, QueueConfig, QueuedRequest};
use crate::request::RequestId;
use crate::rng::Rng;

/// A policy that prices every candidate alike.
struct Everywhere(f64);

impl Policy for Everywhere {
    fn name(&self) -> &'static str {
        "everywhere"
    }

    fn price(&self, _view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        costs.fill(self.0);
    }
}

fn request(id: u64) -> QueuedRequest {
    QueuedRequest::new(RequestId(id), Box::new([]), 160)
}

#[test]
fn without_a_usable_cost_the_least_loaded_worker_is_chosen_and_counted() {
    for unusable in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        let router = Router::new(RouterConfig::new(16)).expect("the configuration is valid");
        router.state().pricing = Pricing::of(Box::new(Everywhere(unusable)));
        for instance in 0..3 {
            router
                .add_worker(WorkerId::new(instance, 0), WorkerSpec::default())
                .expect("the worker is new");
        }
        let mut workers = Vec::new();
        for id in 0..3 {
            let decision = router
                .route(&request(id).route_request(), 0.0)
                .expect("a worker is available");
            assert_eq!(decision.cost, f64::INFINITY);
            workers.push(decision.worker.instance);
        }
        workers.sort_unstable();
        assert_eq!(workers, [0, 1, 2], "each of three idle workers gets one request");
        let config = QueueConfig {
            max_wait_s: 1.0,
            ..QueueConfig::default()
        };
        let mut queue = LateQueue::new(config).expect("the configuration is valid");
        let mut placed = Vec::new();
        queue
            .offer(&router, request(9), 0.0)
            .expect("a worker is available");
        queue
            .pump(&router, 2.0, &mut placed)
            .expect("a worker is available");
        assert_eq!((placed.len(), placed[0].cost), (1, f64::INFINITY));
        assert_eq!((router.counters().routed, router.counters().unpriced), (4, 4));
    }
}
