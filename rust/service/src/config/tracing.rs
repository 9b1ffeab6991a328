//! Settings of the spans that are exported to an OpenTelemetry collector.
//!
//! The exporter is the module `spans`; without the cargo feature `otlp` any configuration of it is
//! refused. The endpoint is plain HTTP: the collector that speaks TLS runs beside the router.

use serde::Deserialize;

use crate::ServiceError;

/// Where spans go, and which requests have them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracingOptions {
    /// Address of the collector for OTLP over HTTP, `http://HOST:PORT/v1/traces`.
    pub endpoint: String,
    /// Attribute `service.name` of every span.
    pub service_name: String,
    /// Rule that chooses the requests with spans.
    pub sampler: SamplerName,
    /// Share of the requests that a rule with `ratio` in its name chooses, 0 to 1.
    pub ratio: f64,
}

/// The samplers of the OpenTelemetry specification, by the values of `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SamplerName {
    /// Every request.
    #[serde(rename = "always_on")]
    AlwaysOn,
    /// No request.
    #[serde(rename = "always_off")]
    AlwaysOff,
    /// A share of the requests, regardless of the caller.
    #[serde(rename = "traceidratio")]
    Ratio,
    /// What the caller chose; without a caller's span every request.
    #[serde(rename = "parentbased_always_on")]
    ParentOrAll,
    /// What the caller chose; without a caller's span no request.
    #[serde(rename = "parentbased_always_off")]
    ParentOrNone,
    /// What the caller chose; without a caller's span a share of the requests.
    #[serde(rename = "parentbased_traceidratio")]
    ParentOrRatio,
}

impl TracingOptions {
    /// Checks the address and the share.
    pub(crate) fn check(&self) -> Result<(), ServiceError> {
        if !self.endpoint.starts_with("http://") {
            return Err(ServiceError::Config(format!(
                "tracing.endpoint: got {:?}, expected http://HOST:PORT/v1/traces; for TLS, run a collector on this machine that forwards",
                self.endpoint
            )));
        }
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(ServiceError::Config(format!(
                "tracing.ratio: got {}, expected 0 to 1",
                self.ratio
            )));
        }
        if !cfg!(feature = "otlp") {
            return Err(ServiceError::Config(
                "tracing: this build has no exporter; build wardrop-service with the feature otlp".into(),
            ));
        }
        Ok(())
    }
}
