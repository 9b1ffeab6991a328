//! The choice of a policy, with its parameters: from a name and numbers to a [`Policy`].
//!
//! Three doors use it. Rust code builds a [`PolicyConfig`] by hand, files and the admin API deserialise one,
//! and the command line gives a name with parameters (`toll(ttft=1,e2e=2)`). All three end in
//! [`PolicyConfig::build`], which checks every value, so no policy exists with a parameter out of range.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Chwbl, ChwblConfig, Dynamo, DynamoConfig, LeastLoaded, Lmetric, Objective, Paper, PaperConfig, Policy,
    PowerOfTwo, RoundRobin, Sticky, StickyConfig, Toll, TwoTier, TwoTierConfig,
};
use crate::error::Error;
use crate::regime::{Regime, RegimeController};

/// A policy by name, with its parameters. [`PolicyConfig::build`] validates them.
///
/// The serialised form has the name in `name` and the parameters beside it. An absent parameter has its default, and
/// an unknown one is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PolicyConfig {
    /// [`RoundRobin`]: each candidate in turn.
    RoundRobin,
    /// [`LeastLoaded`]: the fewest requests in flight. The default.
    #[default]
    LeastLoaded,
    /// [`PowerOfTwo`]: the less loaded of two random candidates.
    PowerOfTwo,
    /// [`Dynamo`]: NVIDIA Dynamo's own cost.
    Dynamo(DynamoConfig),
    /// [`Paper`]: Dynamo's cost with parameters by regime, chosen by a controller.
    Paper(PaperConfig),
    /// [`Lmetric`]: new prefill tokens times batch size.
    Lmetric,
    /// [`TwoTier`]: the longest match when it is long enough, else the least loaded.
    TwoTier(TwoTierConfig),
    /// [`Sticky`]: the least prefill among the workers with nearly the best overlap.
    Sticky(StickyConfig),
    /// [`Chwbl`]: consistent hashing with bounded loads.
    Chwbl(ChwblConfig),
    /// [`Toll`]: the request's own time and the delay that it causes to others, weighted by an objective.
    Toll(Objective),
}

/// The parameters of a policy without any. It refuses every name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParameters {}

impl PolicyConfig {
    /// Names that [`PolicyConfig::from_name`] knows, as errors and help texts list them.
    pub const NAMES: &'static [&'static str] = &[
        "round_robin",
        "least_loaded",
        "power_of_two",
        "dynamo",
        "paper",
        "lmetric",
        "two_tier",
        "sticky",
        "chwbl",
        "toll",
    ];

    /// Name of the policy, one of [`PolicyConfig::NAMES`].
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastLoaded => "least_loaded",
            Self::PowerOfTwo => "power_of_two",
            Self::Dynamo(_) => "dynamo",
            Self::Paper(_) => "paper",
            Self::Lmetric => "lmetric",
            Self::TwoTier(_) => "two_tier",
            Self::Sticky(_) => "sticky",
            Self::Chwbl(_) => "chwbl",
            Self::Toll(_) => "toll",
        }
    }

    /// The policy `name` with `parameters` by name. A parameter that is not given has its default.
    ///
    /// # Errors
    /// [`Error::UnknownPolicy`], [`Error::PolicyParameters`] for an unknown or unreadable parameter, and
    /// [`Error::Parameter`] for a value that is out of range.
    pub fn from_name(name: &str, parameters: &Map<String, Value>) -> Result<Self, Error> {
        let none = |policy| read::<NoParameters>(name, parameters).map(|NoParameters {}| policy);
        let config = match name {
            "round_robin" => none(Self::RoundRobin)?,
            "least_loaded" => none(Self::LeastLoaded)?,
            "power_of_two" => none(Self::PowerOfTwo)?,
            "dynamo" => Self::Dynamo(read(name, parameters)?),
            "paper" => Self::Paper(read(name, parameters)?),
            "lmetric" => none(Self::Lmetric)?,
            "two_tier" => Self::TwoTier(read(name, parameters)?),
            "sticky" => Self::Sticky(read(name, parameters)?),
            "chwbl" => Self::Chwbl(read(name, parameters)?),
            "toll" => Self::Toll(read(name, parameters)?),
            _ => {
                return Err(Error::UnknownPolicy {
                    got: name.to_owned(),
                    known: Self::NAMES,
                });
            }
        };
        config.build()?;
        Ok(config)
    }

    /// Builds the policy, for a fleet below its knee where the policy has regimes.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn build(&self) -> Result<Box<dyn Policy>, Error> {
        self.build_in(Regime::Below)
    }

    /// As [`PolicyConfig::build`], for a regime of the fleet. A policy without regimes is the same in all of
    /// them.
    ///
    /// The router calls it when the regime changes, and replaces the policy in force by the result.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range, of any regime.
    pub fn build_in(&self, regime: Regime) -> Result<Box<dyn Policy>, Error> {
        Ok(match self {
            Self::RoundRobin => Box::new(RoundRobin),
            Self::LeastLoaded => Box::new(LeastLoaded),
            Self::PowerOfTwo => Box::new(PowerOfTwo),
            Self::Dynamo(config) => Box::new(Dynamo::new(config.clone())?),
            Self::Paper(config) => Box::new(Paper::new(config, regime)?),
            Self::Lmetric => Box::new(Lmetric),
            Self::TwoTier(config) => Box::new(TwoTier::new(config.clone())?),
            Self::Sticky(config) => Box::new(Sticky::new(config.clone())?),
            Self::Chwbl(config) => Box::new(Chwbl::new(config.clone())?),
            Self::Toll(objective) => Box::new(Toll::new(objective)?),
        })
    }

    /// The controller of the regime, where the policy has regimes.
    pub fn controller(&self) -> Option<RegimeController> {
        match self {
            Self::Paper(config) => Some(config.controller()),
            _ => None,
        }
    }
}

/// Reads the parameters of the policy `name`. Serde's text names the unknown or unreadable parameter.
fn read<T: DeserializeOwned>(name: &str, parameters: &Map<String, Value>) -> Result<T, Error> {
    serde_json::from_value(Value::Object(parameters.clone())).map_err(|error| Error::PolicyParameters {
        policy: name.to_owned(),
        reason: error.to_string(),
    })
}

/// Returns `value` when it is finite and at least 0.
pub(super) fn non_negative(field: &'static str, value: f64) -> Result<f64, Error> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(Error::Parameter {
        field,
        got: value.to_string(),
        expected: "a finite number, 0 or above",
    })
}

/// Returns `value` when it is in [0, 1].
pub(super) fn share(field: &'static str, value: f64) -> Result<f64, Error> {
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(Error::Parameter {
        field,
        got: value.to_string(),
        expected: "a share from 0 to 1",
    })
}
