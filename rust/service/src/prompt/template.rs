//! The chat template of a model, found and rendered as Dynamo finds and renders it.
//!
//! The renderer is the crate `dynamo-renderer` of the same version as in Dynamo 1.6.1. This module only chooses the files, in
//! Dynamo's order: a native format of the model family, else the operator's template, `chat_template.jinja`,
//! `chat_template.json`, and at last the field of `tokenizer_config.json`.
//!
//! Cost: files are read and compiled once per model; rendering is O(bytes of the conversation). A
//! fault of a file is a text for the log and makes the model's prompts unknown.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use dynamo_renderer::{
    ChatTemplate, ContextMixins, OAIPromptFormatter, PromptFormatter, RenderedPrompt, deepseek_formatter_for,
    kimi_k3_formatter_for,
};
use serde_json::Value;

use super::Abstention;
use super::card::CardOptions;
use super::chat::{ChatRequest, MarkedRequest};

/// Renders conversations of one model.
pub(crate) struct Renderer {
    /// Renderer of the crate, for a template or a native format.
    formatter: Arc<dyn OAIPromptFormatter>,
}

impl Renderer {
    /// Finds the template of a model in its folder; `None` when the model has none.
    ///
    /// # Errors
    /// A text that names the file and the fault.
    pub fn from_folder(folder: &Path, name: &str, card: &CardOptions) -> Result<Option<Self>, String> {
        let formatter = match native_formatter(folder, name, card) {
            Some(formatter) => formatter,
            None => match template_of(folder, card)? {
                Some(template) => compile(template, card)?,
                None => return Ok(None),
            },
        };
        let PromptFormatter::OAI(formatter) = formatter;
        Ok(Some(Self { formatter }))
    }

    /// Text of a conversation.
    ///
    /// # Errors
    /// [`Abstention::TemplateError`] where the template refuses the conversation.
    pub fn render(&self, request: &ChatRequest) -> Result<RenderedPrompt, Abstention> {
        if !request.continues_last_message() {
            return self
                .formatter
                .render_prompt(request)
                .map_err(|_| Abstention::TemplateError);
        }
        let rendered = self
            .formatter
            .render_prompt(&MarkedRequest::new(request)?)
            .map_err(|_| Abstention::TemplateError)?;
        if rendered.segments().is_some() {
            // Only Dynamo's preprocessor cuts inside the segments of a native format; no published crate contains that step.
            return Err(Abstention::TemplateError);
        }
        MarkedRequest::cut(rendered.as_str()).map(|text| RenderedPrompt::text(text.to_owned()))
    }
}

/// The format of a model family that is written in Rust, because the family publishes no template.
fn native_formatter(folder: &Path, name: &str, card: &CardOptions) -> Option<PromptFormatter> {
    let config = read(&folder.join("config.json")).ok().flatten();
    let config: Option<Value> = config.and_then(|text| serde_json::from_str(&text).ok());
    let family = config.as_ref().and_then(|config| config["model_type"].as_str());
    // Without a family in the configuration, the renderer chooses by the model's name.
    let family = family.map(str::to_lowercase).filter(|family| !family.is_empty());
    let name = name.to_lowercase();
    kimi_k3_formatter_for(&family, &name, card.exclude_tools_when_tool_choice_none)
        .or_else(|| deepseek_formatter_for(&family, &name))
}

/// Compiles a template with the values that the model card lets it ask for.
///
/// # Errors
/// A text that names the file and the fault of its template.
fn compile(config: Value, card: &CardOptions) -> Result<PromptFormatter, String> {
    let config: ChatTemplate =
        serde_json::from_value(config).map_err(|error| format!("tokenizer_config.json: {error}"))?;
    let context = card.prompt_context.as_deref();
    let context = context.map_or_else(ContextMixins::default, ContextMixins::new);
    PromptFormatter::from_parts(config, context, card.exclude_tools_when_tool_choice_none)
        .map_err(|error| format!("chat template: {error:#}"))
}

/// `tokenizer_config.json` with the template that is in force as its `chat_template`.
fn template_of(folder: &Path, card: &CardOptions) -> Result<Option<Value>, String> {
    let place = folder.join("tokenizer_config.json");
    let mut config: Value = match read(&place)? {
        Some(text) => parse(&place, &text)?,
        // Dynamo reads no other template file of a model without this file.
        None => return Ok(None),
    };
    if !config.is_object() {
        return Err(format!("{}: got no JSON object, expected one", place.display()));
    }
    if let Some(template) = separate_template(folder, card)? {
        config["chat_template"] = template;
    }
    Ok((!config["chat_template"].is_null()).then_some(config))
}

/// The template in a file of its own. A template of the operator that is missing is an error: another template gives other prompts.
fn separate_template(folder: &Path, card: &CardOptions) -> Result<Option<Value>, String> {
    if let Some(place) = &card.chat_template_file {
        let missing = || {
            format!(
                "{}: the model card names this chat template, and the file does not exist here; copy it to this machine",
                place.display()
            )
        };
        let text = read(place)?.ok_or_else(missing)?;
        return separate(place, text).map(Some);
    }
    for place in ["chat_template.jinja", "chat_template.json"].map(|name| folder.join(name)) {
        let Some(text) = read(&place)? else { continue };
        return separate(&place, text).map(Some);
    }
    Ok(None)
}

/// The template in a file: the whole text, or the field `chat_template` of a JSON file.
///
/// # Errors
/// A JSON file that cannot be read or lacks the field.
fn separate(place: &Path, text: String) -> Result<Value, String> {
    if place.extension().is_none_or(|extension| extension != "json") {
        return Ok(Value::String(text));
    }
    let mut wrapper = parse(place, &text)?;
    match wrapper.get_mut("chat_template") {
        Some(template) => Ok(template.take()),
        None => Err(format!(
            "{}: got no field chat_template, expected the template in it",
            place.display()
        )),
    }
}

/// JSON of a file.
///
/// # Errors
/// A text that names the file and the place of the fault.
fn parse(place: &Path, text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{}: {error}", place.display()))
}

/// Text of a file; `None` when the file does not exist.
fn read(place: &Path) -> Result<Option<String>, String> {
    match std::fs::read_to_string(place) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", place.display())),
    }
}
