//! Which arms the calibrator may put in force, and which arms do harm. Pure functions of routings and reports.
//!
//! The guard of the control plane judges a change after it was made; these rules keep it from a
//! change whose harm is visible before. O(1) per arm.

use wardrop_core::PolicyConfig;
use wardrop_core::control::Routing;
use wardrop_core::queue::QueueConfig;
use wardrop_sim::shadow::ArmReport;

/// Ratio to the policy in force above which a higher cost counts as harm; equals the guard's tolerance.
const HARM: f64 = 1.10;

/// Whether an arm differs from the routing in force only in the `toll` objective and κ.
pub(super) fn is_adoptable(arm: &Routing, in_force: &Routing) -> bool {
    let both_toll = matches!(
        (&arm.policy, &in_force.policy),
        (PolicyConfig::Toll(_), PolicyConfig::Toll(_))
    );
    let same_queue = match (arm.queue, in_force.queue) {
        (None, None) => true,
        (Some(arm), Some(in_force)) => {
            arm == QueueConfig {
                kappa: arm.kappa,
                ..in_force
            }
        }
        _ => false,
    };
    both_toll && same_queue && arm != in_force
}

/// Whether an arm makes a latency figure significantly worse, by more than the guard's tolerance.
pub(super) fn does_harm(arm: &ArmReport) -> bool {
    let costs = [arm.ttft_ratio, arm.ttft_p99_ratio, arm.itl_ratio, arm.e2e_ratio];
    costs
        .into_iter()
        .flatten()
        .any(|ratio| ratio.low > 1.0 && ratio.value > HARM)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wardrop_sim::shadow::Estimate;

    use super::*;

    fn ratio(low: f64, value: f64, high: f64) -> Estimate {
        let p = if low > 1.0 || high < 1.0 { 0.01 } else { 0.5 };
        Estimate { value, low, high, p }
    }

    /// An arm whose mean TTFT is a third less than in force, and whose p99 has a ratio.
    fn arm(ttft_p99_ratio: Option<Estimate>) -> ArmReport {
        ArmReport {
            name: "κ 100".into(),
            completed: 1000,
            refused: 0,
            open: 3,
            ttft_s: None,
            ttft_p99_s: None,
            itl_s: None,
            e2e_s: None,
            cached_share: None,
            goodput: None,
            ttft_ratio: Some(ratio(0.5, 0.67, 0.9)),
            ttft_p99_ratio,
            itl_ratio: None,
            e2e_ratio: Some(ratio(0.9, 1.0, 1.1)),
            cached_share_ratio: None,
            goodput_ratio: None,
        }
    }

    #[test]
    fn a_tail_that_is_surely_longer_is_harm_regardless_of_the_mean() {
        assert!(does_harm(&arm(Some(ratio(1.2, 2.0, 3.0)))));
        assert!(
            !does_harm(&arm(Some(ratio(0.9, 2.0, 4.0)))),
            "the interval holds 1"
        );
        assert!(
            !does_harm(&arm(Some(ratio(1.01, 1.09, 1.2)))),
            "within the tolerance"
        );
        assert!(!does_harm(&arm(None)), "too few requests for a p99");
    }

    fn routing(policy: serde_json::Value, kappa: Option<f64>) -> Routing {
        let queue = kappa.map(|kappa| QueueConfig {
            kappa,
            ..QueueConfig::default()
        });
        Routing {
            policy: serde_json::from_value(policy).unwrap(),
            queue,
        }
    }

    #[test]
    fn only_another_objective_or_kappa_of_the_price_in_force_may_be_adopted() {
        let toll = || json!({"name": "toll"});
        let in_force = routing(toll(), Some(10.0));
        assert!(is_adoptable(&routing(toll(), Some(30.0)), &in_force));
        assert!(is_adoptable(
            &routing(json!({"name": "toll", "e2e": 1.0}), Some(10.0)),
            &in_force
        ));
        assert!(!is_adoptable(&in_force, &in_force), "nothing would change");
        assert!(
            !is_adoptable(&routing(toll(), None), &in_force),
            "the queue is no weight"
        );
        assert!(!is_adoptable(
            &routing(json!({"name": "sticky"}), Some(10.0)),
            &in_force
        ));
        let other = routing(json!({"name": "dynamo"}), None);
        assert!(
            !is_adoptable(&routing(toll(), None), &other),
            "it starts from the price"
        );
        let mut roomier = routing(toll(), Some(30.0));
        roomier.queue.as_mut().unwrap().backlog_s = 0.5;
        assert!(!is_adoptable(&roomier, &in_force));
    }
}
