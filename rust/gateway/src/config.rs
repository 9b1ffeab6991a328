//! Settings of the gateway, read and checked before the gateway is built. The service takes its part as a whole.
//!
//! The control plane sends the settings as JSON once. They hold for the life of the gateway, apart
//! from limits that [`Resources::fit`](crate::resources::Resources::fit) lowers at the start.

use std::path::PathBuf;

use serde::Deserialize;
use wardrop_service::config::ServiceConfig;

use crate::ServiceError;
use crate::proxy::routes;

/// Longest deadline, milliseconds: a day. Adding it to a time never overflows a clock.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// The whole configuration. Unknown keys are refused.
///
/// The defaults are those of a gateway that a test makes; the command line sends every value.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// `host:port` to listen on; port 0 takes a free one.
    pub listen: String,
    /// Base URLs of `dynamo.frontend` processes, `http://host:port` or `https://host:port`.
    pub upstreams: Vec<String>,
    /// Threads that serve HTTP, 1 to 256; each owns its connections from accept to close.
    pub worker_threads: usize,
    /// Limits on what clients may send.
    pub limits: Limits,
    /// Routes of upstreams that clients may use.
    pub routes: RouteOptions,
    /// How upstreams are reached.
    pub upstream: UpstreamOptions,
    /// Settings of the routing service. In JSON its keys stand beside those of the gateway.
    #[serde(skip)]
    pub service: ServiceConfig,
    /// Log filter in `tracing` directives, for example `info`; `None` leaves logging as it is. The
    /// log goes to standard error as JSON.
    pub log: Option<String>,
}

/// Limits on what clients may send and hold. The gateway answers each violation with a status of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request body, in bytes (413 above it).
    pub body_bytes: usize,
    /// Sum of all request bodies in memory, in bytes (503 with `Retry-After` above it). A quarter is kept for bodies up to 1 MiB.
    pub all_bodies_bytes: usize,
    /// Sum of all header names and values, in bytes (431 above it).
    pub header_bytes: usize,
    /// Requests in flight (429 with `Retry-After` above it).
    pub concurrent_requests: usize,
    /// Open client connections. Above it the connection that is idle longest closes; without an idle one, the new client gets 503.
    pub connections: usize,
    /// Time to send a head, and time to send a body, in milliseconds (408 after it).
    pub read_timeout_ms: u64,
    /// Time in which a client takes no byte of its answer, in milliseconds; then its connection closes.
    pub write_timeout_ms: u64,
    /// Time after which an unused client connection closes, in milliseconds.
    pub idle_timeout_ms: u64,
}

/// Routes of upstreams that clients may use.
///
/// Allowing by name keeps a new control route of an upstream private until the operator adds it
/// (`docs/adr/0018-limits-in-sum-at-the-door.md`).
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteOptions {
    /// Paths beside the `OpenAI` and Anthropic routes; a final `/*` covers all paths below.
    pub extra: Vec<String>,
    /// Whether to serve `/metrics` on the public port.
    pub metrics: bool,
}

/// How upstreams are reached.
///
/// Upstreams speak HTTP/1.1, with TLS where their URL is `https://`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamOptions {
    /// Time to open a TCP connection, in milliseconds. After it the next upstream is tried.
    pub connect_timeout_ms: u64,
    /// Time until the first byte of an answer, in milliseconds; 504 after it. Without streaming it covers the whole generation.
    pub first_byte_timeout_ms: u64,
    /// Longest silence inside an answer, in milliseconds. After it the answer ends with an error.
    pub idle_timeout_ms: u64,
    /// Idle connections kept per upstream and thread.
    pub idle_connections: usize,
    /// Idle connections kept over all upstreams and threads.
    pub all_idle_connections: usize,
    /// Age after which an idle connection is not used again, in milliseconds.
    pub idle_connection_ttl_ms: u64,
    /// Time for which an upstream that refused a connection is tried only after all others, in
    /// milliseconds. It is still tried when no other accepts one.
    pub retry_after_ms: u64,
    /// PEM file with the authorities whose certificates `https://` upstreams may have; `None` for those of the system.
    pub ca_file: Option<PathBuf>,
    /// Time between two probes of the upstreams, where there are several, in milliseconds; 0 probes none.
    pub probe_interval_ms: u64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8000".into(),
            upstreams: Vec::new(),
            worker_threads: 2,
            limits: Limits::default(),
            routes: RouteOptions::default(),
            upstream: UpstreamOptions::default(),
            service: ServiceConfig::default(),
            log: None,
        }
    }
}

/// The sum of all bodies is far below requests times the largest body: 4,096 bodies of 64 MiB would
/// be 256 GiB.
impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            all_bodies_bytes: 512 << 20,
            header_bytes: 64 << 10,
            concurrent_requests: 4096,
            connections: 8192,
            read_timeout_ms: 30_000,
            write_timeout_ms: 30_000,
            idle_timeout_ms: 300_000,
        }
    }
}

impl Default for RouteOptions {
    fn default() -> Self {
        Self {
            extra: Vec::new(),
            metrics: true,
        }
    }
}

/// The first byte may take ten minutes, because an answer in one piece arrives with its last token.
impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 2_000,
            first_byte_timeout_ms: 600_000,
            idle_timeout_ms: 120_000,
            idle_connections: 512,
            all_idle_connections: 1024,
            idle_connection_ttl_ms: 30_000,
            retry_after_ms: 1_000,
            ca_file: None,
            probe_interval_ms: 500,
        }
    }
}

impl GatewayConfig {
    /// Reads and checks a JSON configuration.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key, the received value and the expected one.
    pub fn from_json(text: &str) -> Result<Self, ServiceError> {
        let (service, mut config): (_, Self) = ServiceConfig::take_from(text, ServiceConfig::KEYS)?;
        config.service = service;
        config.check()?;
        Ok(config)
    }

    /// Refuses values with which the gateway cannot work. A value beyond the resources of the
    /// process is no error: it is lowered later.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the key, the received value and the expected one.
    fn check(&self) -> Result<(), ServiceError> {
        let positive = [
            ("worker_threads", self.worker_threads),
            ("limits.body_bytes", self.limits.body_bytes),
            ("limits.all_bodies_bytes", self.limits.all_bodies_bytes),
            ("limits.header_bytes", self.limits.header_bytes),
            ("limits.concurrent_requests", self.limits.concurrent_requests),
            ("limits.connections", self.limits.connections),
            (
                "upstream.all_idle_connections",
                self.upstream.all_idle_connections,
            ),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(ServiceError::Config(format!("{name} must be at least 1, got 0")));
            }
        }
        let times = [
            ("limits.read_timeout_ms", self.limits.read_timeout_ms),
            ("limits.write_timeout_ms", self.limits.write_timeout_ms),
            ("limits.idle_timeout_ms", self.limits.idle_timeout_ms),
        ];
        for (name, value) in times {
            if !(1..=MAX_TIMEOUT_MS).contains(&value) {
                return Err(ServiceError::Config(format!(
                    "{name} must be 1 to {MAX_TIMEOUT_MS}, got {value}"
                )));
            }
        }
        if let Some(entry) = self.routes.extra.iter().find(|entry| !routes::is_entry(entry)) {
            return Err(ServiceError::Config(format!(
                "routes.extra: got {entry:?}, expected a path that starts with /, with /* at its end for all paths below"
            )));
        }
        if self.worker_threads > 256 {
            return Err(ServiceError::Config(format!(
                "worker_threads must be at most 256, got {}",
                self.worker_threads
            )));
        }
        self.service.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_key_is_refused() {
        let error = GatewayConfig::from_json(r#"{"listne": "x"}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("listne"), "{error}");
    }

    #[test]
    fn zero_limit_is_refused_with_its_name() {
        let error = GatewayConfig::from_json(r#"{"limits": {"body_bytes": 0}}"#).unwrap_err();
        assert!(error.to_string().contains("limits.body_bytes"));
    }

    #[test]
    fn route_that_is_no_path_is_refused() {
        let error = GatewayConfig::from_json(r#"{"routes": {"extra": ["busy"]}}"#).unwrap_err();
        assert!(
            error.to_string().contains("routes.extra: got \"busy\""),
            "{error}"
        );
    }

    #[test]
    fn empty_object_gives_the_defaults() {
        assert_eq!(GatewayConfig::from_json("{}").unwrap().worker_threads, 2);
    }
}
