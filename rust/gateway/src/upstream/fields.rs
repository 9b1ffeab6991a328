//! Header fields between two connections: fields of one connection end there (RFC 9110 §7.6.1, RFC 9112 §6).
//!
//! Requests and answers pass through the same rules. O(fields) per message.

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE,
};

/// The tokens of a comma-separated field, over all its lines. Values that are no text are passed over.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Whether a comma-separated field holds `token`, in any case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

/// Whether a field concerns one connection and must not be forwarded: by its name, or because `Connection` names it.
///
/// `Connection` cannot name `Content-Length` or `Host`: without them the message would change its meaning.
pub fn is_per_connection(headers: &HeaderMap, name: &HeaderName) -> bool {
    let is_known = *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || *name == EXPECT
        || *name == TE
        || matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "proxy-authenticate" | "proxy-authorization"
        );
    if is_known {
        return true;
    }
    let may_be_named = *name != CONTENT_LENGTH && *name != hyper::header::HOST;
    may_be_named && headers.contains_key(CONNECTION) && has_token(headers, &CONNECTION, name.as_str())
}

/// Removes the fields of one connection.
pub fn remove_per_connection(headers: &mut HeaderMap) {
    let dropped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_per_connection(headers, name))
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_connection_names_are_removed_in_any_case() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("connection", "content-length , host"),
            ("x-secret", "1"),
            ("x-kept", "1"),
            ("content-length", "3"),
            ("host", "a"),
            ("te", "trailers"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        remove_per_connection(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-kept"]);
    }
}
