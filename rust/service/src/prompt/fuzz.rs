//! Fuzz targets of the bodies that clients send.

use bytes::Bytes;
use serde_json::Value;
use wardrop_mutation::run;

use super::body::{Endpoint, RequestBody, splice_token_data};
use super::prepare::{PromptRequest, PromptTarget, is_heavy};
use super::{anthropic, chat::ChatRequest};
use crate::config::PromptOptions;

fn bodies() -> Vec<Vec<u8>> {
    [
        r#"{"model":"m","prompt":[1,2,3,4,5,6,7,8,9],"stream":true,"nvext":{"agent_hints":{"osl":7},"annotations":["a"]}}"#,
        r#"{"model":"m","prompt":"a text \ud83d\ude00","cache_salt":"s","stream_options":{"include_usage":true}}"#,
        r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"t"}]},
            {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},
            {"role":"tool","tool_call_id":"1","content":"r"}],"tools":[{"type":"function","function":{"name":"f","description":"d",
            "parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}],"tool_choice":"auto","chat_template_kwargs":{"x":true}}"#,
        r#"{"model":"m","system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],"max_tokens":9,"messages":[{"role":"user",
            "content":[{"type":"tool_result","tool_use_id":"1","content":"x"}]}],"tools":[{"name":"f","input_schema":{"type":"object"}}]}"#,
        r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"t"}]}],"instructions":"i","previous_response_id":null}"#,
        r#"{"model":"m","prompt":[[1,2],[3]],"nvext":{"token_data":[1],"backend_instance_id":7,"dp_rank":0}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Whether a body has a pin. Of two equal keys it takes the last one, as most JSON parsers do.
fn pin_of(body: &Value) -> bool {
    let names = [
        "backend_instance_id",
        "prefill_worker_id",
        "decode_worker_id",
        "dp_rank",
        "prefill_dp_rank",
    ];
    body["nvext"].as_object().is_some_and(|nvext| {
        names
            .iter()
            .any(|name| nvext.get(*name).is_some_and(|v| !v.is_null()))
    })
}

#[test]
fn no_pin_passes_and_token_data_lands_where_dynamo_reads_it() {
    run("request bodies", &bodies(), |input, dice| {
        let body = Bytes::copy_from_slice(input);
        let Ok(parsed) = RequestBody::parse(&body) else {
            return;
        };
        let whole: Result<Value, _> = serde_json::from_slice(input);
        if let Ok(nvext) = parsed.client_nvext()
            && let Ok(whole) = &whole
        {
            assert_eq!(nvext.has_pin(), pin_of(whole), "a pin passes");
        }
        let tokens = [dice.roll() as u32, 0, u32::MAX];
        if let Some(pieces) = splice_token_data(&body, &parsed, &tokens)
            && let Ok(mut whole) = whole
            && parsed
                .client_nvext()
                .is_ok_and(|nvext| nvext.token_data.is_none())
        {
            let spliced: Value =
                serde_json::from_slice(&pieces.concat()).expect("a spliced body must stay JSON");
            whole["nvext"]["token_data"] = Value::from(tokens.to_vec());
            assert_eq!(spliced, whole, "only the ids are new");
        }
    });
}

#[test]
fn every_endpoint_reads_or_abstains() {
    let endpoints = [
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Messages,
    ];
    let (options, target) = (
        PromptOptions::default(),
        PromptTarget {
            block_size: 4,
            context_length: Some(64),
            lora: None,
            prompter: None,
        },
    );
    run("prompts", &bodies(), |input, dice| {
        let body = Bytes::copy_from_slice(input);
        let endpoint = endpoints[dice.below(endpoints.len())];
        drop(ChatRequest::from_chat(input));
        drop(anthropic::from_messages(input));
        let _ = is_heavy(input, &options);
        if let Ok(request) = PromptRequest::read(endpoint, &body)
            && let Ok(prompt) = request.prepare(&target, None, &options)
        {
            assert!(prompt.input_tokens <= 64 && prompt.hashes.len() as u32 == prompt.input_tokens / 4);
        }
    });
}
