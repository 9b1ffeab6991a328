//! The model's name in a request body, and its replacement. Every other byte of the body stays as the client sent it.
//!
//! The picker changes nothing else of a body, because a changed prompt would no longer match its
//! hashes.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Top-level fields of a body that the picker reads.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields<'a> {
    /// The name as JSON, whose place in the body a rewrite needs.
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    /// Whether the client asked for a stream.
    stream: Option<bool>,
}

/// What the picker itself reads in a body. Unreadable bodies have no name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct BodyFacts<'a> {
    /// Name of the model.
    pub model: Option<Cow<'a, str>>,
    /// Whether the client asked for a stream.
    pub is_streamed: bool,
}

/// Reads the top level of a body. O(bytes).
pub(crate) fn read(body: &[u8]) -> BodyFacts<'_> {
    let fields: Fields<'_> = serde_json::from_slice(body).unwrap_or_default();
    BodyFacts {
        model: fields.model.and_then(name),
        is_streamed: fields.stream.unwrap_or(false),
    }
}

/// Text of a JSON string; borrowed where it has no escape.
fn name(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    if text.starts_with('"') && !text.contains('\\') {
        return Some(Cow::Borrowed(&text[1..text.len() - 1]));
    }
    serde_json::from_str::<String>(text).ok().map(Cow::Owned)
}

/// The body with another name of its model. `None` for a body without a name to replace.
pub(crate) fn rewrite(body: &Bytes, to: &str) -> Option<Bytes> {
    let fields: Fields<'_> = serde_json::from_slice(body).ok()?;
    let old = fields.model.filter(|raw| raw.get().starts_with('"'))?.get();
    let start = (old.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let (before, rest) = (body.get(..start)?, body.get(start + old.len()..)?);
    let new = serde_json::to_string(to).ok()?;
    let mut out = BytesMut::with_capacity(before.len() + new.len() + rest.len());
    for part in [before, new.as_bytes(), rest] {
        out.extend_from_slice(part);
    }
    Some(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn only_the_name_changes() {
        let body = Bytes::from_static(br#"{ "x": {"model": "no"}, "model" : "a\u0062", "stream":true }"#);
        let facts = read(&body);
        assert_eq!((facts.model.as_deref(), facts.is_streamed), (Some("ab"), true));
        let new = rewrite(&body, "c\"d").unwrap();
        assert_eq!(
            &new[..],
            &br#"{ "x": {"model": "no"}, "model" : "c\"d", "stream":true }"#[..]
        );
    }

    #[test]
    fn a_body_without_a_name_is_not_rewritten() {
        for body in [
            &b"{}"[..],
            b"",
            b"[1]",
            b"{\"model\": 5}",
            b"{\"model\":\"a\",\"model\":\"b\"}",
            b"\xff",
        ] {
            assert_eq!(rewrite(&Bytes::copy_from_slice(body), "b"), None, "{body:?}");
            assert_eq!(read(body).model, None);
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
            let _ = rewrite(&Bytes::from(body), "m");
        }

        #[test]
        fn any_name_survives(name in ".*", other in ".*", text in ".*") {
            let body = serde_json::json!({"prompt": text, "model": name, "n": 1});
            let bytes = Bytes::from(body.to_string());
            let facts = read(&bytes);
            prop_assert_eq!(facts.model.as_deref(), Some(name.as_str()));
            let new: Value = serde_json::from_slice(&rewrite(&bytes, &other).unwrap()).unwrap();
            prop_assert_eq!(new, serde_json::json!({"prompt": text, "model": other, "n": 1}));
        }
    }
}
