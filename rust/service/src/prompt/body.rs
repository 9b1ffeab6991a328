//! The top level of a request body, split but not decoded, and the only change that the service makes to a body: token ids put in.
//!
//! A body that cannot be split is refused, because it might carry a pin in a form that only the engine's frontend reads: serde takes
//! an array for an object, and some routes of Dynamo take the last of two equal keys.
//!
//! Only keys that decide prompt, placement or shape are looked at; their values stay the client's
//! bytes until a later step needs one. Cost: one pass over the body, and no copy.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Abstention;

/// The endpoints whose requests carry a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages`, Anthropic's API
    Messages,
    /// `/v1/embeddings`
    Embeddings,
}

impl Endpoint {
    /// Path of the endpoint.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The endpoint at a path.
    pub fn from_path(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completions),
            "/v1/responses" => Some(Self::Responses),
            "/v1/messages" => Some(Self::Messages),
            "/v1/embeddings" => Some(Self::Embeddings),
            _ => None,
        }
    }
}

/// The fields that decide prompt, placement and shape. `Some` means the key is there, even with `null`.
///
/// Each field borrows the raw JSON of its value. A known key that stands twice is an error, so no
/// route can read another value than this one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RequestBody<'a> {
    /// Name of the model or adapter.
    #[serde(borrow, deserialize_with = "present")]
    pub model: Option<&'a RawValue>,
    /// Conversation of the chat and messages endpoints.
    #[serde(borrow, deserialize_with = "present")]
    pub messages: Option<&'a RawValue>,
    /// Text, token ids, or a list of either; completions only.
    #[serde(borrow, deserialize_with = "present")]
    pub prompt: Option<&'a RawValue>,
    /// Input of the responses and embeddings endpoints.
    #[serde(borrow, deserialize_with = "present")]
    pub input: Option<&'a RawValue>,
    /// System text of the responses endpoint.
    #[serde(borrow, deserialize_with = "present")]
    pub instructions: Option<&'a RawValue>,
    /// Definitions of tools, which a template renders into the prompt.
    #[serde(borrow, deserialize_with = "present")]
    pub tools: Option<&'a RawValue>,
    /// Dynamo's extension object, see [`ClientNvext`].
    #[serde(borrow, deserialize_with = "present")]
    pub nvext: Option<&'a RawValue>,
    /// Namespace of the cache, as vLLM's API names it. Blocks of different salts are never equal.
    #[serde(borrow, deserialize_with = "present")]
    pub cache_salt: Option<&'a RawValue>,
    /// Whether the answer is a stream of events.
    #[serde(borrow, deserialize_with = "present")]
    pub stream: Option<&'a RawValue>,
    /// Embeddings in place of a prompt.
    #[serde(borrow, deserialize_with = "present")]
    pub prompt_embeds: Option<&'a RawValue>,
    /// An earlier answer that Dynamo puts before the input, and that this service does not know.
    #[serde(borrow, deserialize_with = "present")]
    pub previous_response_id: Option<&'a RawValue>,
}

/// The fields of the client's own `nvext` that decide prompt and placement.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClientNvext<'a> {
    /// Token ids that the client already computed.
    #[serde(borrow, deserialize_with = "present")]
    pub token_data: Option<&'a RawValue>,
    /// Annotations of the answer that the client asks for; one of them asks for a dry run.
    #[serde(borrow, deserialize_with = "present")]
    pub annotations: Option<&'a RawValue>,
    /// Namespace of the cache. It wins over the field of the same name beside `nvext`.
    #[serde(borrow, deserialize_with = "present")]
    pub cache_salt: Option<&'a RawValue>,
    /// Whether Dynamo skips the chat template.
    #[serde(borrow, deserialize_with = "present")]
    pub use_raw_prompt: Option<&'a RawValue>,
    /// Constraints on workers that only Dynamo can check.
    #[serde(borrow, deserialize_with = "present")]
    pub routing_constraints: Option<&'a RawValue>,
    /// Pin of an aggregated worker.
    #[serde(borrow, deserialize_with = "present")]
    pub backend_instance_id: Option<&'a RawValue>,
    /// Pin of a prefill worker.
    #[serde(borrow, deserialize_with = "present")]
    pub prefill_worker_id: Option<&'a RawValue>,
    /// Pin of a decode worker.
    #[serde(borrow, deserialize_with = "present")]
    pub decode_worker_id: Option<&'a RawValue>,
    /// Pin of a rank.
    #[serde(borrow, deserialize_with = "present")]
    pub dp_rank: Option<&'a RawValue>,
    /// Pin of the rank of a prefill worker.
    #[serde(borrow, deserialize_with = "present")]
    pub prefill_dp_rank: Option<&'a RawValue>,
    /// Hints of an agent framework, among them the expected length of the answer.
    #[serde(borrow, deserialize_with = "present")]
    pub agent_hints: Option<&'a RawValue>,
}

/// `nvext.agent_hints`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AgentHints {
    /// Expected tokens of the answer.
    osl: Option<u32>,
}

/// Reads a key that is there as `Some`, `null` included; serde's own `Option` would lose the
/// difference.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Whether the field is there and not `null`.
pub fn is_set(field: Option<&RawValue>) -> bool {
    field.is_some_and(|raw| raw.get() != "null")
}

/// The field as a string, when it is one.
pub(crate) fn text(field: Option<&RawValue>) -> Option<Cow<'_, str>> {
    let raw = field?.get();
    if !raw.starts_with('"') {
        return None;
    }
    // Without an escape, the bytes between the quotes are the text itself.
    if !raw.contains('\\') {
        return Some(Cow::Borrowed(&raw[1..raw.len() - 1]));
    }
    serde_json::from_str(raw).ok().map(Cow::Owned)
}

impl<'a> RequestBody<'a> {
    /// Splits the top level. O(bytes).
    ///
    /// # Errors
    /// [`Abstention::Unreadable`]: not a JSON object, or one of the known keys twice.
    pub fn parse(body: &'a [u8]) -> Result<Self, Abstention> {
        let text = std::str::from_utf8(body).map_err(|_| Abstention::Unreadable)?;
        // serde reads an array as a struct, field by field, hence the check for an object.
        if !text.trim_start().starts_with('{') {
            return Err(Abstention::Unreadable);
        }
        serde_json::from_str(text).map_err(|_| Abstention::Unreadable)
    }

    /// The client's `nvext`; the default when there is none.
    ///
    /// # Errors
    /// [`Abstention::Unreadable`] when it is not an object, or has one of the known keys twice.
    pub fn client_nvext(&self) -> Result<ClientNvext<'a>, Abstention> {
        match self.nvext {
            Some(raw) if raw.get() != "null" => {
                if !raw.get().starts_with('{') {
                    return Err(Abstention::Unreadable);
                }
                serde_json::from_str(raw.get()).map_err(|_| Abstention::Unreadable)
            }
            _ => Ok(ClientNvext::default()),
        }
    }

    /// Whether the client asked for a stream.
    pub fn is_streamed(&self) -> bool {
        self.stream.is_some_and(|raw| raw.get() == "true")
    }
}

impl ClientNvext<'_> {
    /// Whether the client chose a worker.
    pub fn has_pin(&self) -> bool {
        [
            self.backend_instance_id,
            self.prefill_worker_id,
            self.decode_worker_id,
            self.dp_rank,
            self.prefill_dp_rank,
        ]
        .into_iter()
        .any(is_set)
    }

    /// Tokens of the answer that the client expects, when a hint says so.
    ///
    /// A hint that is no number counts as no hint: it must not make a request fail.
    pub fn expected_output_tokens(&self) -> Option<u32> {
        let hints: AgentHints = serde_json::from_str(self.agent_hints?.get()).ok()?;
        hints.osl
    }

    /// Whether the client asked only for the worker that Dynamo would choose.
    ///
    /// A search in the raw text suffices: at worst, another annotation with this text leaves the
    /// request to Dynamo.
    pub fn is_dry_run(&self) -> bool {
        self.annotations
            .is_some_and(|raw| raw.get().contains("query_instance_id:"))
    }
}

/// The body with `nvext.token_data` put in: the client's bytes before and after, in three pieces that share its memory.
///
/// `None` when there is no object to put it into, or the client brought its own token data.
///
/// O(tokens) for the insertion; the body itself is not copied. About six bytes per id are reserved.
pub fn splice_token_data(body: &Bytes, parsed: &RequestBody<'_>, tokens: &[u32]) -> Option<[Bytes; 3]> {
    let mut insert = String::with_capacity(tokens.len() * 6 + 32);
    let at = match parsed.nvext {
        None => {
            insert.push_str("\"nvext\":{");
            body.iter().position(|&b| b == b'{')? + 1
        }
        Some(raw) => {
            let nvext = raw.get();
            if !nvext.starts_with('{') {
                return None;
            }
            offset_in(body, nvext)? + 1
        }
    };
    insert.push_str("\"token_data\":[");
    for (index, token) in tokens.iter().enumerate() {
        if index > 0 {
            insert.push(',');
        }
        write!(insert, "{token}").expect("writing to memory must succeed");
    }
    insert.push(']');
    if parsed.nvext.is_none() {
        insert.push('}');
    }
    // `{` of an object with content needs a comma behind the insertion, `{}` none.
    let rest = body[at..].iter().find(|b| !b.is_ascii_whitespace())?;
    if *rest != b'}' {
        insert.push(',');
    }
    Some([body.slice(..at), Bytes::from(insert), body.slice(at..)])
}

/// Position of a borrowed part within the body; `None` for a part of other memory.
fn offset_in(body: &Bytes, part: &str) -> Option<usize> {
    let offset = (part.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    (offset < body.len()).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn spliced(body: &str, tokens: &[u32]) -> Option<Value> {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let parsed = RequestBody::parse(&bytes).unwrap();
        let pieces = splice_token_data(&bytes, &parsed, tokens)?;
        Some(serde_json::from_slice(&pieces.concat()).unwrap())
    }

    #[test]
    fn token_data_goes_into_a_new_nvext() {
        let value = spliced(r#"{"model":"m","prompt":"x"}"#, &[1, 2]).unwrap();
        assert_eq!(
            value,
            json!({"model":"m","prompt":"x","nvext":{"token_data":[1,2]}})
        );
    }

    #[test]
    fn clients_nvext_survives_the_splice() {
        let value = spliced(r#" { "nvext" : { "cache_salt": "s" } , "model":"m"}"#, &[7]).unwrap();
        assert_eq!(value["nvext"], json!({"cache_salt":"s","token_data":[7]}));
        let value = spliced(r#"{"model":"m","nvext":{ }}"#, &[7]).unwrap();
        assert_eq!(value["nvext"], json!({"token_data":[7]}));
    }

    #[test]
    fn null_nvext_is_left_alone() {
        assert!(spliced(r#"{"model":"m","nvext":null}"#, &[7]).is_none());
    }

    #[test]
    fn body_that_may_hide_a_pin_is_unreadable() {
        let bodies: [&[u8]; 6] = [
            br#"{"model":"a","model":"b","nvext":{"decode_worker_id":5}}"#,
            br#"{"nvext":{},"nvext":{"decode_worker_id":5}}"#,
            br#"{"nvext":{},"nve\u0078t":{"decode_worker_id":5}}"#,
            br#"[null,{"decode_worker_id":5}]"#,
            b"{\"nvext\":{\"decode_worker_id\":5}",
            b"\xff{}",
        ];
        for body in bodies {
            assert_eq!(RequestBody::parse(body).err(), Some(Abstention::Unreadable));
        }
        let nvexts = [
            "[null,null,null,5]",
            "5",
            r#""x""#,
            r#"{"dp_rank":null,"dp_rank":5}"#,
            r#"{"dp_rank":null,"dp_r\u0061nk":5}"#,
        ];
        for nvext in nvexts {
            let body = format!(r#"{{"model":"m","nvext":{nvext}}}"#);
            let parsed = RequestBody::parse(body.as_bytes()).unwrap();
            assert_eq!(
                parsed.client_nvext().err(),
                Some(Abstention::Unreadable),
                "{nvext}"
            );
        }
    }

    #[test]
    fn nested_key_of_the_same_name_is_not_mistaken() {
        let value = spliced(r#"{"metadata":{"nvext":{"a":1}},"model":"m"}"#, &[1]).unwrap();
        assert_eq!(value["metadata"]["nvext"], json!({"a":1}));
        assert_eq!(value["nvext"], json!({"token_data":[1]}));
    }

    #[test]
    fn pins_in_nvext_are_seen() {
        for nvext in [r#"{"decode_worker_id":5}"#, r#"{"decode\u005fworker_id":5}"#] {
            let body = format!(r#"{{"nvext":{nvext}}}"#);
            let parsed = RequestBody::parse(body.as_bytes()).unwrap();
            assert!(parsed.client_nvext().unwrap().has_pin());
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a-z_]{0,8}", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn splice_changes_nothing_else(fields in prop::collection::btree_map("[a-z_]{1,9}", json_value(), 0..6), nvext in prop::option::of(prop::collection::btree_map("[a-z]{1,5}", json_value(), 0..4)), pretty in any::<bool>()) {
            let mut object: serde_json::Map<String, Value> = fields.into_iter().filter(|(k, _)| k != "nvext" && k != "token_data").collect();
            if let Some(nvext) = nvext {
                object.insert("nvext".into(), Value::Object(nvext.into_iter().collect()));
            }
            let before = Value::Object(object.clone());
            let text = if pretty { serde_json::to_string_pretty(&before) } else { serde_json::to_string(&before) }.unwrap();
            let mut after = spliced(&text, &[3, 4]).unwrap();
            prop_assert_eq!(after["nvext"].as_object_mut().unwrap().shift_remove("token_data"), Some(json!([3, 4])));
            if !object.contains_key("nvext") {
                prop_assert_eq!(after.as_object_mut().unwrap().shift_remove("nvext"), Some(json!({})));
            }
            prop_assert_eq!(after, before);
        }

        #[test]
        fn garbage_never_panics(input in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(parsed) = RequestBody::parse(&input) {
                let _ = parsed.client_nvext();
            }
        }
    }
}
