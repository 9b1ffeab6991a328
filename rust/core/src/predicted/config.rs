//! Whether and how caches are predicted.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What predictions are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictedUse {
    /// Nothing: the index knows what events told. Dynamo's default.
    #[default]
    Off,
    /// In place of events: a record lives for its time after its request ended.
    Alone,
    /// Until events arrive: a record ends soon after its request's first token.
    Beside,
}

impl PredictedUse {
    /// Their names.
    pub const NAMES: [&'static str; 3] = ["off", "alone", "beside"];

    /// By name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "off" => Ok(Self::Off),
            "alone" => Ok(Self::Alone),
            "beside" => Ok(Self::Beside),
            _ => Err(Error::Parameter {
                field: "predicted",
                got: format!("{name:?}"),
                expected: "off, alone or beside",
            }),
        }
    }
}

/// How caches are predicted. Validated with the router's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PredictedConfig {
    /// What for.
    pub used: PredictedUse,
    /// Seconds that a record lives at most, above 0: since its request was routed, or ended where that is told.
    pub ttl_s: f64,
    /// Beside events: seconds from the first token to the end of the record, at least 0. The events of a loaded machine were
    /// up to 1 s late (p99).
    pub settle_s: f64,
    /// Device blocks of a worker that did not say how many it has, above 0.
    pub capacity_blocks: u64,
    /// Records at most, above 0.
    pub max_records: usize,
}

impl Default for PredictedConfig {
    /// Off; 120 s, 1 s, 65,536 blocks, a million records.
    fn default() -> Self {
        Self {
            used: PredictedUse::Off,
            ttl_s: 120.0,
            settle_s: 1.0,
            capacity_blocks: 1 << 16,
            max_records: 1_000_000,
        }
    }
}

impl PredictedConfig {
    /// The defaults for this use.
    pub fn new(used: PredictedUse) -> Self {
        Self {
            used,
            ..Self::default()
        }
    }

    /// With another life of records, seconds.
    #[must_use]
    pub const fn with_ttl_s(mut self, ttl_s: f64) -> Self {
        self.ttl_s = ttl_s;
        self
    }

    /// With another time for events to arrive, seconds.
    #[must_use]
    pub const fn with_settle_s(mut self, settle_s: f64) -> Self {
        self.settle_s = settle_s;
        self
    }

    /// With another capacity of workers that do not tell theirs, blocks.
    #[must_use]
    pub const fn with_capacity_blocks(mut self, blocks: u64) -> Self {
        self.capacity_blocks = blocks;
        self
    }

    /// With another limit of records.
    #[must_use]
    pub const fn with_max_records(mut self, records: usize) -> Self {
        self.max_records = records;
        self
    }

    /// Refuse what is out of range.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |field, got: String, expected| Err(Error::Parameter { field, got, expected });
        if !(self.ttl_s > 0.0 && self.ttl_s.is_finite()) {
            return refuse(
                "predicted_ttl_s",
                self.ttl_s.to_string(),
                "a finite number of seconds above 0",
            );
        }
        if !(self.settle_s >= 0.0 && self.settle_s.is_finite()) {
            return refuse(
                "predicted_settle_s",
                self.settle_s.to_string(),
                "a finite number of seconds, at least 0",
            );
        }
        if self.capacity_blocks == 0 {
            return refuse("predicted_capacity_blocks", "0".to_owned(), "at least 1");
        }
        if self.max_records == 0 {
            return refuse("predicted_max_records", "0".to_owned(), "at least 1");
        }
        Ok(())
    }
}
