//! The bodies of the two legs of a split request, made from the client's body.
//!
//! Only top-level fields change. Every other value goes on as the client's own bytes. Cost: one pass over the body and one copy per leg.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Field of vLLM with the address of a prompt's blocks.
const KV_TRANSFER: &str = "kv_transfer_params";
/// Value of [`KV_TRANSFER`] that asks a prefill worker to keep the blocks for another worker.
const REMOTE_DECODE: &str = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;
/// Fields that the prefill leg has of its own: length and form of its answer, and the address of the blocks.
const PREFILL_FIELDS: [&str; 6] = [
    "stream",
    "stream_options",
    "max_tokens",
    "min_tokens",
    "max_completion_tokens",
    KV_TRANSFER,
];
/// Fields of `SGLang` that say where prefill and decode meet.
const BOOTSTRAP: [&str; 3] = ["bootstrap_host", "bootstrap_port", "bootstrap_room"];

/// A JSON object as its top-level fields, in their order.
#[derive(Clone)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

/// Where the two workers of `SGLang` meet.
#[derive(Clone, Copy, Debug)]
pub struct Meeting<'a> {
    /// Host of the bootstrap server.
    pub host: &'a str,
    /// Port of the bootstrap server.
    pub port: u16,
    /// Number of the first prompt's transfer. Further prompts of a batch have the numbers `stride` apart.
    pub room: u64,
    /// Distance between the rooms of two prompts, at least 1.
    pub stride: u64,
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                    fields.push((Cow::Owned(key), Cow::Borrowed(value)));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

impl<'a> Fields<'a> {
    /// The fields of a body; `None` for a body that is no JSON object.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// The body of a vLLM prefill leg: one token, no stream, and the blocks are kept for another worker.
    pub fn vllm_prefill(&self) -> Bytes {
        let has_newer_limit = self.has("max_completion_tokens");
        let mut fields = self.without(&PREFILL_FIELDS);
        fields.add("stream", "false");
        fields.add("max_tokens", "1");
        if has_newer_limit {
            fields.add("max_completion_tokens", "1");
        }
        fields.add(KV_TRANSFER, REMOTE_DECODE);
        fields.write()
    }

    /// The body of a vLLM decode leg. `transfer` is the JSON with which the prefill leg answered.
    pub fn vllm_decode(&self, transfer: Option<&RawValue>) -> Bytes {
        let mut fields = self.without(&[KV_TRANSFER]);
        if let Some(transfer) = transfer {
            fields.add(KV_TRANSFER, transfer.get());
        }
        fields.write()
    }

    /// The body of both `SGLang` legs. A list of prompts needs a room for each prompt.
    pub fn sglang(&self, meeting: Meeting<'_>) -> Bytes {
        let mut fields = self.without(&BOOTSTRAP);
        let host = serde_json::Value::from(meeting.host).to_string();
        let port = meeting.port.to_string();
        let room = |at: u64| {
            let room = meeting.room.wrapping_add(at.wrapping_mul(meeting.stride));
            (room & (i64::MAX as u64)).to_string()
        };
        match self.prompts() {
            None => {
                fields.add("bootstrap_host", &host);
                fields.add("bootstrap_port", &port);
                fields.add("bootstrap_room", &room(0));
            }
            Some(count) => {
                let list = |value: &dyn Fn(u64) -> String| {
                    let values: Vec<String> = (0..count as u64).map(value).collect();
                    format!("[{}]", values.join(","))
                };
                fields.add("bootstrap_host", &list(&|_| host.clone()));
                fields.add("bootstrap_port", &list(&|_| port.clone()));
                fields.add("bootstrap_room", &list(&room));
            }
        }
        fields.write()
    }

    /// Prompts of a batch; `None` for one prompt, as text or as token ids.
    pub fn prompts(&self) -> Option<usize> {
        let (_, prompt) = self.0.iter().find(|(key, _)| key == "prompt")?;
        let first = prompt.get().strip_prefix('[')?.trim_start();
        if !first.starts_with(['"', '[']) {
            return None;
        }
        // Values without a size take no memory, however long the list is.
        let list: Vec<IgnoredAny> = serde_json::from_str(prompt.get()).ok()?;
        Some(list.len())
    }

    /// Whether a field is there.
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// The fields without some of them.
    fn without(&self, names: &[&str]) -> Self {
        let kept = self.0.iter().filter(|(key, _)| !names.contains(&&**key));
        Self(kept.cloned().collect())
    }

    /// Adds a field whose value is JSON.
    fn add(&mut self, name: &'static str, json: &str) {
        let value = RawValue::from_string(json.to_owned()).expect("the value must be JSON");
        self.0.push((Cow::Borrowed(name), Cow::Owned(value)));
    }

    /// The object as JSON.
    fn write(&self) -> Bytes {
        let length: usize = self
            .0
            .iter()
            .map(|(key, value)| key.len() + value.get().len() + 4)
            .sum();
        let mut out = Vec::with_capacity(length + 2);
        out.push(b'{');
        for (at, (key, value)) in self.0.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, key).expect("writing to memory must succeed");
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
        Bytes::from(out)
    }
}

/// The parts of a prefill leg's answer that the decode leg and the audit need.
#[derive(Deserialize)]
pub struct PrefillAnswer<'a> {
    /// Address of the blocks; `None` where the worker keeps none.
    #[serde(borrow, default)]
    kv_transfer_params: Option<&'a RawValue>,
    /// Counts of the engine.
    #[serde(default)]
    usage: Option<PrefillUsage>,
}

/// `usage` of a prefill leg's answer.
#[derive(Deserialize)]
struct PrefillUsage {
    /// Details of the prompt.
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

/// `usage.prompt_tokens_details`.
#[derive(Deserialize)]
struct PromptDetails {
    /// Prompt tokens that the engine found in its cache.
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl<'a> PrefillAnswer<'a> {
    /// The parts of an answer; `None` for an answer that is no JSON object.
    pub fn read(answer: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(answer).ok()
    }

    /// Address of the blocks; `None` for an empty one.
    pub fn transfer(&self) -> Option<&'a RawValue> {
        self.kv_transfer_params
            .filter(|transfer| !matches!(transfer.get(), "null" | "{}"))
    }

    /// Prompt tokens that the worker found in its cache.
    pub fn cached_tokens(&self) -> Option<u64> {
        self.usage.as_ref()?.prompt_tokens_details.as_ref()?.cached_tokens
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn value(bytes: &Bytes) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn prefill_leg_has_one_token_and_no_stream() {
        let body = br#"{"model":"m","max_tokens":9,"stream":true,"stream_options":{"include_usage":true},"min_tokens":4,"prompt":[1, 2],"kv_transfer_params":{"remote_host":"evil"}}"#;
        let fields = Fields::read(body).unwrap();
        let prefill = value(&fields.vllm_prefill());
        let remote: Value = serde_json::from_str(REMOTE_DECODE).unwrap();
        assert_eq!(
            prefill,
            json!({"model": "m", "prompt": [1, 2], "stream": false, "max_tokens": 1, "kv_transfer_params": remote})
        );
        let transfer = RawValue::from_string(r#"{"remote_host":"p"}"#.into()).unwrap();
        let decode = value(&fields.vllm_decode(Some(&transfer)));
        assert_eq!(decode["kv_transfer_params"], json!({"remote_host": "p"}));
        assert_eq!(
            (&decode["max_tokens"], &decode["stream"]),
            (&json!(9), &json!(true))
        );
        assert!(
            !value(&fields.vllm_decode(None))
                .as_object()
                .unwrap()
                .contains_key(KV_TRANSFER)
        );
    }

    #[test]
    fn newer_limit_is_lowered_where_the_client_set_it() {
        let fields = Fields::read(br#"{"messages":[],"max_completion_tokens":77}"#).unwrap();
        let prefill = value(&fields.vllm_prefill());
        assert_eq!(
            (&prefill["max_tokens"], &prefill["max_completion_tokens"]),
            (&json!(1), &json!(1))
        );
    }

    #[test]
    fn meeting_is_one_value_or_one_per_prompt() {
        let meeting = Meeting {
            host: "p\"1",
            port: 8998,
            room: i64::MAX as u64,
            stride: 2,
        };
        let one = Fields::read(br#"{"prompt":[1,2,3],"bootstrap_host":"evil"}"#).unwrap();
        assert_eq!(
            value(&one.sglang(meeting)),
            json!({"prompt": [1, 2, 3], "bootstrap_host": "p\"1", "bootstrap_port": 8998, "bootstrap_room": i64::MAX})
        );
        let chat = Fields::read(br#"{"messages":[{"role":"user"}]}"#).unwrap();
        assert_eq!(value(&chat.sglang(meeting))["bootstrap_port"], 8998);
        let batch = Fields::read(br#"{"prompt":["a","b"]}"#).unwrap();
        let body = value(&batch.sglang(meeting));
        assert_eq!(body["bootstrap_host"], json!(["p\"1", "p\"1"]));
        assert_eq!(
            body["bootstrap_room"],
            json!([i64::MAX, 1]),
            "rooms stay within 63 bits"
        );
    }

    #[test]
    fn body_that_is_no_object_has_no_fields() {
        for body in [&b"[1]"[..], b"{", b"", b"\"x\""] {
            assert!(Fields::read(body).is_none());
        }
    }

    #[test]
    fn answer_of_a_prefill_leg_names_the_blocks_and_the_cached_tokens() {
        let answer =
            br#"{"usage":{"prompt_tokens_details":{"cached_tokens":32}},"kv_transfer_params":{"a": 1}}"#;
        let answer = PrefillAnswer::read(answer).unwrap();
        assert_eq!(answer.cached_tokens(), Some(32));
        assert_eq!(answer.transfer().unwrap().get(), r#"{"a": 1}"#);
        for empty in [
            "{}",
            r#"{"kv_transfer_params":null,"usage":null}"#,
            r#"{"kv_transfer_params":{}}"#,
        ] {
            assert!(
                PrefillAnswer::read(empty.as_bytes())
                    .unwrap()
                    .transfer()
                    .is_none()
            );
        }
    }
}
