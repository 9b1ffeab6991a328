//! Fuzz targets of the bytes that frontends send inside an answer: events, usage, and errors.

use wardrop_mutation::{Dice, run};

use super::events::EventReader;
use super::{AnswerReading, Progress, first_event_fails};

fn streams() -> Vec<Vec<u8>> {
    [
        ": ping\r\n\r\nevent: x\r\ndata: one\r\n\r\ndata:two\ndata: more\n\n:\n\ndata: [DONE]\r\r",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":\
         {\"prompt_tokens\":20,\"completion_tokens\":12,\"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\ndata: [DONE]\n\n",
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":4,\
         \"cache_read_input_tokens\":16,\"output_tokens\":1}}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":20,\
         \"output_tokens\":3,\"input_tokens_details\":{\"cached_tokens\":8}}}}\n\n",
        "event: error\ndata: {\"error\":{\"message\":\"gone\",\"code\":500}}\n\n",
        "{\"choices\":[{\"index\":0,\"text\":\"\\ud83d\\ude00\"}],\"usage\":{\"prompt_tokens\":3,\"total_tokens\":5}}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn pieces<'a>(mut input: &'a [u8], dice: &mut Dice) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while !input.is_empty() {
        let (piece, rest) = input.split_at(1 + dice.below(input.len().min(40)));
        pieces.push(piece);
        input = rest;
    }
    pieces
}

fn join(progress: &mut Progress, next: Progress) {
    progress.has_data |= next.has_data;
    progress.has_token |= next.has_token;
    progress.is_complete |= next.is_complete;
    progress.has_failed |= next.has_failed;
}

#[test]
fn events_do_not_depend_on_the_reads() {
    let list = |pieces: &[&[u8]]| {
        let (mut reader, mut events) = (EventReader::default(), Vec::new());
        for piece in pieces {
            reader.feed(piece, |event| {
                events.push((event.name.to_vec(), event.data.to_vec()));
            });
        }
        events
    };
    run("server-sent events", &streams(), |input, dice| {
        assert_eq!(list(&pieces(input, dice)), list(&[input]));
    });
}

#[test]
fn usage_and_progress_do_not_depend_on_the_reads() {
    let read = |is_events: bool, pieces: &[&[u8]]| {
        let (mut reading, mut progress) = (AnswerReading::new(is_events), Progress::default());
        for piece in pieces {
            join(&mut progress, reading.feed(piece));
        }
        (
            progress,
            reading.usage(),
            reading.choices(),
            reading.tokens_seen(),
        )
    };
    run("usage of answers", &streams(), |input, dice| {
        let is_events = dice.below(4) > 0;
        let cut = pieces(input, dice);
        if cut.len() > 1 {
            assert_eq!(read(is_events, &cut), read(is_events, &[input]));
        }
        // A judgement on a part of the stream is the judgement on the whole stream.
        let first = first_event_fails(&input[..dice.below(input.len() + 1)]);
        assert!(first.is_none() || first == first_event_fails(input));
    });
}
