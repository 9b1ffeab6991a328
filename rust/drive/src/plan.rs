//! The plan of a run: the requests and their times. It is checked before the clock starts and never changes after.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};

use crate::DriveError;

/// Most requests in one plan. A record takes about 150 bytes, and a report is held in memory as a whole.
pub const MAX_REQUESTS: usize = 1_000_000;

/// When a request leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Release {
    /// Seconds after the start of the run, regardless of the server (open loop).
    At(f64),
    /// Seconds after the end of an earlier request of the plan: the next turn of a conversation.
    After {
        /// Index of the earlier request in the plan; smaller than the index of this request.
        request: usize,
        /// Think time, seconds.
        think_s: f64,
    },
}

/// One request of a plan.
#[derive(Clone, Debug)]
pub struct Planned {
    /// When the request leaves; ignored when the plan has a concurrency.
    pub release: Release,
    /// JSON body, sent unchanged.
    pub body: Bytes,
}

/// A run of the driver: target, requests, bounds.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `http://host:port/path`.
    pub url: String,
    /// Extra headers of every request.
    pub headers: Vec<(String, String)>,
    /// Requests in order; `After` may only refer to an earlier request.
    pub requests: Vec<Planned>,
    /// `Some(n)`: closed loop with n requests in flight, arrival times ignored. `None`: open loop.
    pub concurrency: Option<usize>,
    /// Seconds from the start after which no request leaves.
    pub duration_s: f64,
    /// Longest time of one request, from sending to its last byte, seconds.
    pub timeout_s: f64,
    /// Open loop: a request that would exceed this many in flight is shed and counted, not delayed.
    pub max_in_flight: usize,
}

/// Destination of all requests: the address and the constant head.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: String,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    /// The HTTP request that carries `body`.
    pub(super) fn request(&self, body: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() =
            hyper::Uri::try_from(self.path.as_str()).expect("path must have been checked by the plan");
        request.headers_mut().extend(
            self.headers
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        request
    }
}

impl Plan {
    /// Checks every field and resolves the target.
    pub(super) fn check(&self) -> Result<Target, DriveError> {
        let bad = |what: String| Err(DriveError::Plan(what));
        if self.requests.is_empty() || self.requests.len() > MAX_REQUESTS {
            return bad(format!(
                "requests: got {}, expected 1 to {MAX_REQUESTS}",
                self.requests.len()
            ));
        }
        for (name, value) in [("duration_s", self.duration_s), ("timeout_s", self.timeout_s)] {
            if !(value.is_finite() && value > 0.0 && value <= 86_400.0) {
                return bad(format!(
                    "{name}: got {value}, expected more than 0 and at most 86400 seconds"
                ));
            }
        }
        if self.max_in_flight == 0 || self.concurrency == Some(0) {
            return bad("max_in_flight and concurrency: got 0, expected at least 1".into());
        }
        for (index, request) in self.requests.iter().enumerate() {
            match request.release {
                Release::After { .. } if self.concurrency.is_some() => {
                    return bad(format!(
                        "request {index} follows another one, which a closed loop (concurrency) cannot honour: \
                         use an open loop or independent requests"
                    ));
                }
                Release::After { request, .. } if request >= index => {
                    return bad(format!(
                        "request {index} follows request {request}, expected an earlier one"
                    ));
                }
                Release::At(s) | Release::After { think_s: s, .. } if !(s.is_finite() && s >= 0.0) => {
                    return bad(format!(
                        "request {index}: got a time of {s} s, expected a finite one from 0 up"
                    ));
                }
                _ => {}
            }
        }
        self.target()
    }

    fn target(&self) -> Result<Target, DriveError> {
        let bad = || DriveError::Plan(format!("url: got {:?}, expected http://host:port/path", self.url));
        let uri = hyper::Uri::try_from(&self.url).map_err(|_| bad())?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(bad());
        };
        let mut headers = vec![
            (
                HOST,
                HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?,
            ),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        ];
        for (name, value) in &self.headers {
            let pair = HeaderName::try_from(name)
                .ok()
                .zip(HeaderValue::try_from(value).ok());
            headers.push(
                pair.ok_or_else(|| DriveError::Plan(format!("header {name:?}: not a valid name and value")))?,
            );
        }
        Ok(Target {
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            headers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(requests: Vec<Planned>) -> Plan {
        Plan {
            url: "http://127.0.0.1:8000/v1/completions".into(),
            headers: vec![],
            requests,
            concurrency: None,
            duration_s: 1.0,
            timeout_s: 1.0,
            max_in_flight: 8,
        }
    }

    fn at(s: f64) -> Planned {
        Planned {
            release: Release::At(s),
            body: Bytes::from_static(b"{}"),
        }
    }

    fn after(request: usize) -> Planned {
        Planned {
            release: Release::After {
                request,
                think_s: 0.1,
            },
            body: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn a_sound_plan_resolves_its_target() {
        let target = plan(vec![at(0.0), after(0)]).check().expect("plan is sound");
        assert_eq!(target.address, "127.0.0.1:8000");
        let request = target.request(&Bytes::from_static(b"{}"));
        assert_eq!(request.uri().path(), "/v1/completions");
        assert_eq!(request.headers()["host"], "127.0.0.1:8000");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_before_the_clock_starts() {
        let mut closed = plan(vec![at(0.0), after(0)]);
        closed.concurrency = Some(2);
        let mut https = plan(vec![at(0.0)]);
        https.url = "https://127.0.0.1/".into();
        let mut forever = plan(vec![at(0.0)]);
        forever.duration_s = f64::INFINITY;
        let mut header = plan(vec![at(0.0)]);
        header.headers = vec![("bad name".into(), "x".into())];
        let refused = [
            plan(vec![]),
            plan(vec![at(-1.0)]),
            plan(vec![at(f64::NAN)]),
            plan(vec![after(0)]),
            closed,
            https,
            forever,
            header,
        ];
        for plan in refused {
            assert!(matches!(plan.check(), Err(DriveError::Plan(_))), "{plan:?}");
        }
    }
}
