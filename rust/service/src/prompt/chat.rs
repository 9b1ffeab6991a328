//! A conversation in the form that Dynamo gives its templates, and the shape of it.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::Abstention;
use super::body::{self, RequestBody};
use super::template::ChatTemplate;
use super::tokenise::Shape;

/// Messages and tools ready for the template.
pub(crate) struct Conversation {
    /// `messages`, normalised.
    pub messages: Vec<Value>,
    /// `tools`, normalised; empty when there are none.
    pub tools: Vec<Value>,
    /// What in it has to be proven equal to Dynamo's rendering before ids are handed over.
    pub shape: Shape,
}

/// Reads `messages` and `tools` of a chat request.
pub fn from_chat(request: &RequestBody<'_>, template: &ChatTemplate) -> Result<Conversation, Abstention> {
    let raw = request.messages.ok_or(Abstention::Unparsable)?;
    let messages: Vec<Map<String, Value>> =
        serde_json::from_str(raw.get()).map_err(|_| Abstention::Unparsable)?;
    let mut shape = if request.has_rendering_options() {
        Shape::UNPROVEN
    } else {
        Shape::PLAIN
    };
    let messages = messages
        .into_iter()
        .map(|message| normalise_message(message, template, &mut shape))
        .collect::<Result<_, _>>()?;
    let tools = normalise_tools(request.tools)?;
    if !tools.is_empty() {
        shape |= Shape::TOOLS;
    }
    Ok(Conversation {
        messages,
        tools,
        shape,
    })
}

/// Reads `input` and `instructions` of a responses request, when they are plain text. Dynamo turns it into a conversation in
/// more steps than we follow, so the ids are a hint.
pub fn from_responses(request: &RequestBody<'_>) -> Result<Conversation, Abstention> {
    if body::is_set(request.previous_response_id) {
        return Err(Abstention::ResponsesItems);
    }
    let input = body::text(request.input).ok_or(Abstention::ResponsesItems)?;
    let mut messages = Vec::with_capacity(2);
    if let Some(instructions) = body::text(request.instructions) {
        messages.push(serde_json::json!({"role": "system", "content": instructions}));
    }
    messages.push(serde_json::json!({"role": "user", "content": input}));
    let tools = if body::is_set(request.tools) {
        return Err(Abstention::ResponsesItems);
    } else {
        Vec::new()
    };
    Ok(Conversation {
        messages,
        tools,
        shape: Shape::UNPROVEN,
    })
}

fn normalise_message(
    mut message: Map<String, Value>,
    template: &ChatTemplate,
    shape: &mut Shape,
) -> Result<Value, Abstention> {
    for key in message.keys() {
        match key.as_str() {
            "role" | "content" => {}
            "tool_calls" | "tool_call_id" => *shape |= Shape::TOOL_CALLS,
            _ => *shape |= Shape::UNPROVEN,
        }
    }
    match message.get("role").and_then(Value::as_str) {
        Some("system" | "user" | "assistant") => {}
        Some("tool") => *shape |= Shape::TOOL_CALLS,
        _ => *shape |= Shape::UNPROVEN,
    }
    // Dynamo's typed messages leave a null content out, and a template prints nothing for what is not there.
    if message.get("content").is_some_and(Value::is_null) {
        message.shift_remove("content");
    }
    match message.get_mut("content") {
        Some(content) if content.is_array() => {
            *shape |= Shape::PARTS;
            let joined = join_text_parts(content)?;
            if !template.wants_content_parts {
                *content = Value::String(joined);
            }
        }
        Some(content) if content.is_string() => {
            if template.wants_content_parts {
                *content = serde_json::json!([{"type": "text", "text": content.take()}]);
            }
        }
        None => *shape |= Shape::TOOL_CALLS,
        Some(_) => return Err(Abstention::Unparsable),
    }
    if !template.keeps_argument_strings {
        decode_arguments(&mut message);
    }
    Ok(Value::Object(message))
}

/// Text-only parts are joined by line breaks; anything else is no text.
fn join_text_parts(content: &Value) -> Result<String, Abstention> {
    let parts = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        if part.get("type").and_then(Value::as_str) != Some("text") {
            return Err(Abstention::Multimodal);
        }
        texts.push(
            part.get("text")
                .and_then(Value::as_str)
                .ok_or(Abstention::Unparsable)?,
        );
    }
    if texts.is_empty() {
        return Err(Abstention::Multimodal);
    }
    Ok(texts.join("\n"))
}

fn decode_arguments(message: &mut Map<String, Value>) {
    let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else {
        return;
    };
    for call in calls {
        if let Some(arguments) = call.get_mut("function").and_then(|f| f.get_mut("arguments"))
            && let Some(text) = arguments.as_str()
            && let Ok(decoded) = serde_json::from_str::<Value>(text)
        {
            *arguments = decoded;
        }
    }
}

/// Tools in the order of `OpenAI`'s schema, unknown keys left out, empty schemas completed: what the template sees in Dynamo.
fn normalise_tools(raw: Option<&RawValue>) -> Result<Vec<Value>, Abstention> {
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else {
        return Ok(Vec::new());
    };
    let tools: Vec<Value> = serde_json::from_str(raw.get()).map_err(|_| Abstention::Unparsable)?;
    tools.into_iter().map(normalise_tool).collect()
}

fn normalise_tool(mut tool: Value) -> Result<Value, Abstention> {
    let kind = tool
        .get_mut("type")
        .map_or_else(|| Value::from("function"), Value::take);
    let Some(Value::Object(mut function)) = tool.get_mut("function").map(Value::take) else {
        return Err(Abstention::Unparsable);
    };
    let mut ordered = Map::with_capacity(4);
    for key in ["name", "description", "parameters", "strict"] {
        if let Some(value) = function.remove(key).filter(|value| !value.is_null()) {
            ordered.insert(key.into(), value);
        }
    }
    if !ordered.get("description").is_some_and(Value::is_string) {
        ordered.insert("description".into(), Value::from(""));
    }
    if let Some(parameters) = ordered.get_mut("parameters").and_then(Value::as_object_mut) {
        if !parameters.contains_key("type") {
            parameters.insert("type".into(), Value::from("object"));
        }
        if !parameters.contains_key("properties") {
            parameters.insert("properties".into(), Value::Object(Map::new()));
        }
    }
    let mut out = Map::with_capacity(2);
    out.insert("type".into(), kind);
    out.insert("function".into(), Value::Object(ordered));
    Ok(Value::Object(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::template::tests::{CHATML, template};

    fn chat(body: &str) -> Result<Conversation, Abstention> {
        from_chat(&RequestBody::parse(body.as_bytes()).unwrap(), &template(CHATML))
    }

    #[test]
    fn text_parts_are_joined_by_line_breaks() {
        let got = chat(r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#).unwrap();
        assert_eq!(got.messages[0]["content"], "a\nb");
        assert_eq!(got.shape, Shape::PLAIN | Shape::PARTS);
    }

    #[test]
    fn image_part_abstains() {
        let got = chat(
            r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#,
        );
        assert_eq!(got.err(), Some(Abstention::Multimodal));
    }

    #[test]
    fn unknown_message_key_is_never_proven() {
        let got = chat(r#"{"messages":[{"role":"user","content":"a","reasoning_content":"r"}]}"#).unwrap();
        assert!(got.shape.contains(Shape::UNPROVEN));
    }

    #[test]
    fn rendering_option_is_never_proven() {
        let got =
            chat(r#"{"chat_template_kwargs":{"thinking":true},"messages":[{"role":"user","content":"a"}]}"#)
                .unwrap();
        assert!(got.shape.contains(Shape::UNPROVEN));
    }

    #[test]
    fn tool_arguments_are_decoded_for_templates_that_iterate_them() {
        let got = chat(r#"{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]}]}"#).unwrap();
        assert_eq!(got.messages[0]["tool_calls"][0]["function"]["arguments"]["a"], 1);
        assert!(got.shape.contains(Shape::TOOL_CALLS));
    }

    #[test]
    fn tools_are_put_in_schema_order_and_completed() {
        let got = chat(
            r#"{"messages":[],"tools":[{"function":{"parameters":{},"name":"f","x":1},"type":"function"}]}"#,
        )
        .unwrap();
        let text = serde_json::to_string(&got.tools).unwrap();
        assert_eq!(
            text,
            r#"[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}},"description":""}}]"#
        );
    }
}
