//! Parameters of predicted caches.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Use of predicted caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictedUse {
    /// No prediction: the router knows only what events report. Dynamo's default.
    #[default]
    Off,
    /// In place of events. A record lives for `ttl_s` after its request ended.
    Alone,
    /// Beside events. A record ends `settle_s` after the first token of its request.
    Beside,
}

impl PredictedUse {
    /// Names of the uses.
    pub const NAMES: [&'static str; 3] = ["off", "alone", "beside"];

    /// The use with this name.
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

/// Parameters of predicted caches, validated with the router's configuration.
///
/// The defaults suit a fleet whose events arrive within a second. Prediction is off unless asked for, as in
/// Dynamo.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PredictedConfig {
    /// Use of the predictions.
    pub used: PredictedUse,
    /// Longest life of a record in seconds, above 0. It starts at routing and again at the reported end of
    /// the request.
    pub ttl_s: f64,
    /// Beside events: seconds from the first token to the end of the record, at least 0. On a loaded machine,
    /// events arrived up to 1 s late (p99).
    pub settle_s: f64,
    /// Device blocks of a worker that did not report its capacity, above 0.
    pub capacity_blocks: u64,
    /// Highest number of records, above 0.
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
    /// The defaults for a use.
    pub fn new(used: PredictedUse) -> Self {
        Self {
            used,
            ..Self::default()
        }
    }

    /// Sets the life of records, seconds.
    #[must_use]
    pub const fn with_ttl_s(mut self, ttl_s: f64) -> Self {
        self.ttl_s = ttl_s;
        self
    }

    /// Sets the time for events to arrive, seconds.
    #[must_use]
    pub const fn with_settle_s(mut self, settle_s: f64) -> Self {
        self.settle_s = settle_s;
        self
    }

    /// Sets the capacity of workers that did not report theirs, blocks.
    #[must_use]
    pub const fn with_capacity_blocks(mut self, blocks: u64) -> Self {
        self.capacity_blocks = blocks;
        self
    }

    /// Sets the limit of records.
    #[must_use]
    pub const fn with_max_records(mut self, records: usize) -> Self {
        self.max_records = records;
        self
    }

    /// Checks the range of every parameter.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the first value that is out of range.
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
