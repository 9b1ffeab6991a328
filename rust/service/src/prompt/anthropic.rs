//! A conversation of Anthropic's messages API as a chat request.
//!
//! The body is decoded by `dynamo-protocols`. Dynamo turns it into a chat request before it renders, and so does this module.
//! Answers of this API name no token ids, so no dry run can prove the ids. They serve to find the prefix and are not handed over.
//! Source: `protocols/anthropic/types.rs` of the crate `dynamo-llm` 1.6.1.
//!
//! Cost: O(bytes), with one copy of every text. Fields that change no token, such as `max_tokens`
//! and `stop_sequences`, are not converted.

use std::collections::HashMap;

use dynamo_protocols::types::CreateChatCompletionRequest;
use dynamo_protocols::types::anthropic::{
    AnthropicContentBlock, AnthropicCreateMessageRequest, AnthropicMessage, AnthropicMessageContent,
    AnthropicRole, AnthropicTool, AnthropicToolChoice, AnthropicToolChoiceMode, ToolResultContent,
    ToolResultContentBlock,
};
use serde_json::{Value, json};

use super::Abstention;
use super::chat::ChatRequest;

/// Decodes the body of a request of the messages API.
///
/// `thinking` of the type `enabled` becomes the template argument `enable_thinking`; every other
/// type sets nothing, as in Dynamo.
///
/// # Errors
/// [`Abstention::Unparsable`] for a body that Dynamo refuses too, [`Abstention::Multimodal`] for images.
pub(crate) fn from_messages(bytes: &[u8]) -> Result<ChatRequest, Abstention> {
    let request: AnthropicCreateMessageRequest =
        serde_json::from_slice(bytes).map_err(|_| Abstention::Unparsable)?;
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    if let Some(system) = &request.system {
        messages.push(json!({"role": "system", "content": system.text}));
    }
    for message in &request.messages {
        push_message(message, &mut messages)?;
    }
    let mut chat = json!({"model": request.model, "messages": messages});
    if let Some(tools) = request.tools.as_deref().filter(|tools| !tools.is_empty()) {
        chat["tools"] = tools
            .iter()
            .map(tool_json)
            .collect::<Option<Vec<_>>>()
            .ok_or(Abstention::Unparsable)?
            .into();
    }
    if let Some(choice) = &request.tool_choice {
        chat["tool_choice"] = tool_choice_json(choice);
    }
    let inner: CreateChatCompletionRequest =
        serde_json::from_value(chat).map_err(|_| Abstention::Unparsable)?;
    let chat = ChatRequest::from_inner(inner);
    let thinks = request
        .thinking
        .is_some_and(|thinking| thinking.thinking_type == "enabled");
    Ok(if thinks {
        chat.with_template_arguments(HashMap::from([("enable_thinking".to_owned(), Value::from(true))]))
    } else {
        chat
    })
}

/// Appends one turn as one or more chat messages.
///
/// # Errors
/// [`Abstention::Multimodal`] and [`Abstention::Unparsable`], by the blocks of a user's turn.
fn push_message(message: &AnthropicMessage, messages: &mut Vec<Value>) -> Result<(), Abstention> {
    match (&message.role, &message.content) {
        (AnthropicRole::System, content) => {
            messages.push(json!({"role": "system", "content": system_text(content)}));
        }
        (AnthropicRole::User, AnthropicMessageContent::Text { content }) => {
            messages.push(json!({"role": "user", "content": content}));
        }
        (AnthropicRole::Assistant, AnthropicMessageContent::Text { content }) => {
            messages.push(json!({"role": "assistant", "content": content}));
        }
        (AnthropicRole::User, AnthropicMessageContent::Blocks { content }) => {
            push_user_blocks(content, messages)?;
        }
        (AnthropicRole::Assistant, AnthropicMessageContent::Blocks { content }) => {
            messages.push(assistant_json(content));
        }
    }
    Ok(())
}

/// Text of a system turn: its text blocks, joined by line feeds. Blocks of other kinds carry no
/// text for the template.
fn system_text(content: &AnthropicMessageContent) -> String {
    match content {
        AnthropicMessageContent::Text { content } => content.clone(),
        AnthropicMessageContent::Blocks { content } => {
            let texts: Vec<&str> = content
                .iter()
                .filter_map(|block| match block {
                    AnthropicContentBlock::Text { text, .. } => Some(text.as_str()),
                    _ => None,
                })
                .collect();
            texts.join("\n")
        }
    }
}

/// Appends the blocks of a user's turn. Each tool result is a message of its own; the texts between
/// two results are one message.
///
/// Texts are joined without a separator and keep their order among the results, as in Dynamo.
///
/// # Errors
/// [`Abstention::Multimodal`] for an image, [`Abstention::Unparsable`] for a tool result with a
/// block that Dynamo refuses.
fn push_user_blocks(blocks: &[AnthropicContentBlock], messages: &mut Vec<Value>) -> Result<(), Abstention> {
    let mut text: Option<String> = None;
    let flush = |text: &mut Option<String>, messages: &mut Vec<Value>| {
        if let Some(text) = text.take() {
            messages.push(json!({"role": "user", "content": text}));
        }
    };
    for block in blocks {
        match block {
            AnthropicContentBlock::Text { text: more, .. } => {
                text.get_or_insert_default().push_str(more);
            }
            AnthropicContentBlock::Image { .. } => return Err(Abstention::Multimodal),
            AnthropicContentBlock::ToolResult {
                tool_use_id, content, ..
            } => {
                flush(&mut text, messages);
                let content = content
                    .as_ref()
                    .map(tool_result_text)
                    .transpose()?
                    .unwrap_or_default();
                messages.push(json!({"role": "tool", "tool_call_id": tool_use_id, "content": content}));
            }
            _ => {}
        }
    }
    flush(&mut text, messages);
    Ok(())
}

/// Text of a tool result.
///
/// # Errors
/// [`Abstention::Multimodal`] for an image, [`Abstention::Unparsable`] for a block of an unknown
/// kind.
fn tool_result_text(content: &ToolResultContent) -> Result<String, Abstention> {
    if let ToolResultContent::Blocks(blocks) = content {
        for block in blocks {
            match block {
                ToolResultContentBlock::Text { .. } => {}
                ToolResultContentBlock::Image { .. } => return Err(Abstention::Multimodal),
                ToolResultContentBlock::Other(_) => return Err(Abstention::Unparsable),
            }
        }
    }
    Ok(content.clone().into_text())
}

/// An assistant's turn: its text, its calls, and for each call the thinking that came before the call.
fn assistant_json(blocks: &[AnthropicContentBlock]) -> Value {
    let (mut text, mut thought) = (String::new(), String::new());
    let (mut calls, mut thoughts) = (Vec::new(), Vec::new());
    for block in blocks {
        match block {
            AnthropicContentBlock::Text { text: more, .. } => text.push_str(more),
            AnthropicContentBlock::Thinking { thinking, .. } => {
                if !thought.is_empty() {
                    thought.push('\n');
                }
                thought.push_str(thinking);
            }
            AnthropicContentBlock::ToolUse { id, name, input, .. }
            | AnthropicContentBlock::ServerToolUse { id, name, input, .. } => {
                thoughts.push(std::mem::take(&mut thought));
                let function = json!({"name": name, "arguments": input.to_string()});
                calls.push(json!({"id": id, "type": "function", "function": function}));
            }
            _ => {}
        }
    }
    thoughts.push(thought);
    let mut message = json!({"role": "assistant"});
    if !text.is_empty() {
        message["content"] = text.into();
    }
    let has_thoughts = thoughts.iter().any(|thought| !thought.is_empty());
    if has_thoughts {
        // With calls, the list has one entry per call and one for the thinking after the last call.
        message["reasoning_content"] = if calls.is_empty() {
            thoughts.concat().into()
        } else {
            thoughts.into()
        };
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// `None` for a tool without a schema, which Dynamo refuses.
fn tool_json(tool: &AnthropicTool) -> Option<Value> {
    let mut function = json!({"name": tool.name, "parameters": tool.input_schema.clone()?});
    if let Some(description) = &tool.description {
        function["description"] = description.as_str().into();
    }
    if let Some(strict) = tool.strict {
        function["strict"] = strict.into();
    }
    Some(json!({"type": "function", "function": function}))
}

/// The choice of a tool in the words of the chat API.
fn tool_choice_json(choice: &AnthropicToolChoice) -> Value {
    match choice {
        AnthropicToolChoice::Simple(simple) => match simple.choice_type {
            AnthropicToolChoiceMode::Auto => "auto".into(),
            AnthropicToolChoiceMode::None => "none".into(),
            // A named tool without its name asks for any tool.
            AnthropicToolChoiceMode::Any | AnthropicToolChoiceMode::Tool => "required".into(),
        },
        AnthropicToolChoice::Named(named) => json!({"type": "function", "function": {"name": named.name}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynamo_renderer::OAIChatLikeRequest;

    fn messages(body: &Value) -> Value {
        let body = json!({"model": "m", "max_tokens": 1, "messages": body});
        let chat = from_messages(body.to_string().as_bytes()).unwrap();
        serde_json::to_value(chat.typed_messages().unwrap()).unwrap()
    }

    #[test]
    fn tool_results_split_the_texts_of_a_turn() {
        let got = messages(&json!([{"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]},
            {"type": "text", "text": "c"}]}]));
        assert_eq!(
            got,
            json!([{"role": "user", "content": "ab"}, {"role": "tool", "content": "r", "tool_call_id": "t"},
                {"role": "user", "content": "c"}])
        );
    }

    #[test]
    fn thinking_is_kept_before_its_call() {
        let got = messages(
            &json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "first", "signature": "s"}, {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]}]),
        );
        assert_eq!(got[1]["reasoning_content"], json!(["first", ""]));
        assert_eq!(
            got[1]["tool_calls"][0]["function"],
            json!({"name": "f", "arguments": "{\"a\":1}"})
        );
        assert_eq!(got[1]["content"], json!("so"));
    }

    #[test]
    fn image_abstains() {
        let image =
            json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}});
        let body = json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [image]}]});
        assert_eq!(
            from_messages(body.to_string().as_bytes()).err(),
            Some(Abstention::Multimodal)
        );
    }
}
