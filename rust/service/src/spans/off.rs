//! In place of [`super`] in a build without the feature `otlp`: no request has a trace.

#[path = "door.rs"]
mod door;
#[path = "facts.rs"]
pub(crate) mod facts;

use std::sync::Arc;

use parking_lot::Mutex;

pub use self::door::DoorTrace;
use self::facts::CollectsFacts;
pub use self::facts::{Attribute, AttributeValue, DecisionFacts, TraceFacts};
use crate::ServiceError;
use crate::config::TracingOptions;
use crate::metrics::MetricBuilder;

/// What a door knows when a request begins.
#[derive(Clone, Copy, Debug)]
pub struct TraceStart<'a> {
    /// Header `traceparent` of the client.
    pub traceparent: Option<&'a str>,
    /// Header `tracestate` of the client.
    pub tracestate: Option<&'a str>,
    /// Method of the request.
    pub method: &'a str,
    /// Path of the request, without its query.
    pub path: &'a str,
}

/// The trace of one request; it does not exist in this build.
pub enum RequestTrace {}

/// The exporter; it does not exist in this build.
pub(crate) enum Tracing {}

impl Tracing {
    pub fn start(options: &TracingOptions, _: &MetricBuilder) -> Result<Self, ServiceError> {
        options.check()?;
        Err(ServiceError::Config("tracing: this build has no exporter".into()))
    }

    pub fn begin(self: &Arc<Self>, _: &TraceStart<'_>) -> Arc<RequestTrace> {
        match **self {}
    }

    pub fn stop(&self) {
        match *self {}
    }
}

impl RequestTrace {
    /// Header `traceparent` for the upstream.
    pub fn traceparent(&self) -> String {
        match *self {}
    }

    /// Whether the client's `tracestate` belongs to this trace.
    pub fn continues_a_trace(&self) -> bool {
        match *self {}
    }

    /// The door's answer began with this status.
    pub fn answered(&self, _: u16) {
        match *self {}
    }

    pub(crate) fn is_sampled(&self) -> bool {
        match *self {}
    }
}

impl CollectsFacts for RequestTrace {
    fn facts(&self) -> &Mutex<TraceFacts> {
        match *self {}
    }
}
