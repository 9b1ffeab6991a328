//! Special tokens that an engine puts around the text of a completions request.
//!
//! vLLM and `SGLang` encode such a text with the special tokens of the tokeniser, Dynamo without. A missing token at the start would
//! shift every block. The post-processor in `tokenizer.json` names the tokens: a template with the sequence between them, or a list of
//! processors with such a template in it. Complexity: O(bytes of the file), once per model.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

/// Tokens before and after a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    /// Ids before the text, such as a beginning-of-sequence token.
    pub before: Vec<u32>,
    /// Ids after the text.
    pub after: Vec<u32>,
}

/// The part of `tokenizer.json` that names the special tokens.
#[derive(Deserialize)]
struct TokeniserJson {
    #[serde(default)]
    post_processor: Option<Processor>,
}

/// Post-processor of the `tokenizers` crate. Only a template puts tokens around a text; the other
/// kinds change offsets or nothing.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Processor {
    TemplateProcessing {
        single: Vec<Piece>,
        special_tokens: HashMap<String, Special>,
    },
    Sequence {
        processors: Vec<Processor>,
    },
    #[serde(other)]
    Other,
}

/// Part of a template for one sequence.
#[derive(Deserialize)]
enum Piece {
    SpecialToken { id: String },
    Sequence {},
}

/// A special token of a template; it may stand for several ids.
#[derive(Deserialize)]
struct Special {
    ids: Vec<u32>,
}

impl SpecialTokens {
    /// Reads the tokens of the tokeniser in a folder; none where the folder has no `tokenizer.json`.
    ///
    /// # Errors
    /// A text that names the fault of the file.
    pub fn from_folder(folder: &Path) -> Result<Self, String> {
        let file = folder.join("tokenizer.json");
        if !file.exists() {
            return Ok(Self::default());
        }
        let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        Self::from_json(&bytes).map_err(|error| format!("{}: post_processor: {error}", file.display()))
    }

    fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let file: TokeniserJson = serde_json::from_slice(bytes)?;
        Ok(file
            .post_processor
            .as_ref()
            .and_then(Processor::template)
            .unwrap_or_default())
    }

    /// Puts the tokens around the ids of a text.
    pub fn around(&self, text: Vec<u32>) -> Vec<u32> {
        if self.before.is_empty() && self.after.is_empty() {
            return text;
        }
        [self.before.as_slice(), &text, &self.after].concat()
    }
}

impl Processor {
    /// Tokens of the first template; `None` for processors without one.
    fn template(&self) -> Option<SpecialTokens> {
        match self {
            Self::TemplateProcessing {
                single,
                special_tokens,
            } => {
                let mut found = SpecialTokens::default();
                let mut is_after = false;
                for piece in single {
                    match piece {
                        Piece::Sequence {} => is_after = true,
                        Piece::SpecialToken { id } => {
                            let ids = special_tokens.get(id).map(|special| special.ids.as_slice());
                            let side = if is_after {
                                &mut found.after
                            } else {
                                &mut found.before
                            };
                            side.extend_from_slice(ids.unwrap_or_default());
                        }
                    }
                }
                Some(found)
            }
            Self::Sequence { processors } => processors.iter().find_map(Self::template),
            Self::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_around_a_text_are_those_of_the_template() {
        let template = r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
            {"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"</s>","type_id":0}}],"pair":[],
            "special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]},"</s>":{"id":"</s>","ids":[2],"tokens":["</s>"]}}}"#;
        let within = format!(
            r#"{{"type":"Sequence","processors":[{{"type":"ByteLevel","trim_offsets":false}},{template}]}}"#
        );
        for processor in [template.to_owned(), within] {
            let json = format!(r#"{{"model":{{"vocab":{{"a":7}}}},"post_processor":{processor}}}"#);
            let found = SpecialTokens::from_json(json.as_bytes()).unwrap();
            assert_eq!(found.around(vec![7]), [1, 7, 2]);
        }
        for json in [
            "{}",
            r#"{"post_processor":null}"#,
            r#"{"post_processor":{"type":"ByteLevel","trim_offsets":true}}"#,
        ] {
            let found = SpecialTokens::from_json(json.as_bytes()).unwrap();
            assert_eq!(found, SpecialTokens::default());
        }
    }
}
