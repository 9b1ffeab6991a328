//! Tokens of a prompt, segment by segment, so that a conversation's old turns are tokenised once.
//!
//! A tokeniser cuts its input at special tokens before anything else, so the text between two of them can be encoded by itself. That
//! is checked when a tokeniser is loaded: where it does not hold, prompts are encoded whole. Segments are looked up by their full
//! text, never by a hash alone: a collision would hand one tenant's tokens to another.

use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use parking_lot::Mutex;
use tokenizers::Tokenizer;

/// Shorter segments cost less to encode than to look up.
const SHORTEST_CACHED_BYTES: usize = 48;
/// Bookkeeping of one entry beside text and ids, roughly.
const ENTRY_BYTES: usize = 96;

/// Where a tokeniser may be cut, and the segments it saw lately.
pub(crate) struct Segments {
    marks: AhoCorasick,
    mark_ids: Vec<u32>,
    cache: Mutex<Generations>,
    limit_bytes: usize,
}

/// Two generations: a full young one becomes the old one, and what nobody asked for in between is gone.
#[derive(Default)]
struct Generations {
    young: HashMap<Box<str>, Arc<[u32]>>,
    old: HashMap<Box<str>, Arc<[u32]>>,
    young_bytes: usize,
}

/// A tokeniser that failed.
pub(crate) struct EncodeError;

impl Segments {
    /// `None` when the tokeniser has special tokens that reach beyond themselves, or none, or fails the check.
    pub fn of(tokenizer: &Tokenizer, limit_bytes: usize) -> Option<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        let is_plain = |token: &tokenizers::AddedToken| {
            !token.normalized
                && !token.single_word
                && !token.lstrip
                && !token.rstrip
                && !token.content.is_empty()
        };
        if limit_bytes == 0 || added.is_empty() || !added.values().all(is_plain) {
            return None;
        }
        let mut marks: Vec<(String, u32)> = added
            .iter()
            .map(|(id, token)| (token.content.clone(), *id))
            .collect();
        marks.sort();
        let patterns = marks.iter().map(|(content, _)| content.as_str());
        let segments = Self {
            marks: AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(patterns)
                .ok()?,
            mark_ids: marks.iter().map(|(_, id)| *id).collect(),
            cache: Mutex::default(),
            limit_bytes,
        };
        segments
            .agrees(tokenizer, &marks[0].0, &marks[marks.len() - 1].0)
            .then_some(segments)
    }

    /// Encodes `text`, taking known segments from the cache.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut from = 0;
        for mark in self.marks.find_iter(text) {
            self.append(tokenizer, &text[from..mark.start()], &mut ids)?;
            ids.push(self.mark_ids[mark.pattern().as_usize()]);
            from = mark.end();
        }
        self.append(tokenizer, &text[from..], &mut ids)?;
        Ok(ids)
    }

    fn append(&self, tokenizer: &Tokenizer, segment: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        if segment.is_empty() {
            return Ok(());
        }
        if segment.len() < SHORTEST_CACHED_BYTES {
            ids.extend_from_slice(whole(tokenizer, segment)?.get_ids());
            return Ok(());
        }
        let known = self.cache.lock().get(segment);
        if let Some(known) = known {
            ids.extend_from_slice(&known);
            return Ok(());
        }
        let encoding = whole(tokenizer, segment)?;
        ids.extend_from_slice(encoding.get_ids());
        let bytes = segment.len() + encoding.len() * 4 + ENTRY_BYTES;
        if bytes <= self.limit_bytes / 8 {
            let entry = (Box::from(segment), Arc::from(encoding.get_ids()));
            self.cache.lock().put(entry, bytes, self.limit_bytes / 2);
        }
        Ok(())
    }

    fn agrees(&self, tokenizer: &Tokenizer, first: &str, last: &str) -> bool {
        const PARTS: [&str; 6] = [
            "user\nHello, world",
            " leading and trailing ",
            "Grüße, 世界! 🚀\n\n\tTabs  and  spaces",
            "\n",
            "1234567890 3.5e-7 don't can't",
            "def f(x):\n    return {'a': [x ** 2]}\n",
        ];
        let mut texts: Vec<String> = PARTS.iter().map(ToString::to_string).collect();
        texts.push(PARTS.join(first));
        texts.push(format!("{first}{last}{}{last}{first}", PARTS.join(last)));
        texts.iter().all(|text| {
            let whole = whole(tokenizer, text).map(|encoding| encoding.get_ids().to_vec());
            // Twice: encoded, and from the cache.
            (0..2).all(|_| matches!((&whole, self.encode(tokenizer, text)), (Ok(a), Ok(b)) if *a == b))
        })
    }
}

fn whole(tokenizer: &Tokenizer, text: &str) -> Result<tokenizers::Encoding, EncodeError> {
    tokenizer.encode_fast(text, false).map_err(|_| EncodeError)
}

impl Generations {
    fn get(&mut self, segment: &str) -> Option<Arc<[u32]>> {
        if let Some(ids) = self.young.get(segment) {
            return Some(ids.clone());
        }
        let (text, ids) = self.old.remove_entry(segment)?;
        self.young_bytes += text.len() + ids.len() * 4 + ENTRY_BYTES;
        self.young.insert(text, ids.clone());
        Some(ids)
    }

    fn put(&mut self, (text, ids): (Box<str>, Arc<[u32]>), bytes: usize, generation_bytes: usize) {
        if self.young_bytes + bytes > generation_bytes {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.young.insert(text, ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small byte-level tokeniser with two special tokens.
    fn tokenizer() -> Tokenizer {
        let alphabet: Vec<char> = {
            let mut bytes: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
                .into_iter()
                .collect();
            bytes.sort_unstable();
            bytes
        };
        let mut vocab = serde_json::Map::new();
        for (id, letter) in alphabet.iter().enumerate() {
            vocab.insert(letter.to_string(), id.into());
        }
        for (id, pair) in ["he", "ll", "Ġh"].iter().enumerate() {
            vocab.insert((*pair).to_string(), (alphabet.len() + id).into());
        }
        let special = |id: usize, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(1000, "<|im_start|>"), special(1001, "<|im_end|>")],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                "merges": [["h", "e"], ["l", "l"], ["Ġ", "h"]]},
        });
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    fn encoded(segments: &Segments, tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        segments.encode(tokenizer, text).unwrap_or_default()
    }

    #[test]
    fn cache_stays_within_its_bound() {
        let (tokenizer, limit) = (tokenizer(), 20_000);
        let segments = Segments::of(&tokenizer, limit).unwrap();
        for turn in 0..200 {
            encoded(
                &segments,
                &tokenizer,
                &format!("<|im_start|>{}", format!("turn {turn} ").repeat(20)),
            );
        }
        let cache = segments.cache.lock();
        let bytes = |map: &HashMap<Box<str>, Arc<[u32]>>| -> usize {
            map.iter()
                .map(|(text, ids)| text.len() + ids.len() * 4 + ENTRY_BYTES)
                .sum()
        };
        assert!(bytes(&cache.young) + bytes(&cache.old) <= limit);
        assert!(!cache.young.is_empty());
    }

    #[test]
    fn tokeniser_without_special_tokens_is_not_cut() {
        let mut tokenizer = tokenizer();
        tokenizer
            .add_tokens([tokenizers::AddedToken::from("word", false).lstrip(true)])
            .unwrap();
        assert!(Segments::of(&tokenizer, 1 << 20).is_none());
        assert!(Segments::of(&tokenizer, 0).is_none());
    }

    proptest! {
        #[test]
        fn segments_give_the_same_ids_as_the_whole(parts in prop::collection::vec(prop_oneof![
            Just("<|im_start|>".to_string()), Just("<|im_end|>".to_string()), Just("<|im_".to_string()), ".{0,80}",
            Just("hello hell he said what was said before and said it again".to_string()),
        ], 0..12)) {
            let tokenizer = tokenizer();
            let segments = Segments::of(&tokenizer, 1 << 20).unwrap();
            let text = parts.concat();
            let expected = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
            prop_assert_eq!(&encoded(&segments, &tokenizer, &text), &expected);
            prop_assert_eq!(&encoded(&segments, &tokenizer, &text), &expected);
        }
    }
}
