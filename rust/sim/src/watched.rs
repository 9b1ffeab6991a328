//! A batch run in steps: a controller observes the fleet between two steps, and changes its policy and queue.
//!
//! ```text
//! advance(until) ─▶ look ─▶ (decide) ─▶ change ─▶ advance …      without a change, the run equals `simulate`
//! ```

use std::borrow::Cow;

use wardrop_core::Error;
use wardrop_core::RouterConfig;
use wardrop_core::control::{ControlSnapshot, Routing, RoutingChange};

use crate::error::SimError;
use crate::fleet::Fleet;
use crate::record::Outcome;
use crate::spec::FleetSpec;
use crate::workload::Workload;

/// A batch run that a controller advances, observes and changes.
pub struct WatchedFleet {
    fleet: Fleet<'static>,
    /// Policy and queue in force.
    routing: Routing,
    /// Simulated time, milliseconds.
    at_ms: f64,
}

impl WatchedFleet {
    /// A fleet at time 0 with `workload` to come. `routers` has one configuration per pool.
    ///
    /// The policy and queue of the first pool count as the policy and queue in force.
    ///
    /// # Errors
    /// [`SimError::Config`] when the fleet, the workload or the number of routers is out of range.
    pub fn new(spec: FleetSpec, workload: Workload, routers: &[RouterConfig]) -> Result<Self, SimError> {
        workload.validate()?;
        let queue = spec.queues.first().copied().flatten();
        let mut fleet = Fleet::new(Cow::Owned(spec), Cow::Owned(workload), routers)?;
        fleet.watch();
        let policy = routers[0].policy.clone();
        let routing = Routing { policy, queue };
        Ok(Self {
            fleet,
            routing,
            at_ms: 0.0,
        })
    }

    /// Runs the fleet up to `until_ms`. Returns false if no further event can follow.
    ///
    /// # Errors
    /// [`SimError::Router`] when a router refuses a call that every fleet needs.
    pub fn advance(&mut self, until_ms: f64) -> Result<bool, SimError> {
        let continues = self.fleet.run_until(until_ms)?;
        self.at_ms = self.at_ms.max(until_ms);
        Ok(continues)
    }

    /// Simulated time, in milliseconds.
    pub const fn at_ms(&self) -> f64 {
        self.at_ms
    }

    /// Outcomes since the last call, and the state of every pool.
    pub fn look(&mut self) -> ControlSnapshot {
        self.fleet.look(self.at_ms)
    }

    /// Policy and queue in force.
    pub const fn routing(&self) -> &Routing {
        &self.routing
    }

    /// Applies a change to every pool at once, and returns the policy and queue in force.
    ///
    /// # Errors
    /// [`ChangeError::Refused`] when the change is wrong; the fleet is then unchanged.
    pub fn change(&mut self, change: RoutingChange) -> Result<&Routing, ChangeError> {
        let next = self.routing.with(change).map_err(ChangeError::Refused)?;
        self.fleet
            .set_routing(&self.routing, &next, self.at_ms)
            .map_err(ChangeError::Fleet)?;
        self.routing = next;
        Ok(&self.routing)
    }

    /// Ends the run and returns its results.
    ///
    /// # Errors
    /// [`SimError::Router`] when a window of the price of anarchy cannot be solved.
    pub fn finish(self) -> Result<Outcome, SimError> {
        self.fleet.outcome()
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The change itself is wrong. The fleet is unchanged.
    #[error(transparent)]
    Refused(Error),
    /// A router refused a call that every fleet needs.
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
    use wardrop_core::control::OutcomeWindow;
    use wardrop_core::price::Objective;
    use wardrop_core::queue::QueueConfig;

    fn routers(spec: &FleetSpec, seed: u64) -> Vec<RouterConfig> {
        vec![router(PolicyConfig::LeastLoaded, seed); spec.pools.len()]
    }

    /// The result of a run that is observed every `stride_ms`, and the sum of all observations.
    fn watch(case: &Case, spec: FleetSpec, stride_ms: f64) -> (Outcome, OutcomeWindow) {
        let routers = routers(&spec, case.seed);
        let mut fleet = WatchedFleet::new(spec, case.workload.clone(), &routers).expect("a valid fleet");
        let mut all = OutcomeWindow::default();
        loop {
            let continues = fleet.advance(fleet.at_ms() + stride_ms).expect("a valid fleet");
            let ControlSnapshot {
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
            if !continues {
                return (fleet.finish().expect("a valid fleet"), all);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn observation_changes_nothing_and_counts_every_request_once(
            case in case(), stride_ms in 0.5f64..700.0, late in any::<bool>(),
        ) {
            let mut spec = case.spec.clone();
            let tight = QueueConfig { max_requests: 3, ..QueueConfig::default() };
            spec.queues = vec![late.then_some(tight); spec.pools.len()];
            let plain = simulate(&spec, &case.workload, &routers(&spec, case.seed)).expect("a valid fleet");
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
    fn all_waiting_requests_are_placed_when_the_queue_is_removed() {
        let mut spec = FleetSpec::aggregated(1, engine());
        // The worker takes one request at a time, so that the others wait.
        spec.queues = vec![Some(QueueConfig {
            share_passes: false,
            ..QueueConfig::default()
        })];
        let mut fleet = WatchedFleet::new(spec.clone(), four(), &routers(&spec, 1)).expect("a valid fleet");
        assert!(fleet.advance(50.0).expect("a valid fleet"));
        let look = fleet.look();
        let pool = &look.pools[0];
        assert_eq!((look.outcomes.arrivals, pool.in_flight, pool.waiting), (4, 1, 3));
        let change = |text: &str| serde_json::from_str(text).expect("a change");
        let wrong = change(r#"{"queue": {"kappa": -1}}"#);
        assert!(matches!(fleet.change(wrong), Err(ChangeError::Refused(_))));
        assert_eq!(fleet.look().pools[0].waiting, 3);
        let without = change(r#"{"queue": null}"#);
        assert!(fleet.change(without).expect("a valid change").queue.is_none());
        let pulse = &fleet.look().pools[0];
        assert_eq!((pulse.in_flight, pulse.waiting), (4, 0));
        assert!(!fleet.advance(1e6).expect("a valid fleet"));
        assert_eq!(fleet.look().outcomes.first_tokens, 4);
    }

    #[test]
    fn a_new_policy_decides_from_the_next_request_on() {
        let mut workload = four();
        workload.arrival_ms = vec![0.0, 500.0, 1000.0, 1500.0];
        // All four have the same prompt, so the worker that computed it is the cheapest.
        workload.blocks = (0..28).map(|i| i % 7).collect();
        let spec = FleetSpec::aggregated(2, engine());
        let routers = [router(PolicyConfig::Toll(Objective::default()), 1)];
        let mut fleet = WatchedFleet::new(spec, workload, &routers).expect("a valid fleet");
        fleet.advance(600.0).expect("a valid fleet");
        let change = serde_json::from_str(r#"{"policy": {"name": "round_robin"}}"#).expect("a change");
        fleet.change(change).expect("a valid change");
        assert!(!fleet.advance(1e6).expect("a valid fleet"));
        let worker = fleet.finish().expect("a valid fleet").requests.worker;
        assert_eq!(worker[0], worker[1]);
        assert_ne!(worker[2], worker[3]);
    }
}
