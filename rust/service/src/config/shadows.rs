//! Which policies run in the shadows, and within which bounds.

use serde::Deserialize;
use serde_json::{Map, Value};
use wardrop_core::PolicyConfig;
use wardrop_core::control::Routing;
use wardrop_core::queue::QueueConfig;
use wardrop_sim::shadow::{ArmSpec, ShadowConfig, ShadowFleets};
use wardrop_sim::{EngineSpec, FleetSpec, RouterSpec};

use crate::ServiceError;

/// Name of the arm that runs what production runs.
pub(crate) const IN_FORCE: &str = "in_force";
/// Longest name of a shadow: it is the value of a label.
const MAX_NAME: usize = 120;

/// Requests of a model that may wait to be simulated: three minutes at 1,400 a second.
const MAX_WAITING: usize = 1 << 18;
/// Blocks of theirs: 64 MiB.
const MAX_WAITING_BLOCKS: usize = 1 << 23;

/// Shadow fleets; see the module `shadows`. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowOptions {
    /// What runs beside the policy in force, 1 to 15.
    pub policies: Vec<ShadowPolicy>,
    /// Share of one core that all of it may take.
    pub cpu_share: f64,
    /// Requests are compared in groups that arrived within this, s.
    pub tick_s: f64,
    /// Ticks that a comparison rests on.
    pub window_ticks: usize,
    /// Ticks after a start that do not count: caches have to fill.
    pub warm_ticks: usize,
    /// The shadows run this much behind, s: by then most answers' lengths are known.
    pub lag_s: f64,
    /// Goodput: time to first token at most, s; 0 takes that of the objective in force, where it has one.
    pub ttft_slo_s: f64,
    /// Goodput: mean time between tokens at most, s; 0 likewise.
    pub itl_slo_s: f64,
    /// Arrivals and outcomes that may wait for the shadows' thread.
    pub max_events: usize,
    /// KV blocks of all workers in all shadows together: their memory. A larger fleet has no shadows.
    pub max_blocks: u64,
}

/// One shadow.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowPolicy {
    /// For reports and the label `policy`.
    pub name: String,
    /// Its policy.
    pub policy: PolicyConfig,
    /// Late binding in front of it: what is not named here is as in the queue in force, or at its default.
    #[serde(default)]
    pub queue: Option<Map<String, Value>>,
}

impl Default for ShadowOptions {
    fn default() -> Self {
        let defaults = ShadowConfig::default();
        Self {
            policies: Vec::new(),
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
    /// What it runs beside this queue in force.
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
pub(crate) fn router(routing: &Routing, seed: u64) -> RouterSpec {
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
        predicted: None,
        seed,
    }
}

impl ShadowOptions {
    /// The core's form, around a fleet.
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

    /// Names for arms with the given policies and queues, one router per pool.
    pub(crate) fn arms(&self, routings: &[Routing], pools: usize) -> Vec<ArmSpec> {
        let names = std::iter::once(IN_FORCE).chain(self.policies.iter().map(|arm| arm.name.as_str()));
        let arm = |(index, (name, routing)): (usize, (&str, &Routing))| ArmSpec {
            name: name.to_owned(),
            routers: (0..pools)
                .map(|pool| router(routing, (index * 2 + pool) as u64))
                .collect(),
        };
        names.zip(routings).enumerate().map(arm).collect()
    }

    /// Checks everything, by making shadows of a fleet of one.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key or the shadow, what was got and what is expected.
    pub fn check(&self) -> Result<(), ServiceError> {
        let refused = |text: String| Err(ServiceError::Config(format!("shadows: {text}")));
        if self.policies.is_empty() {
            return refused("got no policy, expected some such as \"dynamo;toll+queue(kappa=30)\"".into());
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
        let built = ShadowFleets::new(self.config(fleet, self.arms(&routings, 1)));
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
    fn what_can_not_run_is_refused_by_name() {
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
                "name of its own",
            ),
        ];
        for (policies, says) in bad {
            let error = options(policies).unwrap_err();
            assert!(error.contains(says), "{policies}: {error}");
        }
        assert!(options(r#"[{"name": "toll", "policy": {"name": "toll"}}]"#).is_ok());
    }

    #[test]
    fn a_queue_takes_what_it_does_not_name_from_the_one_in_force() {
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
    fn every_policy_survives_the_way_into_the_simulator() {
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
