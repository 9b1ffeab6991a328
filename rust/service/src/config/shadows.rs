//! Options of the shadows: their policies and their limits of CPU time and memory.
//!
//! The service checks the options when it starts, and `shadows::ShadowModels` builds one set of
//! fleets per model from them. All costs of shadows are bounded here: the share of a core, the
//! events that wait, and the blocks of the simulated caches.

use serde::Deserialize;
use serde_json::{Map, Value};
use wardrop_core::PolicyConfig;
use wardrop_core::control::Routing;
use wardrop_core::queue::QueueConfig;
use wardrop_sim::shadow::{ArmSpec, Limit, ShadowConfig, ShadowFleets};
use wardrop_sim::{EngineSpec, FleetSpec, RouterSpec};

use crate::ServiceError;

/// Name of the arm that runs the policy in force.
pub(crate) const IN_FORCE: &str = "in_force";
/// Maximum length of a shadow's name, in bytes; the name is a metric label value.
const MAX_NAME: usize = 120;

/// Requests of a model that may wait to be simulated: three minutes at 1,400 a second.
const MAX_WAITING: usize = 1 << 18;
/// Maximum number of block hashes of the waiting requests: 64 MiB.
const MAX_WAITING_BLOCKS: usize = 1 << 23;

/// Shadow fleets; see the module `shadows`. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowOptions {
    /// Policies that run beside the policy in force, up to 15.
    pub policies: Vec<ShadowPolicy>,
    /// Whether further arms run the policy in force with one limit of the fleet relaxed each.
    pub limits: bool,
    /// Share of one core that all shadows together may use.
    pub cpu_share: f64,
    /// Length of a tick, in seconds; a comparison groups requests by the tick of their arrival.
    pub tick_s: f64,
    /// Number of ticks in a comparison.
    pub window_ticks: usize,
    /// Number of ticks after a start that do not count, because the caches have to fill.
    pub warm_ticks: usize,
    /// Delay of the simulation, in seconds; by then the lengths of most answers are known.
    pub lag_s: f64,
    /// TTFT limit of goodput, in seconds; 0 takes the limit of the objective in force.
    pub ttft_slo_s: f64,
    /// Mean ITL limit of goodput, in seconds; 0 takes the limit of the objective in force.
    pub itl_slo_s: f64,
    /// Maximum number of events in the queue to the shadow thread, 1 to 2^24.
    pub max_events: usize,
    /// Maximum number of KV blocks of all workers in all arms; a larger fleet has no shadows.
    pub max_blocks: u64,
}

/// Name, policy and queue of one shadow.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowPolicy {
    /// Name in reports and in the label `policy`.
    pub name: String,
    /// Policy of the shadow.
    pub policy: PolicyConfig,
    /// Queue in front of the policy. Omitted fields come from the queue in force, or from the defaults without one.
    #[serde(default)]
    pub queue: Option<Map<String, Value>>,
}

impl Default for ShadowOptions {
    fn default() -> Self {
        let defaults = ShadowConfig::default();
        Self {
            policies: Vec::new(),
            limits: false,
            cpu_share: defaults.cpu_share,
            tick_s: defaults.tick_s,
            window_ticks: defaults.window_ticks,
            warm_ticks: defaults.warm_ticks,
            lag_s: defaults.lag_s,
            ttft_slo_s: 0.0,
            itl_slo_s: 0.0,
            max_events: 16_384,
            max_blocks: 1 << 23,
        }
    }
}

impl ShadowPolicy {
    /// Policy and queue of the shadow, given the queue in force.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the shadow and the field that the queue refuses.
    pub(crate) fn routing(&self, in_force: Option<QueueConfig>) -> Result<Routing, ServiceError> {
        let refused = |error: &dyn std::fmt::Display| {
            ServiceError::Config(format!("shadows: queue of {:?}: {error}", self.name))
        };
        let Some(given) = &self.queue else {
            return Ok(Routing {
                policy: self.policy.clone(),
                queue: None,
            });
        };
        let base = serde_json::to_value(in_force.unwrap_or_default()).map_err(|error| refused(&error))?;
        let Value::Object(mut fields) = base else {
            return Err(refused(&"not an object"));
        };
        // Fields that the shadow names win over the fields of the queue in force.
        fields.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
        let queue: QueueConfig =
            serde_json::from_value(Value::Object(fields)).map_err(|error| refused(&error))?;
        queue.validate().map_err(|error| refused(&error))?;
        Ok(Routing {
            policy: self.policy.clone(),
            queue: Some(queue),
        })
    }
}

/// The simulator's form of a policy and its queue.
///
/// The simulator takes a policy by its name and its parameters, which is also the policy's form in
/// JSON. `predicted` is `None`: the router of a shadow reads the events of its simulated engines.
fn router(routing: &Routing, seed: u64) -> RouterSpec {
    let mut parameters = match serde_json::to_value(&routing.policy) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let policy = match parameters.remove("name") {
        Some(Value::String(name)) => name,
        _ => String::new(),
    };
    RouterSpec {
        policy,
        parameters,
        queue: routing.queue,
        seed,
        ..RouterSpec::default()
    }
}

/// The routers of an arm, one per pool.
///
/// Every arm with a policy has seeds of its own. A model has at most two pools, so `arm * 2 + pool`
/// is different for every router. An arm with a limit passes `arm` 0: with the seeds of the policy
/// in force, it differs from it by the limit and not by luck.
pub(crate) fn routers(routing: &Routing, arm: usize, pools: usize) -> Vec<RouterSpec> {
    let seeds = (0..pools).map(|pool| (arm * 2 + pool) as u64);
    seeds.map(|seed| router(routing, seed)).collect()
}

impl ShadowOptions {
    /// Configuration of the shadow fleets for the simulator.
    pub(crate) fn config(&self, fleet: FleetSpec, arms: Vec<ArmSpec>) -> ShadowConfig {
        ShadowConfig {
            fleet,
            arms,
            cpu_share: self.cpu_share,
            tick_s: self.tick_s,
            window_ticks: self.window_ticks,
            warm_ticks: self.warm_ticks,
            lag_s: self.lag_s,
            max_waiting: MAX_WAITING,
            max_waiting_blocks: MAX_WAITING_BLOCKS,
            ..ShadowConfig::default()
        }
    }

    /// Arms of the simulation, in the order of `routings`: first the policy in force, then the
    /// policies of the options, then `limits`. Each arm has one router per pool.
    pub(crate) fn arms(&self, routings: &[Routing], limits: &[Limit], pools: usize) -> Vec<ArmSpec> {
        let policies = self.policies.iter().map(|arm| (arm.name.clone(), None));
        // No policy can take the name of a limit, since a name has no space.
        let limits = limits
            .iter()
            .map(|limit| (format!("limit {}", limit.name()), Some(*limit)));
        let arms = std::iter::once((IN_FORCE.to_owned(), None))
            .chain(policies)
            .chain(limits);
        let arm = |(index, ((name, limit), routing)): (usize, ((String, Option<Limit>), &Routing))| ArmSpec {
            name,
            routers: routers(routing, if limit.is_some() { 0 } else { index }, pools),
            limit,
        };
        arms.zip(routings).enumerate().map(arm).collect()
    }

    /// Checks all options by building shadows of a fleet with one worker.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key or the shadow, the value received and the values expected.
    pub fn check(&self) -> Result<(), ServiceError> {
        let refused = |text: String| Err(ServiceError::Config(format!("shadows: {text}")));
        if self.policies.is_empty() && !self.limits {
            return refused(
                "got no policy and no limits, expected policies such as \"dynamo;toll+queue(kappa=30)\""
                    .into(),
            );
        }
        for arm in &self.policies {
            let plain = arm.name.chars().all(|c| c.is_ascii_graphic());
            if arm.name.is_empty() || arm.name.len() > MAX_NAME || !plain || arm.name == IN_FORCE {
                return refused(format!(
                    "got name {:?}, expected 1 to {MAX_NAME} visible characters, not {IN_FORCE:?}",
                    arm.name
                ));
            }
        }
        for (name, limit_s) in [("ttft_slo_s", self.ttft_slo_s), ("itl_slo_s", self.itl_slo_s)] {
            if !(limit_s.is_finite() && limit_s >= 0.0) {
                return refused(format!("{name} must be seconds, or 0 for none, got {limit_s}"));
            }
        }
        if (self.ttft_slo_s > 0.0) != (self.itl_slo_s > 0.0) {
            return refused("ttft_slo_s and itl_slo_s go together: give both or neither".into());
        }
        if self.max_events == 0 || self.max_events > 1 << 24 || self.max_blocks == 0 {
            return refused("max_events must be 1 to 2^24 and max_blocks at least 1".into());
        }
        let mut routings = vec![Routing {
            policy: PolicyConfig::default(),
            queue: None,
        }];
        for arm in &self.policies {
            routings.push(arm.routing(None)?);
        }
        let fleet = FleetSpec::aggregated(1, EngineSpec::default());
        let built = ShadowFleets::new(self.config(fleet, self.arms(&routings, &[], 1)));
        built.map_err(|error| ServiceError::Config(format!("shadows: {error}")))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(policies: &str) -> Result<ShadowOptions, String> {
        let text = format!("{{\"policies\": {policies}}}");
        let options: ShadowOptions = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        options.check().map_err(|error| error.to_string())?;
        Ok(options)
    }

    #[test]
    fn shadow_that_cannot_run_is_refused_by_name() {
        let bad = [
            ("[]", "no policy"),
            (
                r#"[{"name": "in_force", "policy": {"name": "toll"}}]"#,
                "in_force",
            ),
            (r#"[{"name": "a b", "policy": {"name": "toll"}}]"#, "visible"),
            (r#"[{"name": "x", "policy": {"name": "tolll"}}]"#, "tolll"),
            (r#"[{"name": "x", "policy": {"name": "toll", "e2e": -1}}]"#, "e2e"),
            (
                r#"[{"name": "x", "policy": {"name": "toll"}, "queue": {"kapa": 1}}]"#,
                "kapa",
            ),
            (
                r#"[{"name": "x", "policy": {"name": "toll"}, "queue": {"kappa": -1}}]"#,
                "kappa",
            ),
            (
                r#"[{"name": "x", "policy": {"name": "toll"}}, {"name": "x", "policy": {"name": "dynamo"}}]"#,
                "different from every other",
            ),
        ];
        for (policies, says) in bad {
            let error = options(policies).unwrap_err();
            assert!(error.contains(says), "{policies}: {error}");
        }
        assert!(options(r#"[{"name": "toll", "policy": {"name": "toll"}}]"#).is_ok());
    }

    #[test]
    fn omitted_queue_parameters_come_from_the_queue_in_force() {
        let made = options(r#"[{"name": "x", "policy": {"name": "toll"}, "queue": {"kappa": 30}}]"#).unwrap();
        let in_force = QueueConfig {
            backlog_s: 0.25,
            ..QueueConfig::default()
        };
        let queue = made.policies[0].routing(Some(in_force)).unwrap().queue;
        assert_eq!(
            queue.map(|queue| (queue.kappa, queue.backlog_s)),
            Some((30.0, 0.25))
        );
        let queue = made.policies[0].routing(None).unwrap().queue;
        assert_eq!(queue.map(|queue| queue.backlog_s), Some(1.0));
    }

    #[test]
    fn every_policy_reaches_the_simulator_unchanged() {
        for name in PolicyConfig::NAMES {
            let policy = PolicyConfig::from_name(name, &Map::new()).unwrap();
            let routing = Routing {
                policy: policy.clone(),
                queue: None,
            };
            assert_eq!(router(&routing, 0).policy().unwrap(), policy);
        }
    }
}
