//! Prompts that a client sends as token ids, read up to the context of the model.
//!
//! Ids of a client cost memory before their number is known, so reading ends at the model's
//! context.

use std::fmt;

use serde::de::{DeserializeSeed, Error, SeqAccess, Visitor};

use super::Abstention;

/// A `prompt` field that is an array.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PromptList {
    /// Ids of one prompt.
    Tokens(Vec<u32>),
    /// The only text of the list.
    Text(String),
}

impl PromptList {
    /// Reads `[ids]`, `[[ids]]` or `["text"]`. O(ids), and no more than `limit_tokens` of them.
    ///
    /// # Errors
    /// [`Abstention::Batch`] for several prompts, and the errors of [`token_ids`].
    pub fn read(raw: &str, limit_tokens: Option<u64>) -> Result<Self, Abstention> {
        let inner = raw.strip_prefix('[').ok_or(Abstention::Unparsable)?.trim_start();
        if inner.starts_with('"') {
            let mut texts: Vec<String> = serde_json::from_str(raw).map_err(|_| Abstention::Unparsable)?;
            return if texts.len() == 1 {
                Ok(Self::Text(texts.remove(0)))
            } else {
                Err(Abstention::Batch)
            };
        }
        if inner.starts_with('[') {
            let lists: Vec<&serde_json::value::RawValue> =
                serde_json::from_str(raw).map_err(|_| Abstention::Unparsable)?;
            return match lists.as_slice() {
                [only] => token_ids(only.get(), limit_tokens).map(Self::Tokens),
                _ => Err(Abstention::Batch),
            };
        }
        token_ids(raw, limit_tokens).map(Self::Tokens)
    }
}

/// Reads an array of token ids. Reading ends at the first id beyond `limit_tokens`.
///
/// # Errors
/// [`Abstention::TooLong`] beyond the limit, [`Abstention::Unparsable`] for anything but an array of ids.
pub(crate) fn token_ids(raw: &str, limit_tokens: Option<u64>) -> Result<Vec<u32>, Abstention> {
    let mut is_too_long = false;
    let seed = LimitedIds {
        limit: limit_tokens.unwrap_or(u64::from(u32::MAX)),
        is_too_long: &mut is_too_long,
    };
    let mut deserializer = serde_json::Deserializer::from_str(raw);
    let ids = seed
        .deserialize(&mut deserializer)
        .and_then(|ids| deserializer.end().map(|()| ids));
    ids.map_err(|_| {
        if is_too_long {
            Abstention::TooLong
        } else {
            Abstention::Unparsable
        }
    })
}

/// A reader of an array of ids that ends at a limit.
struct LimitedIds<'a> {
    /// Most ids that are read.
    limit: u64,
    /// Set when an id beyond the limit came, so that this error differs from a malformed list.
    is_too_long: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for LimitedIds<'_> {
    type Value = Vec<u32>;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u32>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for LimitedIds<'_> {
    type Value = Vec<u32>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of token ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u32>, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = list.next_element()? {
            if ids.len() as u64 >= self.limit {
                *self.is_too_long = true;
                return Err(A::Error::custom("more ids than the context takes"));
            }
            ids.push(id);
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_prompt_is_read_in_each_form() {
        assert_eq!(
            PromptList::read("[1, 2]", None),
            Ok(PromptList::Tokens(vec![1, 2]))
        );
        assert_eq!(
            PromptList::read("[[1,2]]", None),
            Ok(PromptList::Tokens(vec![1, 2]))
        );
        assert_eq!(
            PromptList::read(r#"["a"]"#, None),
            Ok(PromptList::Text("a".into()))
        );
    }

    #[test]
    fn several_prompts_and_odd_ids_abstain() {
        for (raw, reason) in [
            ("[[1],[2]]", Abstention::Batch),
            (r#"["a","b"]"#, Abstention::Batch),
            ("[-1]", Abstention::Unparsable),
            ("[4294967296]", Abstention::Unparsable),
            ("[1,[2]]", Abstention::Unparsable),
        ] {
            assert_eq!(PromptList::read(raw, None), Err(reason), "{raw}");
        }
    }

    #[test]
    fn reading_ends_at_the_context() {
        assert_eq!(token_ids("[1,2,3]", Some(3)), Ok(vec![1, 2, 3]));
        // Reading ends at the limit, so the text behind it needs not be JSON.
        assert_eq!(token_ids("[1,2,3,4,oops", Some(3)), Err(Abstention::TooLong));
        assert_eq!(PromptList::read("[[1,2,3,4]]", Some(3)), Err(Abstention::TooLong));
    }
}
