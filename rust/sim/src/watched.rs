//! A batch run that stops whenever somebody wants to look at it, and may be changed then: a controller's view of a fleet.
//!
//! ```text
//! advance(until) ─▶ look ─▶ (decide) ─▶ change ─▶ advance …      without a change: the very run of `simulate`
//! ```

use std::borrow::Cow;

use crate::config::{FleetSpec, SimError, bad};
use crate::engine::Desk;
use crate::fleet::Fleet;
use crate::record::Outcome;
use crate::workload::{Naming, Workload};
use wardrop_core::control::{Look, Routing, RoutingChange};
use wardrop_core::error::Error;
use wardrop_core::router::RouterConfig;

/// See the module.
pub struct WatchedFleet {
    fleet: Fleet<'static>,
    routing: Routing,
    at_ms: f64,
}

impl WatchedFleet {
    /// A fleet at time 0 with `workload` before it. `routers` has one configuration per pool; the first one's policy and queue
    /// are what is told as in force.
    pub fn new(spec: FleetSpec, workload: Workload, routers: &[RouterConfig]) -> Result<Self, SimError> {
        spec.validate()?;
        workload.validate()?;
        if routers.len() != spec.pools.len() {
            return Err(bad("routers", routers.len(), "one configuration per pool"));
        }
        let naming = Naming::new(&workload, spec.pools[0].engine.block_size)?;
        let routing = Routing {
            policy: routers[0].policy.clone(),
            queue: spec.queues.first().copied().flatten(),
        };
        let desk = Desk::new(Cow::Owned(workload), naming);
        let mut fleet = Fleet::new(Cow::Owned(spec), desk, routers)?;
        fleet.watch();
        Ok(Self {
            fleet,
            routing,
            at_ms: 0.0,
        })
    }

    /// Let time pass up to `until_ms`; false when nothing is left to happen.
    pub fn advance(&mut self, until_ms: f64) -> Result<bool, SimError> {
        let goes_on = self.fleet.run_until(until_ms)?;
        self.at_ms = self.at_ms.max(until_ms);
        Ok(goes_on)
    }

    /// Now, ms.
    pub const fn at_ms(&self) -> f64 {
        self.at_ms
    }

    /// Outcomes since the last look, and every pool's pulse.
    pub fn look(&mut self) -> Look {
        self.fleet.look(self.at_ms)
    }

    /// Policy and queue in force.
    pub const fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The change in force, now and in every pool, all or nothing.
    pub fn change(&mut self, change: RoutingChange) -> Result<&Routing, ChangeError> {
        let next = self.routing.with(change).map_err(ChangeError::Refused)?;
        self.fleet
            .set_routing(&self.routing, &next, self.at_ms)
            .map_err(ChangeError::Fleet)?;
        self.routing = next;
        Ok(&self.routing)
    }

    /// What the run left behind.
    pub fn finish(self) -> Result<Outcome, SimError> {
        self.fleet.outcome()
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The change itself is wrong; nothing has changed.
    #[error(transparent)]
    Refused(Error),
    /// The fleet could not go on.
    #[error(transparent)]
    Fleet(SimError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{Case, case, engine, router};
    use crate::{End, simulate};
    use wardrop_core::PolicyConfig;
    use wardrop_core::control::Interval;
    use wardrop_core::price::Objective;
    use wardrop_core::queue::QueueConfig;

    fn routers(spec: &FleetSpec, seed: u64) -> Vec<RouterConfig> {
        vec![router(PolicyConfig::LeastLoaded, seed); spec.pools.len()]
    }

    /// The case's run with a look every `stride_ms`, and all that the looks saw.
    fn watch(case: &Case, spec: FleetSpec, stride_ms: f64) -> (Outcome, Interval) {
        let routers = routers(&spec, case.seed);
        let mut fleet = WatchedFleet::new(spec, case.workload.clone(), &routers).expect("a fair fleet");
        let mut all = Interval::default();
        loop {
            let goes_on = fleet.advance(fleet.at_ms() + stride_ms).expect("a fair fleet");
            let Look {
                outcomes: seen,
                pools,
                ..
            } = fleet.look();
            assert!(pools.iter().all(|pulse| pulse.backlog_s >= 0.0
                && pulse.waiting_prefill_s >= 0.0
                && pulse.booked_prefill_s >= 0.0));
            all.arrivals += seen.arrivals;
            all.e2e_answers += seen.e2e_answers;
            all.refused += seen.refused;
            all.broken += seen.broken;
            all.e2e_sum_s += seen.e2e_sum_s;
            all.ttft_s.extend(seen.ttft_s);
            if !goes_on {
                return (fleet.finish().expect("a fair fleet"), all);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn looking_changes_nothing_and_sees_every_request_once(
            case in case(), stride_ms in 0.5f64..700.0, late in any::<bool>(),
        ) {
            let mut spec = case.spec.clone();
            let tight = QueueConfig { max_requests: 3, ..QueueConfig::default() };
            spec.queues = vec![late.then_some(tight); spec.pools.len()];
            let plain = simulate(&spec, &case.workload, &routers(&spec, case.seed)).expect("a fair fleet");
            let (outcome, seen) = watch(&case, spec, stride_ms);
            prop_assert_eq!(outcome.end_ms.to_bits(), plain.end_ms.to_bits());
            let (requests, watched) = (&plain.requests, &outcome.requests);
            let bits = |times: &[f64]| times.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&watched.first_token_ms), bits(&requests.first_token_ms));
            prop_assert_eq!(bits(&watched.end_ms), bits(&requests.end_ms));
            prop_assert_eq!(&watched.worker, &requests.worker);
            let count = |end: End| requests.end.iter().map(|e| u64::from(*e == end as u8)).sum::<u64>();
            let arrived = requests.arrival_ms.iter().filter(|ms| !ms.is_nan()).count() as u64;
            prop_assert_eq!(seen.arrivals, arrived);
            prop_assert_eq!(seen.e2e_answers, count(End::Complete));
            prop_assert_eq!(seen.broken, count(End::Failed));
            prop_assert!(seen.refused <= count(End::Rejected));
            let firsts = requests.first_token_ms.iter().filter(|ms| !ms.is_nan()).count();
            prop_assert_eq!(seen.ttft_s.len(), firsts);
            let e2e_ms: f64 = (0..requests.end.len())
                .filter(|&i| requests.end[i] == End::Complete as u8)
                .map(|i| requests.end_ms[i] - requests.arrival_ms[i])
                .sum();
            prop_assert!((seen.e2e_sum_s - e2e_ms * 1e-3).abs() < 1e-6 * (1.0 + e2e_ms));
        }
    }

    /// One worker, 1 ms per token, four prompts of 100 tokens at once.
    fn four() -> Workload {
        Workload {
            arrival_ms: vec![0.0; 4],
            input_tokens: vec![100; 4],
            output_tokens: vec![1; 4],
            block_start: (0..5).map(|i| i * 7).collect(),
            blocks: (0..28).collect(),
            block_size: 16,
            after: vec![u32::MAX; 4],
            think_ms: vec![0.0; 4],
        }
    }

    #[test]
    fn without_its_queue_all_who_wait_are_placed_at_once() {
        let mut spec = FleetSpec::aggregated(1, engine());
        // One at a time, so that there is something to wait for.
        spec.queues = vec![Some(QueueConfig {
            share_passes: false,
            ..QueueConfig::default()
        })];
        let mut fleet = WatchedFleet::new(spec.clone(), four(), &routers(&spec, 1)).expect("a fair fleet");
        assert!(fleet.advance(50.0).expect("a fair fleet"));
        let look = fleet.look();
        let pool = &look.pools[0];
        assert_eq!((look.outcomes.arrivals, pool.in_flight, pool.waiting), (4, 1, 3));
        let change = |text: &str| serde_json::from_str(text).expect("a change");
        let wrong = change(r#"{"queue": {"kappa": -1}}"#);
        assert!(matches!(fleet.change(wrong), Err(ChangeError::Refused(_))));
        assert_eq!(fleet.look().pools[0].waiting, 3);
        let without = change(r#"{"queue": null}"#);
        assert!(fleet.change(without).expect("a fair change").queue.is_none());
        let pulse = &fleet.look().pools[0];
        assert_eq!((pulse.in_flight, pulse.waiting), (4, 0));
        assert!(!fleet.advance(1e6).expect("a fair fleet"));
        assert_eq!(fleet.look().outcomes.first_tokens, 4);
    }

    #[test]
    fn another_policy_is_in_force_from_the_next_request_on() {
        let mut workload = four();
        workload.arrival_ms = vec![0.0, 500.0, 1000.0, 1500.0];
        // All four have the prompt of the first, so where it lies is the cheapest.
        workload.blocks = (0..28).map(|i| i % 7).collect();
        let spec = FleetSpec::aggregated(2, engine());
        let routers = [router(PolicyConfig::Toll(Objective::default()), 1)];
        let mut fleet = WatchedFleet::new(spec, workload, &routers).expect("a fair fleet");
        fleet.advance(600.0).expect("a fair fleet");
        let change = serde_json::from_str(r#"{"policy": {"name": "round_robin"}}"#).expect("a change");
        fleet.change(change).expect("a fair change");
        assert!(!fleet.advance(1e6).expect("a fair fleet"));
        let worker = fleet.finish().expect("a fair fleet").requests.worker;
        assert_eq!(worker[0], worker[1]);
        assert_ne!(worker[2], worker[3]);
    }
}
