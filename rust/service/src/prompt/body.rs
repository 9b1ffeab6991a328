//! The top level of a request body, split but not decoded, and the one change that is ever made to it.

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
    /// `/v1/embeddings`
    Embeddings,
}

impl Endpoint {
    /// Path of the endpoint in `OpenAI`'s API.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The endpoint at a path of `OpenAI`'s API.
    pub fn from_path(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completions),
            "/v1/responses" => Some(Self::Responses),
            "/v1/embeddings" => Some(Self::Embeddings),
            _ => None,
        }
    }
}

/// The fields that decide prompt, placement and shape. `Some` means the key is there, even with `null`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RequestBody<'a> {
    #[serde(borrow, deserialize_with = "present")]
    pub model: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub messages: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub prompt: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub input: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub instructions: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub tools: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub tool_choice: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub nvext: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub cache_salt: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub stream: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub prompt_embeds: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub previous_response_id: Option<&'a RawValue>,
    // Fields that can change how Dynamo renders or tokenises, so that our ids are at best a hint.
    #[serde(borrow, deserialize_with = "present")]
    pub chat_template: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub chat_template_args: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub chat_template_kwargs: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub documents: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub add_generation_prompt: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub continue_final_message: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub add_special_tokens: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub reasoning_effort: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub thinking: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub response_format: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub functions: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub truncate_prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub mm_processor_kwargs: Option<&'a RawValue>,
}

/// What matters in the client's own `nvext`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClientNvext<'a> {
    #[serde(borrow, deserialize_with = "present")]
    pub token_data: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub annotations: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub cache_salt: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub use_raw_prompt: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub routing_constraints: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub backend_instance_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub prefill_worker_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub decode_worker_id: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub dp_rank: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    pub prefill_dp_rank: Option<&'a RawValue>,
    #[serde(borrow)]
    pub agent_hints: Option<AgentHints<'a>>,
}

/// `nvext.agent_hints`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct AgentHints<'a> {
    #[serde(borrow)]
    pub osl: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The field is there and not `null`.
pub fn is_set(field: Option<&RawValue>) -> bool {
    field.is_some_and(|raw| raw.get() != "null")
}

/// The field as a string, when it is one.
pub fn text(field: Option<&RawValue>) -> Option<Cow<'_, str>> {
    let raw = field?.get();
    if !raw.starts_with('"') {
        return None;
    }
    if !raw.contains('\\') {
        return Some(Cow::Borrowed(&raw[1..raw.len() - 1]));
    }
    serde_json::from_str(raw).ok().map(Cow::Owned)
}

impl<'a> RequestBody<'a> {
    /// Splits the top level.
    ///
    /// # Errors
    /// [`Abstention::Unparsable`]: not a JSON object, or a key twice. Dynamo gives the client its answer.
    pub fn parse(body: &'a [u8]) -> Result<Self, Abstention> {
        let text = std::str::from_utf8(body).map_err(|_| Abstention::Unparsable)?;
        if !text.trim_start().starts_with('{') {
            return Err(Abstention::Unparsable);
        }
        serde_json::from_str(text).map_err(|_| Abstention::Unparsable)
    }

    /// The client's `nvext`; the default when there is none.
    ///
    /// # Errors
    /// [`Abstention::Unparsable`] when it is not an object.
    pub fn client_nvext(&self) -> Result<ClientNvext<'a>, Abstention> {
        match self.nvext {
            Some(raw) if raw.get() != "null" => {
                if !raw.get().starts_with('{') {
                    return Err(Abstention::Unparsable);
                }
                serde_json::from_str(raw.get()).map_err(|_| Abstention::Unparsable)
            }
            _ => Ok(ClientNvext::default()),
        }
    }

    /// Whether the client asked for a stream.
    pub fn is_streamed(&self) -> bool {
        self.stream.is_some_and(|raw| raw.get() == "true")
    }

    /// Some field is set that changes rendering in ways we do not follow.
    pub fn has_rendering_options(&self) -> bool {
        let automatic = self
            .tool_choice
            .is_none_or(|raw| matches!(raw.get(), "null" | "\"auto\""));
        !automatic
            || [
                self.chat_template,
                self.chat_template_args,
                self.chat_template_kwargs,
                self.documents,
                self.add_generation_prompt,
                self.continue_final_message,
                self.add_special_tokens,
                self.reasoning_effort,
                self.thinking,
                self.response_format,
                self.functions,
                self.truncate_prompt_tokens,
                self.mm_processor_kwargs,
            ]
            .into_iter()
            .any(is_set)
    }
}

impl ClientNvext<'_> {
    /// The client chose a worker.
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

    /// The client asked where Dynamo would route.
    pub fn is_dry_run(&self) -> bool {
        self.annotations
            .is_some_and(|raw| raw.get().contains("query_instance_id:"))
    }
}

/// The body with `nvext.token_data` put in: the client's bytes before and after, in three pieces that share its memory.
///
/// `None` when there is no object to put it into, or the client brought its own token data.
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
    fn key_given_twice_is_left_to_dynamo() {
        assert!(RequestBody::parse(br#"{"model":"a","model":"b"}"#).is_err());
    }

    #[test]
    fn nested_key_of_the_same_name_is_not_mistaken() {
        let value = spliced(r#"{"metadata":{"nvext":{"a":1}},"model":"m"}"#, &[1]).unwrap();
        assert_eq!(value["metadata"]["nvext"], json!({"a":1}));
        assert_eq!(value["nvext"], json!({"token_data":[1]}));
    }

    #[test]
    fn pins_in_nvext_are_seen() {
        let body = br#"{"nvext":{"decode_worker_id":5}}"#;
        let parsed = RequestBody::parse(body).unwrap();
        assert!(parsed.client_nvext().unwrap().has_pin());
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
