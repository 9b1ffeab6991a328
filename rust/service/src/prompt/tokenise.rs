//! A model's tokeniser and template together, and which shapes of prompt they were proven for.

use std::ops::{BitOr, BitOrAssign};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use minijinja::Value;
use minijinja::value::Serde;
use tokenizers::Tokenizer;

use super::Abstention;
use super::chat::Conversation;
use super::segments::Segments;
use super::template::ChatTemplate;
use crate::ServiceError;

/// Parts of a prompt whose rendering has to equal Dynamo's before our ids replace its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape(u8);

impl Shape {
    /// Text of the completions endpoint: the tokeniser alone.
    pub const TEXT: Self = Self(1);
    /// System, user and assistant messages with text.
    pub const PLAIN: Self = Self(2);
    /// Content as a list of text parts.
    pub const PARTS: Self = Self(4);
    /// Tool definitions.
    pub const TOOLS: Self = Self(8);
    /// Tool calls and their results in the conversation.
    pub const TOOL_CALLS: Self = Self(16);
    /// Something that no sample covers.
    pub const UNPROVEN: Self = Self(128);

    /// The shapes that are checked, with their names.
    pub const CHECKED: [(Self, &'static str); 5] = [
        (Self::TEXT, "text"),
        (Self::PLAIN, "plain"),
        (Self::PARTS, "parts"),
        (Self::TOOLS, "tools"),
        (Self::TOOL_CALLS, "tool_calls"),
    ];

    /// All of `other` is in `self`.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Shape {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Shape {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Text to token ids for one model.
pub(crate) struct Prompter {
    tokenizer: Tokenizer,
    segments: Option<Segments>,
    template: Option<ChatTemplate>,
    proven: AtomicU8,
}

impl Prompter {
    /// Reads `tokenizer.json` and the chat template of a model folder.
    ///
    /// # Errors
    /// [`ServiceError::Config`] with the file and the reason.
    pub fn from_folder(folder: &Path, cache_bytes: usize) -> Result<Self, ServiceError> {
        let file = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&file)
            .map_err(|e| ServiceError::Config(format!("{}: {e}", file.display())))?;
        // A file may carry the truncation and padding of its training run; a prompt is never cut here.
        let _ = tokenizer.with_truncation(None);
        tokenizer.with_padding(None);
        Ok(Self {
            segments: Segments::of(&tokenizer, cache_bytes),
            tokenizer,
            template: ChatTemplate::from_folder(folder)?,
            proven: AtomicU8::new(0),
        })
    }

    /// The chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Ids of a text, without special tokens around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Abstention> {
        if let Some(segments) = &self.segments {
            return segments
                .encode(&self.tokenizer, text)
                .map_err(|_| Abstention::TokeniserError);
        }
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|_| Abstention::TokeniserError)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of a conversation.
    pub fn render(&self, conversation: &Conversation) -> Result<String, Abstention> {
        let template = self.template.as_ref().ok_or(Abstention::NoTokeniser)?;
        let tools = if conversation.tools.is_empty() {
            Value::UNDEFINED
        } else {
            Value::from(Serde(&conversation.tools))
        };
        template
            .render(Value::from(Serde(&conversation.messages)), tools)
            .map_err(|_| Abstention::TemplateError)
    }

    /// Whether ids of this shape may replace Dynamo's.
    pub fn is_proven(&self, shape: Shape) -> bool {
        Shape(self.proven.load(Ordering::Relaxed)).contains(shape)
    }

    /// Replaces the set of proven shapes.
    pub fn set_proven(&self, shapes: Shape) {
        self.proven.store(shapes.0, Ordering::Relaxed);
    }
}
