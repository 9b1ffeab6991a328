//! The properties of a model card that change how Dynamo builds a prompt.
//!
//! Discovery hands the properties in with the model. A property that a card does not name has Dynamo's own default.
//!
//! The control plane reads them from the model card that workers register. Two properties lead to
//! [`Shape::UNPROVEN`](super::shape::Shape::UNPROVEN): their steps are in no published crate.

use std::path::PathBuf;

use dynamo_renderer::PromptContextMixin;
use serde::Deserialize;

/// Dynamo's name for the parser of GLM tool calls, which implies [`ArgumentsFormat::JsonObject`].
const GLM_PARSER: &str = "glm47";

/// Properties of a model card that change prompts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct CardOptions {
    /// Chat template that the operator put in place of the model's own template.
    pub chat_template_file: Option<PathBuf>,
    /// Values that a template may ask for beside the conversation.
    pub prompt_context: Option<Vec<PromptContextMixin>>,
    /// Whether a request with `tool_choice: "none"` is rendered without its tools.
    pub exclude_tools_when_tool_choice_none: bool,
    /// Form in which a template gets the arguments of a tool call.
    pub tool_call_arguments_format: ArgumentsFormat,
    /// Name of the parser of tool calls.
    pub tool_call_parser: Option<String>,
    /// Name of the parser of reasoning text.
    pub reasoning_parser: Option<String>,
    /// `enabled` or `disabled`: the thinking mode of a request that names none.
    pub default_thinking_mode: Option<String>,
    /// Implementation of the tokeniser.
    pub tokenizer_backend: Backend,
    /// Whether the engine puts the tokeniser's special tokens around the text of a completions request. Dynamo does not.
    pub completions_have_special_tokens: bool,
}

/// Form in which a template gets the arguments of a tool call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ArgumentsFormat {
    /// Decoded by Dynamo before the renderer sees them.
    JsonObject,
    /// As the client sent them, unless the renderer decodes them for the template.
    #[default]
    #[serde(other)]
    JsonString,
}

/// Implementation of a tokeniser. Every implementation gives the same ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Backend {
    /// The `fastokens` crate.
    Fastokens,
    /// The `tokenizers` crate.
    #[default]
    #[serde(other)]
    Default,
}

impl Default for CardOptions {
    fn default() -> Self {
        Self {
            chat_template_file: None,
            prompt_context: None,
            exclude_tools_when_tool_choice_none: true,
            tool_call_arguments_format: ArgumentsFormat::default(),
            tool_call_parser: None,
            reasoning_parser: None,
            default_thinking_mode: None,
            tokenizer_backend: Backend::default(),
            completions_have_special_tokens: false,
        }
    }
}

impl CardOptions {
    /// Whether Dynamo decodes the arguments of tool calls itself. The renderer crates do not contain this step.
    pub fn decodes_arguments(&self) -> bool {
        self.tool_call_arguments_format == ArgumentsFormat::JsonObject
            || self.tool_call_parser.as_deref() == Some(GLM_PARSER)
    }

    /// Whether the model's parsers have thinking rules of their own, which only Dynamo's preprocessor contains.
    pub fn has_own_thinking_rules(&self) -> bool {
        let names = [&self.tool_call_parser, &self.reasoning_parser];
        names.into_iter().flatten().any(|name| {
            let name = name.replace('_', "-");
            name.starts_with("minimax-m3") || name.starts_with("kimi-k")
        })
    }
}
