//! The frames of a message and the envelope inside: who sent it, and at which position of the stream.
//!
//! Publisher and sequence stand in the frames and again in the envelope. A message in which they differ is
//! refused, since a feed could not say which stream to count it in.
//!
//! Complexity: O(bytes), without a copy of the payload where the sender wrote it as bytes.

use std::borrow::Cow;

use serde::Deserialize;

use super::Malformed;
use super::wire::Blob;

/// Version byte of the envelope.
pub(super) const VERSION: u8 = 1;
/// Bytes before the envelope: version and length.
pub(super) const PREFIX_BYTES: usize = 5;

/// Payload of a message, with its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Id of the sender.
    pub publisher_id: u64,
    /// Position in the publisher's stream of this topic.
    pub sequence: u64,
    /// Payload, msgpack again.
    pub payload: Cow<'a, [u8]>,
}

/// Envelope as msgpack. Fields that are not named here are skipped.
#[derive(Deserialize)]
struct WireEnvelope<'a> {
    /// Id of the sender, equal to the frame's.
    publisher_id: u64,
    /// Position in the stream, equal to the frame's.
    sequence: u64,
    /// Payload, decoded by its topic later.
    #[serde(borrow)]
    payload: Blob<'a>,
}

/// Decodes the frames of one message.
///
/// # Errors
/// [`Malformed`] when the frames do not have the form that the module describes.
pub fn decode_frames<F: AsRef<[u8]>>(frames: &[F]) -> Result<Envelope<'_>, Malformed> {
    let [_, publisher, sequence, body] = frames else {
        return Err(Malformed::Frames);
    };
    let number = |frame: &[u8]| {
        frame
            .try_into()
            .map(u64::from_be_bytes)
            .map_err(|_| Malformed::Length)
    };
    let publisher = number(publisher.as_ref())?;
    let sequence = number(sequence.as_ref())?;
    let body = body.as_ref();
    if body.len() < PREFIX_BYTES {
        return Err(Malformed::Length);
    }
    if body[0] != VERSION {
        return Err(Malformed::Version);
    }
    let length = u32::from_be_bytes([body[1], body[2], body[3], body[4]]) as usize;
    if length != body.len() - PREFIX_BYTES {
        return Err(Malformed::Length);
    }
    let envelope: WireEnvelope<'_> =
        rmp_serde::from_slice(&body[PREFIX_BYTES..]).map_err(|_| Malformed::Envelope)?;
    if envelope.publisher_id != publisher || envelope.sequence != sequence {
        return Err(Malformed::Envelope);
    }
    Ok(Envelope {
        publisher_id: publisher,
        sequence,
        payload: envelope.payload.0,
    })
}
