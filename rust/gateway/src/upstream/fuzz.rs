//! Fuzz target of the heads and bodies that frontends send.

use bytes::BytesMut;
use hyper::Method;
use wardrop_mutation::{Dice, run};

use super::connection::head_and_framing;
use super::framing::{Decoded, Framing};

fn answers() -> Vec<Vec<u8>> {
    [
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"a\": \"bc\"}",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: x-a, close\r\nx-a: 1\r\n\r\n\
         5\r\nhello\r\n1;a=b\r\n!\r\n0\r\nx-trailer: y\r\n\r\n",
        "HTTP/1.0 503 Service Unavailable\r\ncontent-length: 3, 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n1\r\na\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// The outcome of an answer that arrives in steps: its body, and whether it ended well; `None` for a head that is refused.
fn read(input: &[u8], mut step: impl FnMut(usize) -> usize) -> Option<(u16, Vec<u8>, &'static str)> {
    let (mut buffer, mut rest) = (BytesMut::new(), input);
    let mut more = |buffer: &mut BytesMut| {
        let (piece, left) = rest.split_at(if rest.is_empty() { 0 } else { step(rest.len()) });
        buffer.extend_from_slice(piece);
        rest = left;
        !piece.is_empty()
    };
    let (status, mut framing) = loop {
        match head_and_framing(&mut buffer, &Method::POST) {
            Ok(Some(head)) => break head,
            Ok(None) if more(&mut buffer) => {}
            Ok(None) => return Some((0, Vec::new(), "cut head")),
            Err(_) => return None,
        }
    };
    let mut body = Vec::new();
    loop {
        match framing.decode(&mut buffer) {
            Ok(Decoded::Data(piece)) => {
                assert!(!piece.is_empty(), "an empty piece is no progress");
                body.extend_from_slice(&piece);
            }
            Ok(Decoded::Trailers(_) | Decoded::End) => return Some((status, body, "whole")),
            Ok(Decoded::NeedMore) if more(&mut buffer) => {}
            Ok(Decoded::NeedMore) if matches!(framing, Framing::UntilClose) => {
                return Some((status, body, "closed"));
            }
            Ok(Decoded::NeedMore) => return Some((status, body, "cut body")),
            // How much arrives before the fault depends on the reads.
            Err(_) => return Some((status, Vec::new(), "malformed")),
        }
        assert!(body.len() <= input.len(), "a body is no longer than its bytes");
    }
}

#[test]
fn an_answer_does_not_depend_on_the_reads() {
    run("HTTP answers", &answers(), |input, dice: &mut Dice| {
        let whole = read(input, |left| left);
        let cut = read(input, |left| 1 + dice.below(left.min(30)));
        assert_eq!(whole, cut);
    });
}
