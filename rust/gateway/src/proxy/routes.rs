//! Routes that the public port serves. Every other route of an upstream is refused, because some of them change the upstream.
//!
//! Dynamo's frontend answers control requests, for example `POST /busy_threshold`, on the port that serves completions. A client of the
//! gateway must not reach them, unless the operator lists them in `routes.extra`.
//!
//! Cost: O(routes · length of the path) per request. The path is compared as the client sent it,
//! and refused where an upstream could read it as another one.

use hyper::Method;

/// Routes of the `OpenAI` and Anthropic APIs, without the methods that they take: the upstream refuses a wrong method itself.
const PUBLIC: [&str; 14] = [
    "/v1/audio",
    "/v1/batches",
    "/v1/chat/completions",
    "/v1/classify",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/images",
    "/v1/messages",
    "/v1/moderations",
    "/v1/pooling",
    "/v1/rerank",
    "/v1/responses",
    "/v1/videos",
];
/// Route that clients may only read.
const MODELS: &str = "/v1/models";

/// Whether the public port forwards a request with this method and path.
///
/// A route covers the paths below it. An entry of `extra` covers its own path alone, or with a final `/*` every path below it.
pub fn is_public(method: &Method, path: &str, extra: &[String]) -> bool {
    if !is_plain(path) {
        return false;
    }
    if PUBLIC.iter().any(|route| is_below(path, route)) {
        return true;
    }
    let reads = *method == Method::GET || *method == Method::HEAD || *method == Method::OPTIONS;
    if reads && is_below(path, MODELS) {
        return true;
    }
    extra.iter().any(|entry| match entry.strip_suffix("/*") {
        Some(route) => is_below(path, route),
        None => path == entry,
    })
}

/// Whether an entry of `routes.extra` is a path that [`is_public`] understands.
pub fn is_entry(entry: &str) -> bool {
    let path = entry.strip_suffix("/*").unwrap_or(entry);
    entry.starts_with('/') && (path.is_empty() || is_plain(path)) && !path.contains('*')
}

/// Whether a path is a route, or lies below it at a slash.
fn is_below(path: &str, route: &str) -> bool {
    path.strip_prefix(route)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether no upstream can read the path as a path outside its route: no empty segment, and no dot segment, encoded or not.
///
/// A path that means another one after decoding would pass the list here and reach a control route
/// there.
fn is_plain(path: &str) -> bool {
    if !path.starts_with('/') || path.contains("//") {
        return false;
    }
    let mut decoded = path.to_ascii_lowercase();
    // An encoded percent sign hides a second layer. Each pass shortens the path or ends the loop.
    loop {
        let next = decoded
            .replace("%25", "%")
            .replace("%2e", ".")
            .replace("%2f", "/")
            .replace("%5c", "/")
            .replace('\\', "/");
        if next == decoded {
            break;
        }
        decoded = next;
    }
    !decoded
        .split('/')
        .any(|segment| segment == "." || segment == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_routes_pass_and_control_routes_do_not() {
        for path in [
            "/v1/chat/completions",
            "/v1/messages/count_tokens",
            "/v1/files/f-1/content",
        ] {
            assert!(is_public(&Method::POST, path, &[]), "{path}");
        }
        for path in [
            "/busy_threshold",
            "/clear_kv_blocks",
            "/v1",
            "/v1/loras",
            "/v1/chat/completionsx",
            "/v1/files/../../busy_threshold",
            "/v1/files/%2e%2E/busy_threshold",
            "/v1/files/..%2fbusy_threshold",
            "/v1/files/%252e%252e%255Cbusy_threshold",
            "//busy_threshold",
            "/",
        ] {
            assert!(!is_public(&Method::POST, path, &[]), "{path}");
        }
    }

    #[test]
    fn models_are_read_and_not_changed() {
        assert!(is_public(&Method::GET, "/v1/models/org/name", &[]));
        assert!(is_public(&Method::GET, "/v1/models/org%2Fname", &[]));
        assert!(!is_public(&Method::POST, "/v1/models", &[]));
        assert!(!is_public(&Method::DELETE, "/v1/models/name", &[]));
    }

    #[test]
    fn a_listed_route_passes() {
        let extra = ["/busy_threshold".to_owned(), "/engine/*".to_owned()];
        assert!(is_public(&Method::POST, "/busy_threshold", &extra));
        assert!(!is_public(&Method::POST, "/busy_threshold/x", &extra));
        assert!(is_public(&Method::GET, "/engine/x/y", &extra));
        assert!(is_public(&Method::GET, "/anything", &["/*".to_owned()]));
        assert!(is_entry("/*") && is_entry("/engine/*") && is_entry("/a"));
        assert!(!is_entry("a") && !is_entry("/a*") && !is_entry("/a/../b"));
    }
}
