//! Settings of the picker, read and checked before the picker is built. The service takes its part as a whole.
//!
//! The control plane sends the settings as JSON once, from the file of `wardrop picker`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use wardrop_service::ServiceError;
use wardrop_service::config::ServiceConfig;

/// Most objectives, and most rewritten models.
const MAX_NAMES: usize = 1024;
/// Longest deadline, milliseconds: a day.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// The whole configuration. Unknown keys are refused.
///
/// The defaults listen on the local machine alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PickerConfig {
    /// `host:port` for Envoy's external processing and health checks over gRPC; port 0 takes a free one.
    pub listen: String,
    /// `host:port` for health checks over gRPC without TLS; `None` for none.
    pub health_listen: Option<String>,
    /// `host:port` for `/metrics`, `/live`, `/ready` and the facts for `wardrop doctor` over HTTP; `None` for none.
    pub http_listen: Option<String>,
    /// Certificate and key of `listen`; `None` serves plain HTTP/2.
    pub tls: Option<TlsFiles>,
    /// Threads that serve streams.
    pub worker_threads: usize,
    /// Limits on what Envoy may send.
    pub limits: Limits,
    /// Names of the headers that name the other workers of a request to a worker.
    pub dialect: Dialect,
    /// Model of requests that name no registered model; `None` takes the first model by name.
    pub default_model: Option<String>,
    /// Priority of each objective, by the name that `x-llm-d-inference-objective` carries.
    pub objectives: BTreeMap<String, i32>,
    /// Model name that a worker sees, by the name that a client sends.
    pub model_rewrites: BTreeMap<String, String>,
    /// Whether to answer the headers of the conformance tests of the Gateway API Inference Extension.
    pub conformance_headers: bool,
    /// Settings of the routing service. In JSON its keys stand beside those of the picker.
    #[serde(skip)]
    pub service: ServiceConfig,
    /// Log filter in `tracing` directives, for example `info`; `None` leaves logging as it is.
    pub log: Option<String>,
}

/// Files in PEM format.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// Limits on what Envoy may send and hold. Each violation has an answer of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request body, in bytes (413 above it).
    pub body_bytes: usize,
    /// Sum of all request bodies in memory, in bytes (503 above it).
    pub all_bodies_bytes: usize,
    /// Requests in flight (429 above it).
    pub concurrent_requests: usize,
    /// Streams of one connection from Envoy.
    pub streams_per_connection: u32,
    /// Time from the headers of a request to the end of its body, in milliseconds (408 after it).
    pub read_timeout_ms: u64,
}

/// Names of the headers that name the other workers of a request to a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `x-prefiller-host-port` and `x-data-parallel-rank`, as llm-d's sidecars and vLLM read them.
    #[default]
    LlmD,
    /// `x-dynamo-worker-instance-id` and its siblings, as Dynamo's frontends read them.
    Dynamo,
}

impl Default for PickerConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9002".into(),
            health_listen: None,
            http_listen: None,
            tls: None,
            worker_threads: 2,
            limits: Limits::default(),
            dialect: Dialect::default(),
            default_model: None,
            objectives: BTreeMap::new(),
            model_rewrites: BTreeMap::new(),
            conformance_headers: false,
            service: ServiceConfig::default(),
            log: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            all_bodies_bytes: 512 << 20,
            concurrent_requests: 16_384,
            streams_per_connection: 16_384,
            read_timeout_ms: 30_000,
        }
    }
}

impl PickerConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key, the value received and the values expected.
    pub fn from_json(json: &str) -> Result<Self, ServiceError> {
        let (service, mut config): (_, Self) = ServiceConfig::take_from(json, ServiceConfig::KEYS)?;
        config.service = service;
        config.check()?;
        Ok(config)
    }

    /// Refuses counts of 0 and above their bounds, and too many names.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key, the value received and the values expected.
    fn check(&self) -> Result<(), ServiceError> {
        let limits = &self.limits;
        let whole = [
            ("worker_threads", self.worker_threads, 256),
            ("limits.body_bytes", limits.body_bytes, 1 << 40),
            ("limits.all_bodies_bytes", limits.all_bodies_bytes, 1 << 40),
            ("limits.concurrent_requests", limits.concurrent_requests, 1 << 24),
            (
                "limits.streams_per_connection",
                limits.streams_per_connection as usize,
                1 << 24,
            ),
            (
                "limits.read_timeout_ms",
                usize::try_from(limits.read_timeout_ms).unwrap_or(usize::MAX),
                MAX_TIMEOUT_MS as usize,
            ),
        ];
        for (name, value, most) in whole {
            if !(1..=most).contains(&value) {
                return Err(ServiceError::Config(format!(
                    "{name} must be 1 to {most}, got {value}"
                )));
            }
        }
        let names = [
            ("objectives", self.objectives.len()),
            ("model_rewrites", self.model_rewrites.len()),
        ];
        for (name, count) in names {
            if count > MAX_NAMES {
                return Err(ServiceError::Config(format!(
                    "{name} must have at most {MAX_NAMES} names, got {count}"
                )));
            }
        }
        self.service.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_and_limits_of_zero_are_refused_by_name() {
        for (json, named) in [
            (r#"{"listne": "x"}"#, "listne"),
            (r#"{"limits": {"body_bytes": 0}}"#, "limits.body_bytes"),
            (r#"{"dialect": "istio"}"#, "llm-d"),
        ] {
            let error = PickerConfig::from_json(json).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
