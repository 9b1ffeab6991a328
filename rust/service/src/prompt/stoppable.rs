//! Tokenisers that stop inside a text once the caller has left, see [`CancelFlag`].
//!
//! They stand below the prefix cache, which hands them a text in pieces that end at special tokens. The ids are those of the wrapped
//! tokeniser by construction: [`StoppableHuggingFace`] runs the stages of `tokenizers::Tokenizer::encode` one after the other, and
//! [`Stoppable`] passes whole pieces on.
//!
//! A stage that is one call for a whole piece runs to its end: the normaliser, and the first split of the pre-tokeniser. A model without
//! a pre-tokeniser has a whole piece as one word. Cost: that of the wrapped tokeniser, and one atomic load per word.

use std::sync::Arc;

use dynamo_tokenizers::traits::{DecodeResult, Decoder, Encoder, Tokenizer};
use dynamo_tokenizers::{EncodeSegment, Encoding, Error, Result};
use tokenizers::{Model, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use crate::cancel::CancelFlag;

/// Text of the error after a stop. No caller is left to read it.
const LEFT: &str = "the caller has left";

/// A Hugging Face tokeniser that stops between two words, or between two stages.
pub(super) struct StoppableHuggingFace {
    /// The tokeniser, without truncation and padding.
    tokenizer: tokenizers::Tokenizer,
}

/// Another tokeniser, which stops between two pieces of a text.
pub(super) struct Stoppable {
    /// The tokeniser.
    tokenizer: Arc<dyn Tokenizer>,
}

impl StoppableHuggingFace {
    /// Wraps a tokeniser. It must have neither truncation nor padding, which would need the whole text.
    pub fn new(tokenizer: tokenizers::Tokenizer) -> Self {
        Self { tokenizer }
    }

    /// The stages of `tokenizers::Tokenizer::encode` without special tokens.
    ///
    /// # Errors
    /// Those of the stages, and [`LEFT`].
    fn encode_in_stages(&self, text: &str) -> tokenizers::Result<tokenizers::Encoding> {
        let go_on = || {
            if CancelFlag::has_caller_left() {
                Err(LEFT)
            } else {
                Ok(())
            }
        };
        let tokenizer = &self.tokenizer;
        let normalizer = tokenizer.get_normalizer();
        let mut words = tokenizer
            .get_added_vocabulary()
            .extract_and_normalize(normalizer, text);
        go_on()?;
        match tokenizer.get_pre_tokenizer() {
            None => {}
            Some(PreTokenizerWrapper::Sequence(stages)) => {
                for stage in stages.as_ref() {
                    stage.pre_tokenize(&mut words)?;
                    go_on()?;
                }
            }
            Some(stage) => stage.pre_tokenize(&mut words)?,
        }
        let model = tokenizer.get_model();
        words.tokenize(|word| {
            go_on()?;
            model.tokenize(word.get())
        })?;
        // Only ids are read, so no offset is computed.
        let encoding = PreTokenizedString::into_encoding(words, None, 0, OffsetType::None)?;
        tokenizer.post_process(encoding, None, false)
    }
}

impl Encoder for StoppableHuggingFace {
    fn encode(&self, input: &str) -> Result<Encoding> {
        let encoding = self.encode_in_stages(input);
        encoding
            .map(|encoding| Encoding::Hf(Box::new(encoding)))
            .map_err(|error| Error::msg(format!("Error tokenizing input: {error}")))
    }

    fn encode_batch(&self, inputs: &[&str]) -> Result<Vec<Encoding>> {
        inputs.iter().map(|input| self.encode(input)).collect()
    }
}

impl Decoder for StoppableHuggingFace {
    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<DecodeResult> {
        let text = self.tokenizer.decode(ids, skip_special_tokens);
        text.map(DecodeResult::from)
            .map_err(|error| Error::msg(format!("Error de-tokenizing input: {error}")))
    }
}

impl Tokenizer for StoppableHuggingFace {
    /// The ids are without special tokens around them, so a text may be cut at special tokens.
    fn validate_prefix_cache(&self) -> Result<()> {
        Ok(())
    }
}

impl Stoppable {
    /// Wraps a tokeniser.
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Self {
        Self { tokenizer }
    }

    /// Whether the next piece may be tokenised.
    ///
    /// # Errors
    /// [`LEFT`].
    fn go_on() -> Result<()> {
        if CancelFlag::has_caller_left() {
            return Err(Error::msg(LEFT));
        }
        Ok(())
    }
}

impl Encoder for Stoppable {
    fn encode(&self, input: &str) -> Result<Encoding> {
        Self::go_on()?;
        self.tokenizer.encode(input)
    }

    fn encode_batch(&self, inputs: &[&str]) -> Result<Vec<Encoding>> {
        Self::go_on()?;
        self.tokenizer.encode_batch(inputs)
    }

    fn encode_segments(&self, segments: &[EncodeSegment<'_>]) -> Result<Encoding> {
        Self::go_on()?;
        self.tokenizer.encode_segments(segments)
    }
}

impl Decoder for Stoppable {
    fn has_unstable_suffix(&self, ids: &[u32], skip_special_tokens: bool) -> bool {
        self.tokenizer.has_unstable_suffix(ids, skip_special_tokens)
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<DecodeResult> {
        self.tokenizer.decode(ids, skip_special_tokens)
    }
}

impl Tokenizer for Stoppable {
    fn validate_prefix_cache(&self) -> Result<()> {
        self.tokenizer.validate_prefix_cache()
    }

    fn vocab_size(&self) -> Option<usize> {
        self.tokenizer.vocab_size()
    }

    fn token_to_id(&self, token: &str) -> Result<Option<u32>> {
        self.tokenizer.token_to_id(token)
    }

    fn special_token_ids(&self) -> Result<Vec<u32>> {
        self.tokenizer.special_token_ids()
    }

    fn num_special_tokens_added(&self) -> Result<usize> {
        self.tokenizer.num_special_tokens_added()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use dynamo_tokenizers::{CachedTokenizer, HuggingFaceTokenizer, SharedTokenizerCache};
    use proptest::prelude::*;

    use super::*;

    /// Byte-level BPE with a few merges, as GPT-like models have it. `{pre}` stands for the pre-tokeniser.
    fn tokenizer(pre: &str, post: &str) -> tokenizers::Tokenizer {
        let mut vocab = serde_json::Map::new();
        let alphabet: std::collections::BTreeSet<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
                .into_iter()
                .collect();
        for letter in alphabet {
            vocab.insert(letter.to_string(), vocab.len().into());
        }
        for word in ["ab", "abc", "Ġa", "Ġab", "12"] {
            vocab.insert(word.into(), vocab.len().into());
        }
        let special = |id: usize, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                               "normalized": false, "special": true})
        };
        let first = vocab.len();
        let file = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(first, "<s>"), special(first + 1, "<|end|>")],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": serde_json::from_str::<serde_json::Value>(pre).unwrap(),
            "post_processor": serde_json::from_str::<serde_json::Value>(post).unwrap(),
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocab, "merges": ["a b", "ab c", "Ġ a", "Ġa b", "1 2"]},
        });
        serde_json::from_value(file).unwrap()
    }

    const BYTE_LEVEL: &str =
        r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
    const SEQUENCE: &str = r#"{"type":"Sequence","pretokenizers":[
        {"type":"Split","pattern":{"Regex":"\\p{N}{1,3}|[^\\s\\p{N}]+|\\s+"},"behavior":"Isolated","invert":false},
        {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]}"#;
    const TEMPLATE: &str = r#"{"type":"TemplateProcessing",
        "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
        "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
        "special_tokens":{"<s>":{"id":"<s>","ids":[261],"tokens":["<s>"]}}}"#;

    fn kinds() -> Vec<tokenizers::Tokenizer> {
        let mut kinds = Vec::new();
        for pre in [BYTE_LEVEL, SEQUENCE, "null"] {
            kinds.extend([BYTE_LEVEL, TEMPLATE, "null"].map(|post| tokenizer(pre, post)));
        }
        kinds
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn ids_are_those_of_the_library(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just("<s>".to_owned()), Just("<|end|>".to_owned()), Just(" abc ab 12 1 2\n".to_owned()),
                    ".{0,12}", "[abc 12\\n\\t]{0,24}", "[éé漢字🙂\u{0301}]{0,6}",
                ],
                0..12,
            )
        ) {
            let text = pieces.concat();
            for tokenizer in kinds() {
                let theirs = HuggingFaceTokenizer::from_tokenizer(tokenizer.clone()).encode(&text).unwrap();
                let ours = StoppableHuggingFace::new(tokenizer.clone());
                let plain = ours.encode(&text).unwrap();
                prop_assert_eq!(plain.token_ids(), theirs.token_ids());
                let marks = vec!["<s>".to_owned(), "<|end|>".to_owned()];
                let cache = SharedTokenizerCache::new(1 << 16);
                let cached = CachedTokenizer::new_with_cache(Arc::new(ours), marks, cache, b"1").unwrap();
                for _ in 0..2 {
                    let joined = cached.encode(&text).unwrap();
                    prop_assert_eq!(joined.token_ids(), theirs.token_ids());
                }
            }
        }
    }

    #[test]
    fn text_of_a_caller_that_left_is_not_tokenised() {
        let flag = CancelFlag::default();
        let tokenizer = StoppableHuggingFace::new(tokenizer(BYTE_LEVEL, "null"));
        flag.run(|| assert!(tokenizer.encode("abc ab").is_ok()));
        flag.set();
        flag.run(|| assert!(tokenizer.encode("abc ab").is_err()));
        assert!(tokenizer.encode("abc ab").is_ok(), "the flag ends with its work");
    }

    /// Counts pieces, and has the caller leave during the second one.
    struct LeavesInside {
        pieces: AtomicUsize,
        flag: CancelFlag,
    }

    impl Encoder for LeavesInside {
        fn encode(&self, _: &str) -> Result<Encoding> {
            if self.pieces.fetch_add(1, Ordering::Relaxed) == 1 {
                self.flag.set();
            }
            Ok(Encoding::Sp(vec![1]))
        }

        fn encode_batch(&self, inputs: &[&str]) -> Result<Vec<Encoding>> {
            inputs.iter().map(|input| self.encode(input)).collect()
        }
    }

    impl Decoder for LeavesInside {
        fn decode(&self, _: &[u32], _: bool) -> Result<DecodeResult> {
            Ok(DecodeResult::from(String::new()))
        }
    }

    impl Tokenizer for LeavesInside {
        fn validate_prefix_cache(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn tokeniser_without_stages_stops_at_the_next_special_token() {
        let flag = CancelFlag::default();
        let inner = Arc::new(LeavesInside {
            pieces: AtomicUsize::new(0),
            flag: flag.clone(),
        });
        let stoppable = Arc::new(Stoppable::new(inner.clone()));
        let cache = SharedTokenizerCache::new(1 << 16);
        let marks = vec!["<s>".to_owned()];
        let cached = CachedTokenizer::new_with_cache(stoppable, marks, cache, b"1").unwrap();
        flag.run(|| assert!(cached.encode("a<s>b<s>c<s>d<s>e").is_err()));
        assert_eq!(inner.pieces.load(Ordering::Relaxed), 2);
    }
}
