//! Which policy, with which parameters.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{LeastLoaded, Policy, RoundRobin};
use crate::error::Error;

/// A policy and its parameters, validated when it is built.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PolicyConfig {
    /// See [`RoundRobin`].
    RoundRobin,
    /// See [`LeastLoaded`].
    #[default]
    LeastLoaded,
}

impl PolicyConfig {
    /// Every name that [`PolicyConfig::from_name`] knows.
    pub const NAMES: &'static [&'static str] = &["round_robin", "least_loaded"];

    /// The policy `name` with `parameters` by their names; those not given have their defaults.
    pub fn from_name(name: &str, parameters: &Map<String, Value>) -> Result<Self, Error> {
        if !Self::NAMES.contains(&name) {
            return Err(Error::UnknownPolicy { got: name.to_owned() });
        }
        let mut fields = parameters.clone();
        fields.insert("name".to_owned(), Value::from(name));
        let config: Self =
            serde_json::from_value(Value::Object(fields)).map_err(|error| Error::PolicyParameters {
                policy: name.to_owned(),
                reason: error.to_string(),
            })?;
        Ok(config)
    }

    /// Build the policy.
    pub fn build(&self) -> Result<Box<dyn Policy>, Error> {
        Ok(match self {
            Self::RoundRobin => Box::new(RoundRobin),
            Self::LeastLoaded => Box::new(LeastLoaded),
        })
    }
}
