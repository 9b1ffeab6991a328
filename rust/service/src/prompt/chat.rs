//! A chat request in Dynamo's own types, ready for the renderer.
//!
//! The body is decoded by `dynamo-protocols`, so a template sees the messages, tools and calls that it sees in Dynamo: known keys
//! in the typed order, unknown keys and `null` left out. Conversations of other endpoints become a [`ChatRequest`] too.
//!
//! Cost: O(bytes); a request is decoded once, and the template reads the decoded messages.

use std::collections::HashMap;

use dynamo_protocols::types::{
    ChatCompletionRequestMessage, ChatCompletionRequestToolMessageContent,
    ChatCompletionRequestToolMessageContentPart, ChatCompletionRequestUserMessageContent,
    ChatCompletionRequestUserMessageContentPart, ChatCompletionToolChoiceOption, CreateChatCompletionRequest,
};
use dynamo_renderer::{OAIChatLikeRequest, TextInput, may_be_fix_tool_schema};
use minijinja::Value;
use serde::Deserialize;

use super::Abstention;
use super::body::{self, RequestBody};
use super::card::CardOptions;
use super::reasoning::{self, ThinkingWishes};
use super::shape::Shape;

/// A mark behind the last message, which shows where the message ends in the rendered text. The `transformers` library uses the same mark.
const END_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The fields of a chat request that decide its prompt.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ChatRequest {
    /// The fields of `OpenAI`'s API, in Dynamo's types.
    #[serde(flatten)]
    inner: CreateChatCompletionRequest,
    /// Whether the template opens the assistant's turn; `None` opens it.
    #[serde(default)]
    add_generation_prompt: Option<bool>,
    /// Whether the model continues the last message in place of a new turn.
    #[serde(default)]
    continue_final_message: Option<bool>,
    /// Variables of the template, under the name of Dynamo or of vLLM.
    #[serde(default, alias = "chat_template_kwargs")]
    chat_template_args: Option<HashMap<String, serde_json::Value>>,
    /// Wish about thinking, in the form of Anthropic's API or as a boolean.
    #[serde(default)]
    thinking: Option<serde_json::Value>,
}

impl ChatRequest {
    /// Decodes the body of a chat request.
    ///
    /// # Errors
    /// [`Abstention::Unparsable`]: Dynamo refuses the body too, and gives the client its answer.
    pub fn from_chat(bytes: &[u8]) -> Result<Self, Abstention> {
        serde_json::from_slice(bytes).map_err(|_| Abstention::Unparsable)
    }

    /// Reads `input` and `instructions` of a responses request, when they are plain text.
    ///
    /// # Errors
    /// [`Abstention::ResponsesItems`] for input that Dynamo converts in steps which no published crate contains.
    pub fn from_responses(request: &RequestBody<'_>) -> Result<Self, Abstention> {
        if body::is_set(request.previous_response_id) || body::is_set(request.tools) {
            return Err(Abstention::ResponsesItems);
        }
        let input = body::text(request.input).ok_or(Abstention::ResponsesItems)?;
        let mut messages = Vec::with_capacity(2);
        if let Some(instructions) = body::text(request.instructions) {
            messages.push(serde_json::json!({"role": "system", "content": instructions}));
        }
        messages.push(serde_json::json!({"role": "user", "content": input}));
        let messages = serde_json::from_value(messages.into()).map_err(|_| Abstention::Unparsable)?;
        Ok(Self::from_inner(CreateChatCompletionRequest {
            messages,
            ..Default::default()
        }))
    }

    /// A request with the defaults of every field beside the typed request.
    ///
    /// Other endpoints build their typed request and come in here.
    pub fn from_inner(inner: CreateChatCompletionRequest) -> Self {
        Self {
            inner,
            ..Self::default()
        }
    }

    /// The same request with arguments for the template.
    pub fn with_template_arguments(self, arguments: HashMap<String, serde_json::Value>) -> Self {
        Self {
            chat_template_args: Some(arguments),
            ..self
        }
    }

    /// Resolves the wishes about thinking, as Dynamo does before it renders.
    ///
    /// # Errors
    /// [`Abstention::Unparsable`] for a wish that Dynamo refuses.
    pub fn resolve_thinking(&mut self, card: &CardOptions) -> Result<(), Abstention> {
        let effort = self.inner.reasoning_effort.as_ref();
        let wishes = ThinkingWishes {
            thinking: self.thinking.as_ref(),
            effort: effort.and_then(|effort| serde_json::to_value(effort).ok()),
            default_mode: card.default_thinking_mode.as_deref(),
        };
        reasoning::resolve(&wishes, &mut self.chat_template_args)
    }

    /// Whether the last message stays open, so that the model continues it.
    pub fn continues_last_message(&self) -> bool {
        self.continue_final_message == Some(true)
    }

    /// Whether the conversation has images, audio or video.
    ///
    /// Engines replace media by tokens that depend on their content, which this service does not
    /// compute.
    pub fn has_media(&self) -> bool {
        self.inner.messages.iter().any(|message| match message {
            ChatCompletionRequestMessage::User(user) => match &user.content {
                ChatCompletionRequestUserMessageContent::Array(parts) => parts
                    .iter()
                    .any(|part| !matches!(part, ChatCompletionRequestUserMessageContentPart::Text(_))),
                ChatCompletionRequestUserMessageContent::Text(_) => false,
            },
            ChatCompletionRequestMessage::Tool(tool) => match &tool.content {
                ChatCompletionRequestToolMessageContent::Array(parts) => parts
                    .iter()
                    .any(|part| !matches!(part, ChatCompletionRequestToolMessageContentPart::Text(_))),
                ChatCompletionRequestToolMessageContent::Text(_) => false,
            },
            ChatCompletionRequestMessage::Assistant(assistant) => assistant.audio.is_some(),
            _ => false,
        })
    }

    /// The kinds of content that a template treats differently.
    ///
    /// The shape decides only whether ids may be handed over; the ids themselves do not depend on
    /// it.
    pub fn shape(&self, card: &CardOptions) -> Shape {
        let mut shape = Shape::PLAIN;
        let mut has_calls = false;
        for message in &self.inner.messages {
            match message {
                ChatCompletionRequestMessage::User(user) => {
                    if matches!(user.content, ChatCompletionRequestUserMessageContent::Array(_)) {
                        shape |= Shape::PARTS;
                    }
                }
                ChatCompletionRequestMessage::Assistant(assistant) => {
                    has_calls |= assistant.tool_calls.is_some();
                    #[allow(deprecated, reason = "clients still send it")]
                    let has_legacy_call = assistant.function_call.is_some();
                    has_calls |= has_legacy_call;
                }
                ChatCompletionRequestMessage::Tool(_) | ChatCompletionRequestMessage::Function(_) => {
                    has_calls = true;
                }
                ChatCompletionRequestMessage::System(_) | ChatCompletionRequestMessage::Developer(_) => {}
            }
        }
        if has_calls {
            shape |= Shape::TOOL_CALLS;
        }
        if self.inner.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
            shape |= Shape::TOOLS;
        }
        let has_options = self.chat_template_args.is_some()
            || self.add_generation_prompt.is_some()
            || self.continue_final_message.is_some()
            || self.inner.response_format.is_some()
            || !matches!(
                self.inner.tool_choice,
                None | Some(ChatCompletionToolChoiceOption::Auto)
            );
        if has_options {
            shape |= Shape::OPTIONS;
        }
        if (has_calls && card.decodes_arguments()) || card.has_own_thinking_rules() {
            shape |= Shape::UNPROVEN;
        }
        shape
    }
}

/// The request as the renderer asks for it. The answers are those of Dynamo's own chat request.
impl OAIChatLikeRequest for ChatRequest {
    fn model(&self) -> String {
        self.inner.model.clone()
    }

    fn messages(&self) -> Value {
        Value::from_serialize(&self.inner.messages)
    }

    fn typed_messages(&self) -> Option<&[ChatCompletionRequestMessage]> {
        Some(&self.inner.messages)
    }

    fn tools(&self) -> Option<Value> {
        let tools = self.inner.tools.as_ref()?;
        may_be_fix_tool_schema(serde_json::to_value(tools).ok()?)
    }

    fn tool_choice(&self) -> Option<Value> {
        self.inner.tool_choice.as_ref().map(Value::from_serialize)
    }

    fn response_format(&self) -> Option<Value> {
        self.inner.response_format.as_ref().map(Value::from_serialize)
    }

    fn should_add_generation_prompt(&self) -> bool {
        !self.continues_last_message() && self.add_generation_prompt.unwrap_or(true)
    }

    fn chat_template_args(&self) -> Option<&HashMap<String, serde_json::Value>> {
        self.chat_template_args.as_ref()
    }

    fn extract_text(&self) -> Option<TextInput> {
        Some(TextInput::Single(String::new()))
    }

    fn mm_processor_kwargs(&self) -> Option<&serde_json::Value> {
        self.inner.mm_processor_kwargs.as_ref()
    }
}

/// A request whose last message ends with a mark, so that the rendered text can be cut there.
///
/// Dynamo 1.6.1 continues a last message in the same way. All other questions of the renderer go to
/// the wrapped request.
pub(crate) struct MarkedRequest<'a> {
    /// The request without the mark.
    request: &'a ChatRequest,
    /// Its messages, with [`END_MARK`] behind the last text.
    messages: Value,
}

impl<'a> MarkedRequest<'a> {
    /// Puts the mark behind the last text of the last message.
    ///
    /// # Errors
    /// [`Abstention::TemplateError`] where the last message has no text: Dynamo refuses the request.
    pub fn new(request: &'a ChatRequest) -> Result<Self, Abstention> {
        let refused = Abstention::TemplateError;
        let mut messages = serde_json::to_value(&request.inner.messages).map_err(|_| refused)?;
        let last = messages.as_array_mut().and_then(|list| list.last_mut());
        let text = match last.and_then(|message| message.get_mut("content")) {
            Some(serde_json::Value::String(text)) if !text.is_empty() => text,
            Some(serde_json::Value::Array(parts)) => parts
                .iter_mut()
                .rev()
                .find_map(|part| match part.get_mut("text") {
                    Some(serde_json::Value::String(text)) if !text.is_empty() => Some(text),
                    _ => None,
                })
                .ok_or(refused)?,
            _ => return Err(refused),
        };
        text.push_str(END_MARK);
        Ok(Self {
            request,
            messages: Value::from_serialize(&messages),
        })
    }

    /// The rendered text up to the mark.
    ///
    /// # Errors
    /// [`Abstention::TemplateError`] where the template dropped the mark: Dynamo refuses the request.
    pub fn cut(text: &str) -> Result<&str, Abstention> {
        // The last occurrence is the mark itself, even when a client's text contains the same words
        // earlier.
        let at = text.rfind(END_MARK.trim_end()).ok_or(Abstention::TemplateError)?;
        // A template that strips the space of the mark strips the space of the message too.
        let has_space = text[at..].starts_with(END_MARK);
        Ok(if has_space {
            &text[..at]
        } else {
            text[..at].trim_end()
        })
    }
}

impl OAIChatLikeRequest for MarkedRequest<'_> {
    fn model(&self) -> String {
        self.request.model()
    }

    fn messages(&self) -> Value {
        self.messages.clone()
    }

    fn tools(&self) -> Option<Value> {
        self.request.tools()
    }

    fn tool_choice(&self) -> Option<Value> {
        self.request.tool_choice()
    }

    fn response_format(&self) -> Option<Value> {
        self.request.response_format()
    }

    fn should_add_generation_prompt(&self) -> bool {
        self.request.should_add_generation_prompt()
    }

    fn chat_template_args(&self) -> Option<&HashMap<String, serde_json::Value>> {
        self.request.chat_template_args()
    }

    fn extract_text(&self) -> Option<TextInput> {
        self.request.extract_text()
    }

    fn mm_processor_kwargs(&self) -> Option<&serde_json::Value> {
        self.request.mm_processor_kwargs()
    }
}
