//! Reading of an answer while it is relayed: progress, its end, an error inside it, and the usage that the engine reports.
//!
//! A door feeds each piece; [`crate::Answer`] takes the results. O(bytes).
//!
//! Events and bodies are decoded as JSON with types. Text that a model writes, or a tool schema that an answer echoes, therefore
//! cannot pass for a report. Most events of a stream are one token: they are decoded only where a cheap search finds a name that
//! matters. Formats: `OpenAI` chat, completions and responses, Anthropic messages.
//!
//! Memory: at most one event or one body of 1 MiB per answer. A malformed event is passed over,
//! because the relay must not depend on what the reader understands.

mod events;
#[cfg(test)]
mod fuzz;

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::Deserialize;
use serde::de::IgnoredAny;

use self::events::{Event, EventReader};
use crate::request::Usage;

/// Largest body in one piece that is kept for its usage, in bytes. The usage of a larger body stays unknown.
const MAX_BODY_BYTES: usize = 1 << 20;
/// First events of a stream that are always decoded.
const DECODED_EVENTS: u32 = 4;
/// End mark of a stream of `OpenAI`'s API.
const DONE: &[u8] = b"[DONE]";

/// Search for a key that ends with `_tokens`, as every usage report has.
static TOKENS_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"_tokens\""));
/// Search for the key of an error in an event.
static ERROR_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
/// Search for the key of a choice's index.
static INDEX_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"index\":"));

/// Usage that an engine reported for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "the names of the API")]
pub(crate) struct ReportedUsage {
    /// Prompt tokens found in the cache.
    pub cached_tokens: Option<u64>,
    /// Prompt tokens.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, over all its choices.
    pub output_tokens: Option<u64>,
}

/// What one piece of an answer showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "four facts that are independent of one another"
)]
pub struct Progress {
    /// The piece ended an event with data, or the answer is no stream of events.
    pub has_data: bool,
    /// The piece ended an event of the first choice, which is about one token of it.
    pub has_token: bool,
    /// The answer is complete, regardless of later bytes.
    pub is_complete: bool,
    /// The piece ended an error event.
    pub has_failed: bool,
}

/// Reads one answer while it is relayed.
#[derive(Debug)]
pub struct AnswerReading {
    /// `None` for an answer that is no stream of events.
    events: Option<EventReader>,
    /// Body of an answer in one piece, up to its bound.
    body: Vec<u8>,
    /// The body fits its bound so far.
    is_body_whole: bool,
    /// What the pieces so far showed.
    seen: Seen,
}

/// Facts about an answer, summed over its pieces.
#[derive(Debug, Default)]
struct Seen {
    /// Usage by the latest report for each figure; `None` before the first report.
    usage: Option<ReportedUsage>,
    /// Events with data, end marks excluded.
    data_events: u32,
    /// Events of the first choice.
    token_events: u32,
    /// Highest index of a choice.
    last_choice: u32,
}

/// Parts of an event or a body that the gateway reads.
#[derive(Deserialize)]
struct Chunk<'a> {
    /// Usage of a chunk, at the top level.
    #[serde(default)]
    usage: Option<RawUsage>,
    /// Choices of which the chunk has a piece.
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    /// Present in an error event or an error body.
    #[serde(default)]
    error: Option<IgnoredAny>,
    #[serde(default, borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    /// The whole answer in an event of the responses API.
    #[serde(default)]
    response: Option<Nested>,
    /// The message in the first event of an Anthropic stream.
    #[serde(default)]
    message: Option<Nested>,
}

/// A choice of an answer.
#[derive(Deserialize)]
struct Choice {
    /// Position among the choices that the request asked for.
    #[serde(default)]
    index: u32,
}

/// An object inside an event that carries the usage.
#[derive(Deserialize)]
struct Nested {
    #[serde(default)]
    usage: Option<RawUsage>,
}

/// Usage in the words of the APIs. Each API uses some of the names.
#[derive(Deserialize)]
#[allow(clippy::struct_field_names, reason = "the names of the API")]
struct RawUsage {
    prompt_tokens: Option<u64>,
    input_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    output_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens_details: Option<Details>,
    /// Anthropic's name of the cached tokens. Its `input_tokens` do not contain them.
    cache_read_input_tokens: Option<u64>,
}

/// Breakdown of the prompt tokens in `OpenAI`'s APIs.
#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl AnswerReading {
    /// A reading of an answer: a stream of events, or one piece.
    pub fn new(is_events: bool) -> Self {
        Self {
            events: is_events.then(EventReader::default),
            body: Vec::new(),
            is_body_whole: true,
            seen: Seen::default(),
        }
    }

    /// Reads the next piece of the answer.
    ///
    /// Every piece of an answer that is no stream counts as data with a token, so that its first
    /// byte ends the prefill.
    pub fn feed(&mut self, piece: &[u8]) -> Progress {
        let Some(events) = &mut self.events else {
            self.is_body_whole &= self.body.len() + piece.len() <= MAX_BODY_BYTES;
            if self.is_body_whole {
                self.body.extend_from_slice(piece);
            }
            return Progress {
                has_data: true,
                has_token: true,
                ..Progress::default()
            };
        };
        let mut progress = Progress::default();
        let seen = &mut self.seen;
        events.feed(piece, |event| seen.note(event, &mut progress));
        progress
    }

    /// The usage that the answer reported so far.
    ///
    /// The body of an answer in one piece is decoded on the first call and then dropped.
    pub(crate) fn usage(&mut self) -> Option<ReportedUsage> {
        if self.events.is_none() && self.is_body_whole {
            let body = std::mem::take(&mut self.body);
            if let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(&body) {
                self.seen.take(&chunk);
            }
        }
        self.seen.usage
    }

    /// What the engine reported, as the outcome of one choice. Tokens that the engine did not report are those that a stream showed.
    ///
    /// Output tokens are reported over all choices, so a choice gets its share, rounded up.
    pub fn outcome(&mut self) -> Usage {
        let usage = self.usage().unwrap_or_default();
        let choices = self.choices();
        let per_choice = usage
            .output_tokens
            .map(|tokens| tokens.div_ceil(u64::from(choices)));
        Usage {
            cached_tokens: usage.cached_tokens,
            prompt_tokens: usage.prompt_tokens,
            output_tokens: per_choice
                .and_then(|tokens| u32::try_from(tokens).ok())
                .or_else(|| self.tokens_seen()),
        }
    }

    /// Choices of the answer, at least 1.
    pub(crate) fn choices(&self) -> u32 {
        self.seen.last_choice.saturating_add(1)
    }

    /// Estimated tokens of the first choice, by the events of a stream. `None` when the answer is no stream.
    pub(crate) fn tokens_seen(&self) -> Option<u32> {
        self.events.is_some().then_some(self.seen.token_events)
    }
}

impl Seen {
    /// Records one event. An end mark is no token.
    fn note(&mut self, event: Event<'_>, progress: &mut Progress) {
        progress.has_data = true;
        if event.data.trim_ascii() == DONE {
            progress.is_complete = true;
            return;
        }
        self.data_events = self.data_events.saturating_add(1);
        // An error of an earlier event in the same piece says nothing about this event.
        let had_failed = std::mem::take(&mut progress.has_failed);
        let indexes = choice_index(event.data);
        let is_plain = event.name.is_empty()
            && self.data_events > DECODED_EVENTS
            && TOKENS_KEY.find(event.data).is_none()
            && ERROR_KEY.find(event.data).is_none();
        // An event that needs no decoding is one token of the named choice, or of the first choice
        // without a name.
        let mut choice = match indexes {
            Index::One(index) if is_plain => {
                self.last_choice = self.last_choice.max(index);
                index
            }
            Index::None if is_plain => 0,
            _ => self.decode(event, progress),
        };
        if progress.has_failed {
            choice = u32::MAX;
        }
        progress.has_failed |= had_failed;
        if choice == 0 {
            self.token_events = self.token_events.saturating_add(1);
            progress.has_token = true;
        }
    }

    /// Decodes an event. Returns the lowest choice that it names.
    fn decode(&mut self, event: Event<'_>, progress: &mut Progress) -> u32 {
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(event.data) else {
            progress.has_failed |= event.name == b"error";
            return 0;
        };
        let kind = chunk.kind.as_deref().unwrap_or_default();
        let is_error = event.name == b"error" || kind == "error" || kind == "response.failed";
        progress.has_failed |= is_error || chunk.error.is_some();
        progress.is_complete |= matches!(
            kind,
            "message_stop" | "response.completed" | "response.failed" | "response.incomplete"
        );
        self.take(&chunk)
    }

    /// Takes over usage and choices. Returns the lowest choice of the chunk; an event without choices belongs to the first.
    fn take(&mut self, chunk: &Chunk<'_>) -> u32 {
        let nested = [chunk.response.as_ref(), chunk.message.as_ref()];
        let nested = nested
            .into_iter()
            .flatten()
            .filter_map(|part| part.usage.as_ref());
        for usage in chunk.usage.iter().chain(nested) {
            self.usage.get_or_insert_default().take(usage);
        }
        let choices = chunk.choices.as_deref().unwrap_or_default();
        for choice in choices {
            self.last_choice = self.last_choice.max(choice.index);
        }
        choices.iter().map(|choice| choice.index).min().unwrap_or(0)
    }
}

impl ReportedUsage {
    /// Takes over the figures that a later report has.
    fn take(&mut self, raw: &RawUsage) {
        let details = raw
            .prompt_tokens_details
            .as_ref()
            .or(raw.input_tokens_details.as_ref());
        let cached = details
            .and_then(|details| details.cached_tokens)
            .or(raw.cache_read_input_tokens);
        // Anthropic's `input_tokens` leave the cached tokens out, so they are no length of a
        // prompt.
        let is_anthropic = raw.cache_read_input_tokens.is_some();
        let prompt = raw.prompt_tokens.or(raw.input_tokens.filter(|_| !is_anthropic));
        self.cached_tokens = cached.or(self.cached_tokens);
        self.prompt_tokens = prompt.or(self.prompt_tokens);
        self.output_tokens = raw.completion_tokens.or(raw.output_tokens).or(self.output_tokens);
    }
}

/// How many choices an event names, as far as a search without decoding shows.
enum Index {
    /// No index: the event belongs to the first choice.
    None,
    /// One index.
    One(u32),
    /// Several indexes, or no number behind the key: the event has to be decoded.
    Unclear,
}

/// Quotes inside strings are escaped, so the quoted key can only be a real one; tool calls have indexes too.
fn choice_index(data: &[u8]) -> Index {
    let mut found = INDEX_KEY.find_iter(data);
    let (Some(at), None) = (found.next(), found.next()) else {
        return if INDEX_KEY.find(data).is_some() {
            Index::Unclear
        } else {
            Index::None
        };
    };
    let digits = data[at + b"\"index\":".len()..].trim_ascii_start();
    let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&digits[..length]).ok();
    number
        .and_then(|number| number.parse().ok())
        .map_or(Index::Unclear, Index::One)
}

/// Whether the first event with data of a stream is an error, for a decision before any byte goes to the client.
///
/// `None` while no event with data is complete.
pub fn first_event_fails(bytes: &[u8]) -> Option<bool> {
    let mut reader = EventReader::default();
    let mut first = None;
    reader.feed(bytes, |event| {
        if first.is_none() {
            let mut progress = Progress::default();
            Seen::default().note(event, &mut progress);
            first = Some(progress.has_failed);
        }
    });
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(is_events: bool, pieces: &[&str]) -> (AnswerReading, Vec<Progress>) {
        let mut reading = AnswerReading::new(is_events);
        let seen = pieces
            .iter()
            .map(|piece| reading.feed(piece.as_bytes()))
            .collect();
        (reading, seen)
    }

    fn chunk(index: u32, text: &str) -> String {
        format!(
            "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":{text:?}}}}}],\"usage\":null}}\n\n"
        )
    }

    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":12,\
        \"prompt_tokens_details\":{\"audio_tokens\":null,\"cached_tokens\":16}}}\n\n";

    #[test]
    fn usage_of_a_stream_and_of_one_piece_is_read() {
        let expected = Some(ReportedUsage {
            cached_tokens: Some(16),
            prompt_tokens: Some(20),
            output_tokens: Some(12),
        });
        assert_eq!(read(true, &[USAGE]).0.usage(), expected);
        let body = &USAGE["data: ".len()..];
        assert_eq!(read(false, &[&body[..40], &body[40..]]).0.usage(), expected);
    }

    #[test]
    fn text_and_tool_schemas_are_no_report() {
        let echo = r#"{"choices":[{"index":0,"message":{"content":"\"cached_tokens\": 9","tools":{"usage":{"cached_tokens":4}}}}],
            "tools":[{"parameters":{"prompt_tokens_details":{"cached_tokens":99}}}]}"#;
        assert_eq!(read(false, &[echo]).0.usage(), None);
        let stream = format!("data: {}\n\n", echo.replace('\n', " "));
        assert_eq!(read(true, &[&stream]).0.usage(), None);
    }

    #[test]
    fn a_usage_that_is_split_over_reads_is_whole() {
        for cut in 1..USAGE.len() {
            let (mut reading, _) = read(true, &[&USAGE[..cut], &USAGE[cut..]]);
            assert_eq!(
                reading.usage().and_then(|usage| usage.cached_tokens),
                Some(16),
                "cut {cut}"
            );
        }
    }

    #[test]
    fn tokens_are_those_of_one_choice_regardless_of_the_text() {
        let mut stream = String::new();
        for _ in 0..20 {
            for choice in 0..4 {
                stream += &chunk(choice, "say data: {\"index\": 7} data: again\n\ndata: x");
            }
        }
        stream += "data: [DONE]\n\n";
        let (reading, _) = read(true, &[&stream]);
        assert_eq!((reading.tokens_seen(), reading.choices()), (Some(20), 4));
    }

    #[test]
    fn comments_are_no_progress_and_the_end_mark_is_the_end() {
        let (_, seen) = read(
            true,
            &[": ping\n\n", &chunk(0, "a"), &chunk(1, "b"), "data: [DONE]\n\n"],
        );
        assert_eq!(seen[0], Progress::default());
        assert!(seen[1].has_data && seen[1].has_token && !seen[1].is_complete);
        assert!(seen[2].has_data && !seen[2].has_token);
        assert!(seen[3].is_complete && !seen[3].has_token && !seen[3].has_failed);
    }

    #[test]
    fn other_protocols_end_by_their_own_events() {
        let anthropic = [
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":4,\
             \"cache_read_input_tokens\":16,\"output_tokens\":1}}}\n\n",
            "event: ping\ndata: {\"type\": \"ping\"}\n\n",
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":9}}\n\n",
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ];
        let (mut reading, seen) = read(true, &anthropic);
        assert!(seen[3].is_complete);
        let usage = reading.usage().unwrap();
        assert_eq!(
            (usage.cached_tokens, usage.prompt_tokens, usage.output_tokens),
            (Some(16), None, Some(9))
        );
        let responses = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":\
            {\"input_tokens\":20,\"output_tokens\":3,\"input_tokens_details\":{\"cached_tokens\":8}}}}\n\n";
        let (mut reading, seen) = read(true, &[responses]);
        assert!(seen[0].is_complete && !seen[0].has_failed);
        assert_eq!(reading.usage().unwrap().cached_tokens, Some(8));
    }

    #[test]
    fn the_first_event_is_an_error_in_every_spelling() {
        for stream in [
            "data: {\"error\":{\"message\":\"gone\"}}\n\n",
            ": ping\n\ndata: {\"error\":1}\n\n",
            "\n\ndata:{\"error\":{}}\n\n",
            "event:error\ndata: gone\n\n",
            "id: 1\nevent: error\ndata: {}\n\n",
            "data: { \"code\": 500,\ndata: \"error\" : {}}\n\n",
            "data: {\"type\":\"error\"}\r\n\r\n",
        ] {
            assert_eq!(first_event_fails(stream.as_bytes()), Some(true), "{stream:?}");
            for cut in 0..stream.len() - 1 {
                assert_ne!(
                    first_event_fails(&stream.as_bytes()[..cut]),
                    Some(false),
                    "{stream:?} {cut}"
                );
            }
        }
        for stream in [
            "data: {\"error\":null,\"choices\":[]}\n\n",
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\\"error\\\"\"}}]}\n\n",
            "data: [DONE]\n\n",
        ] {
            assert_eq!(first_event_fails(stream.as_bytes()), Some(false), "{stream:?}");
        }
        assert_eq!(first_event_fails(b": ping\n\n"), None);
    }

    #[test]
    fn an_error_event_inside_a_stream_is_a_failure() {
        let (_, seen) = read(true, &[&chunk(0, "a"), "data: {\"error\":{\"code\":500}}\n\n"]);
        assert!(!seen[0].has_failed && seen[1].has_failed && !seen[1].has_token);
    }
}
