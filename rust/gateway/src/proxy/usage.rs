//! Finds the reported usage, such as `"cached_tokens": n`, in a relayed answer without decoding it.
//!
//! Quotes inside generated text are escaped, so the quoted key can only be the real one.

use std::sync::LazyLock;

use memchr::memmem::Finder;

const CACHED_KEY: &[u8] = b"\"cached_tokens\":";
const PROMPT_KEYS: [&[u8]; 2] = [b"\"prompt_tokens\":", b"\"input_tokens\":"];
const OUTPUT_KEYS: [&[u8]; 2] = [b"\"completion_tokens\":", b"\"output_tokens\":"];
/// Upper bound of the length of a key with its number. A window of twice this size over a border between pieces misses none.
const WINDOW_BYTES: usize = 64;

/// Start of an event of a stream.
const EVENT: &[u8] = b"data: ";

static EVENTS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(EVENT));
static CACHED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(CACHED_KEY));

/// Usage that an engine reported for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "the names of the API")]
pub struct ReportedUsage {
    /// Prompt tokens found in the cache.
    pub cached_tokens: u64,
    /// Prompt tokens, when they stood in the same piece.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, when they stood in the same piece.
    pub output_tokens: Option<u64>,
}

/// The scan of one answer.
#[derive(Debug)]
pub struct UsageScan {
    tail: [u8; WINDOW_BYTES],
    tail_len: usize,
    found: Option<ReportedUsage>,
    events: u32,
}

impl Default for UsageScan {
    fn default() -> Self {
        Self {
            tail: [0; WINDOW_BYTES],
            tail_len: 0,
            found: None,
            events: 0,
        }
    }
}

impl UsageScan {
    /// Scans the next piece of the answer.
    pub fn feed(&mut self, piece: &[u8]) {
        if self.tail_len > 0 {
            let mut window = [0u8; 2 * WINDOW_BYTES];
            let ahead = piece.len().min(WINDOW_BYTES);
            window[..self.tail_len].copy_from_slice(&self.tail[..self.tail_len]);
            window[self.tail_len..self.tail_len + ahead].copy_from_slice(&piece[..ahead]);
            self.look(&window[..self.tail_len + ahead]);
        }
        self.look(piece);
        if piece.len() >= WINDOW_BYTES {
            self.tail.copy_from_slice(&piece[piece.len() - WINDOW_BYTES..]);
            self.tail_len = WINDOW_BYTES;
        } else {
            let keep = self.tail_len.min(WINDOW_BYTES - piece.len());
            self.tail.copy_within(self.tail_len - keep..self.tail_len, 0);
            self.tail[keep..keep + piece.len()].copy_from_slice(piece);
            self.tail_len = keep + piece.len();
        }
    }

    /// Counts the events of a stream, for clients that did not ask for usage. An event mark across two pieces is missed.
    pub fn count_events(&mut self, piece: &[u8]) {
        let found = EVENTS.find_iter(piece).count();
        self.events = self
            .events
            .saturating_add(u32::try_from(found).unwrap_or(u32::MAX));
    }

    /// Estimated tokens of the answer: events of the stream without its end mark. `None` when the answer was no stream.
    pub fn tokens_seen(&self) -> Option<u32> {
        self.events.checked_sub(1)
    }

    /// The last usage that was found, if any.
    pub fn found(&self) -> Option<ReportedUsage> {
        self.found
    }

    fn look(&mut self, bytes: &[u8]) {
        let Some(at) = CACHED.find(bytes) else { return };
        let Some(cached_tokens) = number(&bytes[at + CACHED_KEY.len()..]) else {
            return;
        };
        let known = self.found;
        self.found = Some(ReportedUsage {
            cached_tokens,
            prompt_tokens: beside(bytes, at, PROMPT_KEYS).or(known.and_then(|usage| usage.prompt_tokens)),
            output_tokens: beside(bytes, at, OUTPUT_KEYS).or(known.and_then(|usage| usage.output_tokens)),
        });
    }
}

/// The number of the key nearest to `at`: before it in the older endpoints, after it in the responses API.
fn beside(bytes: &[u8], at: usize, keys: [&[u8]; 2]) -> Option<u64> {
    keys.iter().find_map(|key| {
        let found = memchr::memmem::rfind(&bytes[..at], key)
            .or_else(|| memchr::memmem::find(&bytes[at..], key).map(|behind| at + behind))?;
        number(&bytes[found + key.len()..])
    })
}

/// A number that ends inside `bytes`.
fn number(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.trim_ascii_start();
    let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits == 0 || digits == bytes.len() || digits > 18 {
        return None;
    }
    std::str::from_utf8(&bytes[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANSWER: &[u8] = br#"data: {"choices":[{"delta":{"content":"say \"cached_tokens\": 9 "}}],"usage":{"prompt_tokens":20,"completion_tokens":3,"total_tokens":23,"prompt_tokens_details":{"audio_tokens":null,"cached_tokens":16}}}

data: [DONE]"#;

    #[test]
    fn reported_tokens_are_found_and_quoted_text_is_not() {
        let mut scan = UsageScan::default();
        scan.feed(ANSWER);
        assert_eq!(
            scan.found(),
            Some(ReportedUsage {
                cached_tokens: 16,
                prompt_tokens: Some(20),
                output_tokens: Some(3),
            })
        );
    }

    #[test]
    fn answer_without_usage_gives_nothing() {
        let mut scan = UsageScan::default();
        scan.feed(br#"{"usage":{"prompt_tokens":20}}"#);
        assert_eq!(scan.found(), None);
    }

    proptest! {
        #[test]
        fn no_split_hides_the_number(cuts in prop::collection::vec(1usize..60, 1..200)) {
            let mut scan = UsageScan::default();
            let mut rest = ANSWER;
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                scan.feed(piece);
                rest = left;
            }
            scan.feed(rest);
            prop_assert_eq!(scan.found().map(|usage| usage.cached_tokens), Some(16));
        }

        #[test]
        fn garbage_never_panics(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8)) {
            let mut scan = UsageScan::default();
            for piece in &pieces {
                scan.feed(piece);
            }
        }
    }

    #[test]
    fn tokens_of_a_stream_without_usage_are_counted_by_its_events() {
        let mut scan = UsageScan::default();
        assert_eq!(scan.tokens_seen(), None);
        scan.count_events(b"data: {\"a\":1}\n\ndata: {\"a\":2}\n\n");
        scan.count_events(b"data: [DONE]\n\n");
        assert_eq!(scan.tokens_seen(), Some(2));
    }
}
