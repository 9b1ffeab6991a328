//! A model's chat template, as its folder brings it, and the rendering of one conversation.

use std::path::Path;

use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Deserialize;

use super::jinja;
use crate::ServiceError;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A compiled template with the special tokens that it may name.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    env: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    unk: Option<String>,
    /// The template prints `arguments` itself when they are a string; else they are decoded before it sees them.
    pub keeps_argument_strings: bool,
    /// The template only takes content as a list of parts.
    pub wants_content_parts: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    unk_token: Option<SpecialToken>,
    chat_template: Option<TemplateField>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Added { content: String },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl SpecialToken {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or the `chat_template` of `tokenizer_config.json`; `None` when the model has neither.
    ///
    /// # Errors
    /// [`ServiceError::Config`] when a file is there and can not be read as a template.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, ServiceError> {
        let wrong =
            |what: &str, why: String| ServiceError::Config(format!("{}: {why}", folder.join(what).display()));
        let config: TokenizerConfig = match std::fs::read(folder.join("tokenizer_config.json")) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| wrong("tokenizer_config.json", e.to_string()))?
            }
            Err(_) => TokenizerConfig::default(),
        };
        let sources = match std::fs::read_to_string(folder.join("chat_template.jinja")) {
            Ok(source) => vec![(DEFAULT.to_string(), source)],
            Err(_) => match config.chat_template {
                None => return Ok(None),
                Some(TemplateField::One(source)) => vec![(DEFAULT.to_string(), source)],
                Some(TemplateField::Named(list)) => list
                    .into_iter()
                    .map(|named| (named.name, named.template))
                    .collect(),
            },
        };
        Self::new(
            sources,
            [config.bos_token, config.eos_token, config.unk_token].map(|t| t.map(SpecialToken::into_text)),
        )
        .map(Some)
        .map_err(|e| wrong("chat template", format!("{e:#}")))
    }

    fn new(
        sources: Vec<(String, String)>,
        [bos, eos, unk]: [Option<String>; 3],
    ) -> Result<Self, minijinja::Error> {
        let mut env = jinja::environment();
        for (name, source) in sources {
            env.add_template_owned(name, jinja::adapt_source(&source))?;
        }
        env.get_template(DEFAULT)?;
        let mut template = Self {
            env,
            bos,
            eos,
            unk,
            keeps_argument_strings: false,
            wants_content_parts: false,
        };
        template.keeps_argument_strings = template.probe_argument_strings();
        template.wants_content_parts = template.probe_content_parts();
        Ok(template)
    }

    /// Renders a conversation up to the point where the assistant speaks. `tools` is a non-empty list or undefined.
    pub fn render(&self, messages: Value, tools: Value) -> Result<String, minijinja::Error> {
        let has_tools = tools.len().is_some_and(|n| n > 0);
        let name = if has_tools && self.env.get_template(TOOL_USE).is_ok() {
            TOOL_USE
        } else {
            DEFAULT
        };
        let tools = if tools.is_undefined() {
            Value::from(())
        } else {
            tools
        };
        let ctx = context! {
            messages => messages,
            tools => tools,
            bos_token => self.bos.as_deref(),
            eos_token => self.eos.as_deref(),
            unk_token => self.unk.as_deref(),
            add_generation_prompt => true,
        };
        self.env.get_template(name)?.render(ctx)
    }

    /// Templates that branch on `arguments is string` print the string as the model wrote it.
    fn probe_argument_strings(&self) -> bool {
        const ARGUMENTS: &str = r#"{"probe": "value"}"#;
        let named = self
            .env
            .templates()
            .any(|(_, t)| t.source().contains("arguments is string"));
        if !named {
            return false;
        }
        let messages = serde_json::json!([
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "probe", "arguments": ARGUMENTS}}]},
            {"role": "tool", "tool_call_id": "c", "content": "r"},
        ]);
        self.render(Value::from(Serde(&messages)), Value::UNDEFINED)
            .is_ok_and(|text| text.contains(ARGUMENTS))
    }

    fn probe_content_parts(&self) -> bool {
        const PROBE: &str = "content probe";
        let shows = |content: serde_json::Value| {
            let messages = serde_json::json!([{"role": "user", "content": content}]);
            self.render(Value::from(Serde(&messages)), Value::UNDEFINED)
                .is_ok_and(|text| text.contains(PROBE))
        };
        !shows(PROBE.into()) && shows(serde_json::json!([{"type": "text", "text": PROBE}]))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    pub const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    pub fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(
            vec![(DEFAULT.into(), source.into())],
            [None, Some("</s>".into()), None],
        )
        .unwrap()
    }

    #[allow(clippy::needless_pass_by_value, reason = "called with literals")]
    fn value(json: serde_json::Value) -> Value {
        Value::from(Serde(&json))
    }

    #[test]
    fn conversation_ends_where_the_assistant_speaks() {
        let text = template(CHATML).render(
            value(json!([{"role": "user", "content": "hi"}])),
            Value::UNDEFINED,
        );
        assert_eq!(
            text.unwrap(),
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn named_tool_template_is_taken_when_there_are_tools() {
        let named = vec![
            ("default".into(), "plain".into()),
            ("tool_use".into(), "tools {{ tools|length }}".into()),
        ];
        let template = ChatTemplate::new(named, [None, None, None]).unwrap();
        assert_eq!(
            template.render(value(json!([])), Value::UNDEFINED).unwrap(),
            "plain"
        );
        assert_eq!(
            template.render(value(json!([])), value(json!([{}]))).unwrap(),
            "tools 1"
        );
    }

    #[test]
    fn special_tokens_are_known_to_the_template() {
        assert_eq!(
            template("{{ eos_token }}")
                .render(value(json!([])), Value::UNDEFINED)
                .unwrap(),
            "</s>"
        );
    }

    #[test]
    fn template_for_parts_only_is_recognised() {
        let source = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}";
        assert!(template(source).wants_content_parts);
        assert!(!template(CHATML).wants_content_parts);
    }
}
