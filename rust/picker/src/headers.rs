//! Headers of a request that change its decision, and headers that no worker may see.
//!
//! The names come from the Gateway API Inference Extension (proposal 004) and from llm-d. An older alias stands beside each new name.

use std::time::Duration;

use wardrop_service::Endpoint;

use crate::proto::ext_proc::{HeaderMap, HeaderValue};

/// Header of the decision, and key of the same value in the dynamic metadata.
pub(crate) const DESTINATION: &str = "x-gateway-destination-endpoint";
/// Header of llm-d's sidecar: the prefill worker of a split request.
pub(crate) const PREFILLER: &str = "x-prefiller-host-port";
/// Header of a request that names it, and of an answer whose receipt is kept. A proxy may replace the client's name.
pub(crate) const REQUEST_ID: &str = "x-request-id";
/// Header of W3C Trace Context: the span that caused a request.
pub(crate) const TRACEPARENT: &str = "traceparent";
/// Header of W3C Trace Context: what tracing systems add to a trace.
pub(crate) const TRACESTATE: &str = "tracestate";
/// Header that names a data-parallel rank to vLLM.
pub(crate) const RANK: &str = "x-data-parallel-rank";
/// Header of the conformance tests: addresses that may be chosen, with commas between.
pub(crate) const TEST_SELECTION: &str = "test-epp-endpoint-selection";
/// Header of an answer in conformance tests: the endpoint that served.
pub(crate) const TEST_SERVED: &str = "x-conformance-test-served-endpoint";
/// Header of an answer: the worker, with `explain_headers`.
pub(crate) const EXPLAIN_WORKER: &str = "x-wardrop-worker";
/// Header of an answer: leading blocks that the worker should hold, with `explain_headers`.
pub(crate) const EXPLAIN_OVERLAP: &str = "x-wardrop-overlap-blocks";
/// Header of an answer: milliseconds that the request waited in the queue.
pub(crate) const QUEUE_MS: &str = "x-wardrop-queue-ms";
/// Header of a shed request that names the reason, as llm-d spells it.
pub(crate) const DROPPED_REASON: &str = "x-llm-d-request-dropped-reason";

/// Headers that a client may not send on to a worker.
///
/// A worker or its sidecar acts on these names, so a client could choose a worker or forge a
/// decision with them.
pub(crate) const STRIPPED: [&str; 20] = [
    "x-gateway-inference-fairness-id",
    "x-gateway-inference-objective",
    "x-gateway-model-name-rewrite",
    "x-gateway-destination-endpoint-subset",
    "x-gateway-destination-endpoint-served",
    "x-llm-d-inference-objective",
    "x-llm-d-inference-fairness-id",
    "x-llm-d-model-name-rewrite",
    "x-llm-d-inference-ttl",
    PREFILLER,
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    RANK,
    "x-dynamo-worker-instance-id",
    "x-dynamo-prefill-instance-id",
    "x-dynamo-dp-rank",
    "x-dynamo-prefill-dp-rank",
    "x-dynamo-routing-mode",
    "x-worker-instance-id",
    "x-prefill-instance-id",
];

/// Facts from the headers of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestHead {
    /// Kind of the prompt; `None` for a request without a prompt.
    pub endpoint: Option<Endpoint>,
    /// Method of the request.
    pub method: String,
    /// Path without its query.
    pub path: String,
    /// The client's span.
    pub traceparent: Option<String>,
    /// What tracing systems added to the client's trace.
    pub tracestate: Option<String>,
    /// Id of the request, for its receipt.
    pub request_id: Option<String>,
    /// Cache namespace: blocks of two namespaces never match.
    pub tenant: Option<String>,
    /// Share of a fair queue; without it the cache namespace counts.
    pub fairness_id: Option<String>,
    /// Name of the objective, whose priority is configured.
    pub objective: Option<String>,
    /// Model name that the worker should see.
    pub model_rewrite: Option<String>,
    /// Milliseconds after which the first token is useless to the client.
    pub deadline_ms: Option<u64>,
    /// Whether the client wants an answer only from a cached prefix.
    pub if_available: bool,
    /// Addresses of a conformance test.
    pub test_selection: Option<String>,
    /// Stripped headers that the request carries.
    pub stripped: Vec<&'static str>,
}

impl RequestHead {
    /// Reads the headers of a request. O(headers).
    pub fn read(headers: &HeaderMap) -> Self {
        let mut head = Self::default();
        let (mut method, mut path) = ("", "");
        let shortest = |text: Option<u64>, deadline: &mut Option<u64>| {
            *deadline = [*deadline, text].into_iter().flatten().min();
        };
        for header in &headers.headers {
            let Some(value) = text(header) else { continue };
            let owned = || Some(value.trim().to_owned()).filter(|name| !name.is_empty());
            match header.key.as_str() {
                ":method" => method = value,
                ":path" => path = value,
                REQUEST_ID => head.request_id = owned(),
                TRACEPARENT => head.traceparent = owned(),
                TRACESTATE => head.tracestate = owned(),
                // The last name that is not empty counts, as Dynamo reads it.
                "x-tenant-id" => head.tenant = owned().or(head.tenant),
                "x-llm-d-inference-fairness-id" | "x-gateway-inference-fairness-id" => {
                    head.fairness_id = owned();
                }
                "x-llm-d-inference-objective" | "x-gateway-inference-objective" => {
                    head.objective = owned();
                }
                "x-llm-d-model-name-rewrite" | "x-gateway-model-name-rewrite" => {
                    head.model_rewrite = owned();
                }
                "x-llm-d-slo-ttft-ms" | "x-slo-ttft-ms" | "x-wardrop-deadline-ms" => {
                    shortest(milliseconds(value), &mut head.deadline_ms);
                }
                "x-llm-d-inference-ttl" => shortest(go_duration_ms(value), &mut head.deadline_ms),
                "prefer" => {
                    head.if_available |= value.split(',').any(|part| part.trim() == "if-available");
                }
                TEST_SELECTION => head.test_selection = owned(),
                _ => {}
            }
            if let Some(name) = STRIPPED.iter().find(|name| header.key == **name) {
                head.stripped.push(name);
            }
        }
        let path = path.split('?').next().unwrap_or_default();
        head.endpoint = (method == "POST").then(|| Endpoint::from_path(path)).flatten();
        method.clone_into(&mut head.method);
        path.clone_into(&mut head.path);
        head
    }
}

/// The value of a header as text: the raw bytes first, because Envoy fills one of the two fields.
pub(crate) fn text(header: &HeaderValue) -> Option<&str> {
    if header.raw_value.is_empty() {
        return Some(&header.value);
    }
    std::str::from_utf8(&header.raw_value).ok()
}

/// The value of the first header of this name.
pub(crate) fn find<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .headers
        .iter()
        .find(|header| header.key == name)
        .and_then(text)
}

/// A positive number of milliseconds; fractions are cut off.
fn milliseconds(text: &str) -> Option<u64> {
    let value: f64 = text.trim().parse().ok()?;
    (value.is_finite() && value > 0.0).then_some(value as u64)
}

/// A duration as Go writes it, such as `1m30s` or `250ms`. `None` for any other text.
fn go_duration_ms(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit_s = match &rest[..letters] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(Duration::try_from_secs_f64(number * unit_s).ok()?)?;
    }
    u64::try_from(total.as_millis()).ok().filter(|ms| *ms > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        let headers = headers
            .iter()
            .map(|(key, value)| HeaderValue {
                key: (*key).into(),
                value: String::new(),
                raw_value: value.as_bytes().to_vec().into(),
            })
            .collect();
        RequestHead::read(&HeaderMap { headers })
    }

    #[test]
    fn names_and_aliases_are_read() {
        let read = head(&[
            (":method", "POST"),
            (":path", "/v1/completions?x=1"),
            ("x-gateway-inference-objective", "batch"),
            ("x-llm-d-inference-fairness-id", " team "),
            ("x-slo-ttft-ms", "900"),
            ("x-llm-d-inference-ttl", "1m0.5s"),
            ("prefer", "wait=3, if-available"),
            ("x-tenant-id", "a"),
            ("x-tenant-id", " "),
        ]);
        assert_eq!(read.endpoint, Some(Endpoint::Completions));
        assert_eq!(read.objective.as_deref(), Some("batch"));
        assert_eq!(read.fairness_id.as_deref(), Some("team"));
        assert_eq!(read.tenant.as_deref(), Some("a"));
        assert_eq!(read.deadline_ms, Some(900), "the shorter of two deadlines counts");
        assert!(read.if_available);
        assert_eq!(
            read.stripped,
            [
                "x-gateway-inference-objective",
                "x-llm-d-inference-fairness-id",
                "x-llm-d-inference-ttl"
            ]
        );
        assert_eq!(
            head(&[(":method", "GET"), (":path", "/v1/completions")]).endpoint,
            None
        );
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, ms) in [
            ("250ms", Some(250)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("2000us", Some(2)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1d", None),
            ("0s", None),
            ("-1s", None),
            ("99999999999999999999999h", None),
        ] {
            assert_eq!(go_duration_ms(text), ms, "{text}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in ".*") {
            let _ = (go_duration_ms(&text), milliseconds(&text));
        }
    }
}
