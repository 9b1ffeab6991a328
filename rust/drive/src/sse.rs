//! Server-sent events, as far as a load driver needs them: the arrival of tokens, and the facts in the last chunks.
//!
//! Linear in the bytes; one `serde_json` pass per event over borrowed text. Source of the shapes: `OpenAI`'s streaming
//! reference, and Dynamo's `nvext` with `extra_fields: ["worker_id"]`.

use serde::Deserialize;

/// Longest line, bytes. A longer line ends the exchange; chunks of a token stream are far below it.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Facts that a response reported, gathered over its events.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    /// Worker that decoded; it also prefilled when `prefill_worker_id` is `None`.
    pub worker_id: Option<u64>,
    /// Worker that prefilled.
    pub prefill_worker_id: Option<u64>,
    /// `usage.prompt_tokens`.
    pub prompt_tokens: Option<u32>,
    /// `usage.completion_tokens`.
    pub completion_tokens: Option<u32>,
    /// `usage.prompt_tokens_details.cached_tokens`.
    pub cached_tokens: Option<u32>,
    /// Whether an event or body carried an `error`.
    pub failed: bool,
    /// Whether the stream ended with `data: [DONE]`.
    pub done: bool,
}

/// Splits a byte stream into events and keeps the facts.
#[derive(Debug, Default)]
pub struct Scanner {
    partial: Vec<u8>,
    /// Facts so far.
    pub facts: Facts,
}

/// The stream holds an event that is not JSON, or a line above the limit.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable;

impl Scanner {
    /// Reads the next bytes; returns the number of token chunks that ended in them.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<u32, Unreadable> {
        let mut tokens = 0;
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            tokens += if self.partial.is_empty() {
                self.facts.line(line)?
            } else {
                self.partial.extend_from_slice(line);
                let whole = std::mem::take(&mut self.partial);
                self.facts.line(&whole)?
            };
            bytes = rest;
        }
        if self.partial.len() + bytes.len() > MAX_LINE_BYTES {
            return Err(Unreadable);
        }
        self.partial.extend_from_slice(bytes);
        Ok(tokens)
    }
}

impl Facts {
    fn line(&mut self, line: &[u8]) -> Result<u32, Unreadable> {
        if line.starts_with(b"event: error") {
            self.failed = true;
        }
        let Some(data) = line.strip_prefix(b"data:") else {
            return Ok(0);
        };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(0);
        }
        self.chunk(data)
    }

    /// Reads one chunk, or a whole body without streaming; returns 1 when it carries a token, else 0.
    pub fn chunk(&mut self, json: &[u8]) -> Result<u32, Unreadable> {
        let chunk: Chunk = serde_json::from_slice(json).map_err(|_| Unreadable)?;
        self.failed |= chunk.error.is_some();
        if let Some(usage) = chunk.usage {
            self.prompt_tokens = usage.prompt_tokens.or(self.prompt_tokens);
            self.completion_tokens = usage.completion_tokens.or(self.completion_tokens);
            self.cached_tokens = usage
                .prompt_tokens_details
                .and_then(|d| d.cached_tokens)
                .or(self.cached_tokens);
        }
        if let Some(worker) = chunk.nvext.and_then(|n| n.worker_id) {
            self.worker_id = worker
                .decode_worker_id
                .or(worker.prefill_worker_id)
                .or(self.worker_id);
            self.prefill_worker_id = worker.prefill_worker_id.or(self.prefill_worker_id);
        }
        Ok(u32::from(chunk.choices.iter().any(Choice::carries_token)))
    }
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default, borrow)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
    nvext: Option<Nvext>,
    #[serde(borrow)]
    error: Option<&'a serde_json::value::RawValue>,
}

/// A choice of a chunk. Its text stays escaped and borrowed, since only its emptiness matters.
#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    text: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    finish_reason: Option<&'a serde_json::value::RawValue>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    role: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow)]
    content: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a serde_json::value::RawValue>,
}

impl Choice<'_> {
    /// Whether the chunk stands for a generated token.
    ///
    /// An empty text in mid-stream counts: the engine generated half of a character or a special token. A closing chunk
    /// without text does not count, and neither does an opening chunk that only names the role.
    fn carries_token(&self) -> bool {
        let filled = |v: Option<&serde_json::value::RawValue>| {
            v.is_some_and(|v| !matches!(v.get(), "\"\"" | "null" | "[]"))
        };
        let said = match &self.delta {
            Some(delta) => [delta.content, delta.reasoning_content, delta.tool_calls]
                .into_iter()
                .any(filled),
            None => filled(self.text),
        };
        let opening = self.delta.as_ref().is_some_and(|delta| filled(delta.role));
        said || !(filled(self.finish_reason) || opening)
    }
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct Nvext {
    worker_id: Option<WorkerIds>,
}

#[derive(Deserialize)]
struct WorkerIds {
    prefill_worker_id: Option<u64>,
    decode_worker_id: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"text\":\" ab\",\"index\":0}],\"nvext\":{\"worker_id\":{\"prefill_worker_id\":7,\"decode_worker_id\":9}}}\n\n",
        "data: {\"choices\":[{\"text\":\"\",\"index\":0}]}\n\n",
        ": keep-alive\n\n",
        "data: {\"choices\":[{\"text\":\"\",\"index\":0,\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":17,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\n",
        "data: [DONE]\n\n"
    );

    #[test]
    fn the_same_facts_come_out_however_the_bytes_are_cut() {
        for cut in 1..STREAM.len() {
            let mut scanner = Scanner::default();
            let tokens: u32 = STREAM
                .as_bytes()
                .chunks(cut)
                .map(|part| scanner.feed(part).expect("stream is sound"))
                .sum();
            assert_eq!(tokens, 2, "cut {cut}");
            let expected = Facts {
                worker_id: Some(9),
                prefill_worker_id: Some(7),
                prompt_tokens: Some(17),
                completion_tokens: Some(2),
                cached_tokens: Some(16),
                failed: false,
                done: true,
            };
            assert_eq!(scanner.facts, expected, "cut {cut}");
        }
    }

    #[test]
    fn a_role_chunk_and_a_closing_chunk_are_no_tokens() {
        let mut facts = Facts::default();
        let role = br#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
        let word = br#"{"choices":[{"delta":{"content":"x"},"finish_reason":null}]}"#;
        let call = br#"{"choices":[{"delta":{"tool_calls":[{"index":0}]},"finish_reason":null}]}"#;
        let last = br#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
        let count = [&role[..], word, call, last].map(|chunk| facts.chunk(chunk).expect("chunk is sound"));
        assert_eq!(count, [0, 1, 1, 0]);
    }

    #[test]
    fn an_error_event_and_an_endless_line_are_seen() {
        let mut scanner = Scanner::default();
        scanner
            .feed(b"data: {\"error\":{\"message\":\"no\"}}\n")
            .expect("an error event is readable");
        assert!(scanner.facts.failed);
        assert_eq!(
            Scanner::default().feed(&vec![b'x'; MAX_LINE_BYTES + 1]),
            Err(Unreadable)
        );
        assert_eq!(Scanner::default().feed(b"data: {half\n"), Err(Unreadable));
    }
}
