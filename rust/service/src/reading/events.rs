//! Server-sent events of a relayed answer, cut out of its pieces (WHATWG HTML, section 9.2.6).
//!
//! The relay passes every byte on unchanged; this reader only looks. An event may span several reads, and one read may hold several
//! events, comments and blank lines. O(bytes); at most one event is kept.

use memchr::memchr2;

/// Largest part of an event that is kept, in bytes. A longer event still counts as an event.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// One event with data. Comments, blank lines and events without data are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Value of the `event` field; empty without one.
    pub name: &'a [u8],
    /// Values of the `data` fields, joined by line feeds; at most 1 MiB of them.
    pub data: &'a [u8],
}

/// Reads events from pieces that may end anywhere.
#[derive(Debug, Default)]
pub struct EventReader {
    /// Start of a line whose end has not come; at most [`MAX_EVENT_BYTES`].
    line: Vec<u8>,
    /// `event` field of the open event; at most [`MAX_EVENT_BYTES`].
    name: Vec<u8>,
    /// `data` fields of the open event so far; at most [`MAX_EVENT_BYTES`].
    data: Vec<u8>,
    /// The open event has a `data` field, even an empty one.
    has_data: bool,
    /// The last byte was a carriage return, so that a line feed next belongs to the same line end.
    after_return: bool,
}

impl EventReader {
    /// Reads the next piece and gives each event that it completes to `found`.
    pub fn feed(&mut self, mut piece: &[u8], mut found: impl FnMut(Event<'_>)) {
        if self.after_return && !piece.is_empty() {
            piece = piece.strip_prefix(b"\n").unwrap_or(piece);
            self.after_return = false;
        }
        while let Some(end) = memchr2(b'\n', b'\r', piece) {
            // A line within one piece is read in place; only a line over two pieces is copied.
            if self.line.is_empty() {
                self.take_line(&piece[..end], &mut found);
            } else {
                extend(&mut self.line, &piece[..end]);
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, &mut found);
            }
            let is_return = piece[end] == b'\r';
            piece = &piece[end + 1..];
            if is_return {
                match piece.first() {
                    Some(b'\n') => piece = &piece[1..],
                    Some(_) => {}
                    None => self.after_return = true,
                }
            }
        }
        extend(&mut self.line, piece);
    }

    /// Takes one line without its end. An empty line ends the open event.
    fn take_line(&mut self, line: &[u8], found: &mut impl FnMut(Event<'_>)) {
        if line.is_empty() {
            if self.has_data {
                found(Event {
                    name: &self.name,
                    data: &self.data,
                });
            }
            self.name.clear();
            self.data.clear();
            self.has_data = false;
            return;
        }
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => {
                if self.has_data {
                    extend(&mut self.data, b"\n");
                }
                extend(&mut self.data, value);
                self.has_data = true;
            }
            b"event" => {
                self.name.clear();
                extend(&mut self.name, value);
            }
            // A comment has an empty field name. `id` and `retry` concern a client that connects again.
            _ => {}
        }
    }
}

/// Appends up to the bound of an event.
fn extend(to: &mut Vec<u8>, bytes: &[u8]) {
    let room = MAX_EVENT_BYTES.saturating_sub(to.len());
    to.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut reader = EventReader::default();
        let mut all = Vec::new();
        for piece in pieces {
            reader.feed(piece, |event| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                all.push((text(event.name), text(event.data)));
            });
        }
        all
    }

    fn event(name: &str, data: &str) -> (String, String) {
        (name.to_string(), data.to_string())
    }

    #[test]
    fn comments_blank_lines_and_events_without_data_are_no_events() {
        assert_eq!(events(&[b": ping\n\n\n\nid: 1\n\nevent: a\n\n"]), []);
    }

    #[test]
    fn fields_may_lack_the_space_and_data_may_have_lines() {
        let stream = b"event:error\ndata:{\"a\"\ndata: :1}\nid: 7\n\ndata\n\n";
        assert_eq!(events(&[stream]), [event("error", "{\"a\"\n:1}"), event("", "")]);
    }

    #[test]
    fn every_line_end_of_the_standard_ends_a_line() {
        assert_eq!(
            events(&[b"data: 1\r\n\r\ndata: 2\r\rdata: 3\n\n"]),
            [event("", "1"), event("", "2"), event("", "3")]
        );
        assert_eq!(events(&[b"data: 1\r", b"\n\r", b"\n"]), [event("", "1")]);
        assert_eq!(events(&[b"data: 1\r", b"\n", b"\n"]), [event("", "1")]);
    }

    #[test]
    fn an_event_without_its_end_is_none_yet() {
        assert_eq!(events(&[b"data: {\"error\": 1}\n"]), []);
    }

    #[test]
    fn an_endless_line_takes_bounded_memory_and_still_counts() {
        let mut reader = EventReader::default();
        reader.feed(b"data: ", |_| {});
        let long = vec![b'x'; 1 << 16];
        for _ in 0..64 {
            reader.feed(&long, |_| {});
        }
        let mut seen = 0;
        reader.feed(b"\n\n", |event| seen = event.data.len());
        assert!(seen > 0 && seen <= MAX_EVENT_BYTES, "{seen}");
        assert!(reader.line.capacity() + reader.data.capacity() <= 4 * MAX_EVENT_BYTES);
    }

    proptest! {
        #[test]
        fn no_cut_changes_the_events(cuts in prop::collection::vec(0usize..9, 1..80)) {
            let stream = b": ping\r\n\r\nevent: x\r\ndata: one\r\n\r\ndata:two\ndata: more\n\n:\n\ndata: [DONE]\r\r";
            let whole = events(&[stream]);
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest: &[u8] = stream;
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = left;
            }
            pieces.push(rest);
            prop_assert_eq!(events(&pieces), whole);
        }

        #[test]
        fn garbage_never_panics(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8)) {
            let mut reader = EventReader::default();
            for piece in &pieces {
                reader.feed(piece, |_| {});
            }
        }
    }
}
