//! A request whose prefill and decode run on different workers, where the workers are the upstreams.
//!
//! ```text
//! vLLM     prefill worker ─▶ answer with the blocks' address ─▶ decode worker ─▶ client
//! SGLang   prefill worker ─┐ meet at the bootstrap server
//!          decode worker  ─┴▶ client
//! ```
//!
//! One call of [`send`] is one attempt with both legs. [`super::forward`] decides about further attempts, from the leg at fault. A dropped
//! attempt closes the connections of both legs, so that both engines cancel.
//!
//! Cost beside the two exchanges: one copy of the body per leg, and one task for a prefill leg of `SGLang`.

mod body;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::{HeaderMap, Method, Uri};
use tokio::task::JoinHandle;
use wardrop_service::{ActiveRequest, Booking, Endpoint, Role, Usage};

use self::body::{Fields, Meeting, PrefillAnswer};
use super::exchange::{Failed, Target};
use super::forward::{Fault, Reply, Tried, attempt};
use super::pins;
use super::shared::{Shared, Thread};
use crate::error::Refusal;
use crate::upstream::{RelayBody, Transfer, write_head};

/// Largest answer of a prefill leg, bytes. The address of a prompt's blocks takes about 8 bytes for each block.
const ANSWER_LIMIT_BYTES: usize = 8 << 20;

/// Most bytes of one prompt's meeting beside its host: port, room, quotes and commas.
const MEETING_BYTES: usize = 32;

/// A request that both legs can be made from.
pub(super) struct SplitRequest<'a> {
    /// Target of the request.
    pub uri: &'a Uri,
    /// Fields of the client, without codings of an answer.
    pub headers: &'a HeaderMap,
    /// Body of the client, in pieces.
    pub pieces: &'a [Bytes],
}

/// The end of one attempt with both legs.
pub(super) struct SplitTried {
    /// The answer of the decode leg, or the failure of a leg.
    pub result: Result<Tried, Failed>,
    /// Role of the leg that the result comes from.
    pub at: Role,
    /// Name of the way that the request took, for the counter.
    pub way: &'static str,
}

impl SplitTried {
    /// A result of one leg of a split.
    fn of(at: Role, result: Result<Tried, Failed>) -> Self {
        Self {
            result,
            at,
            way: "split",
        }
    }
}

/// The rest of a prefill leg that runs beside the answer. Dropping it cancels the leg.
pub struct PrefillTask(JoinHandle<Result<Tried, Failed>>);

impl std::fmt::Debug for PrefillTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PrefillTask").field(&self.0.id()).finish()
    }
}

impl Drop for PrefillTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether the connectors split requests of an endpoint. Other endpoints need a worker for the whole request.
fn can_be_split(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Chat | Endpoint::Completions)
}

/// Places a request on one worker for prefill and decode. Returns whether there is a booking now.
///
/// Aggregated workers come first, then decode workers whose connector lets them run prefills too.
pub(super) fn place_whole(shared: &Shared, request: &mut ActiveRequest) -> bool {
    let is_placed = request.place_whole(Role::Aggregated, |_| true) || {
        let able = shared.upstreams.able_to_run_whole();
        request.place_whole(Role::Decode, |instance| able.contains(&instance))
    };
    if is_placed {
        shared.metrics.splits.with_label_values(&["whole"]).inc();
    }
    is_placed
}

/// Whether a placed request has the form that its endpoint allows. A split of another endpoint is placed whole first.
pub(super) fn suits(shared: &Shared, endpoint: Option<Endpoint>, request: &mut ActiveRequest) -> bool {
    !request.booking().is_some_and(Booking::is_split)
        || endpoint.is_some_and(can_be_split)
        || place_whole(shared, request)
}

/// Sends one request to both workers of its booking, up to the first event of the decode worker.
///
/// A body that is no JSON object goes to the decode worker alone, which answers with its own error.
pub(super) async fn send(
    thread: &Arc<Thread>,
    split: &SplitRequest<'_>,
    request: &mut ActiveRequest,
    transfer: &Transfer,
) -> SplitTried {
    let whole;
    let bytes: &[u8] = match split.pieces {
        [one] => one,
        pieces => {
            whole = pieces.concat();
            &whole
        }
    };
    match (Fields::read(bytes), transfer) {
        (Some(fields), Transfer::Vllm) => one_after_the_other(thread, split, request, &fields).await,
        (Some(fields), Transfer::Sglang { .. }) => {
            let Some(booking) = request.booking() else {
                return SplitTried::of(Role::Decode, Err(Failed::Refused(Refusal::NoWorker)));
            };
            both_at_once(thread, split, booking, &fields, transfer).await
        }
        (None, _) => {
            let target = Target::leg(request.booking(), Role::Decode);
            let head = head_of(split, split.pieces, request.booking(), Role::Decode);
            SplitTried::of(
                Role::Decode,
                attempt(thread, &Method::POST, &head, split.pieces, target).await,
            )
        }
    }
}

/// The two steps of vLLM: the decode leg begins with the answer of the prefill leg.
async fn one_after_the_other(
    thread: &Arc<Thread>,
    split: &SplitRequest<'_>,
    request: &mut ActiveRequest,
    fields: &Fields<'_>,
) -> SplitTried {
    let pieces = [fields.vllm_prefill()];
    let target = Target::leg(request.booking(), Role::Prefill);
    let head = head_of(split, &pieces, request.booking(), Role::Prefill);
    let tried = attempt(thread, &Method::POST, &head, &pieces, target).await;
    let body = match tried {
        Ok(Tried {
            fault: Fault::None,
            reply: Reply::Stream(_, _, body),
        }) => body,
        failed => return SplitTried::of(Role::Prefill, failed),
    };
    let limit_ms = thread.shared.config.upstream.first_byte_timeout_ms;
    let answer = match read_whole(body, limit_ms).await {
        Ok(answer) => answer,
        Err(failed) => return SplitTried::of(Role::Prefill, Err(failed)),
    };
    let Some(answer) = PrefillAnswer::read(&answer) else {
        return SplitTried::of(Role::Prefill, Err(Failed::WorkerBroken));
    };
    if let Some(booking) = request.booking_mut() {
        booking.prefill_leg_ended(Usage {
            cached_tokens: answer.cached_tokens(),
            ..Usage::default()
        });
    }
    let transfer = answer.transfer();
    let pieces = [fields.vllm_decode(transfer)];
    let target = Target::leg(request.booking(), Role::Decode);
    let head = head_of(split, &pieces, request.booking(), Role::Decode);
    let result = attempt(thread, &Method::POST, &head, &pieces, target).await;
    SplitTried {
        result,
        at: Role::Decode,
        way: if transfer.is_some() {
            "split"
        } else {
            "without_transfer"
        },
    }
}

/// The one step of `SGLang`: both legs begin at once and meet at the prefill worker's bootstrap server.
///
/// A decode worker whose prefill worker fails waits for a long time, so a failed prefill leg ends the attempt.
async fn both_at_once(
    thread: &Arc<Thread>,
    split: &SplitRequest<'_>,
    booking: &Booking,
    fields: &Fields<'_>,
    transfer: &Transfer,
) -> SplitTried {
    let (
        Transfer::Sglang {
            bootstrap_host,
            bootstrap_port,
            ranks,
        },
        Some(leg),
    ) = (transfer, booking.leg(Role::Prefill))
    else {
        return SplitTried::of(Role::Prefill, Err(Failed::Refused(Refusal::NoWorker)));
    };
    let limit_bytes = thread.shared.config.limits.body_bytes;
    let meeting_bytes = bootstrap_host.len() + MEETING_BYTES;
    if fields.prompts().unwrap_or(1).saturating_mul(meeting_bytes) > limit_bytes {
        return SplitTried::of(
            Role::Prefill,
            Err(Failed::Refused(Refusal::BodyTooLarge { limit_bytes })),
        );
    }
    let ranks = u64::from((*ranks).max(1));
    let pieces = [fields.sglang(Meeting {
        host: bootstrap_host,
        port: *bootstrap_port,
        room: room(thread, ranks, u64::from(leg.worker.dp_rank)),
        stride: ranks,
    })];
    let prefill_head = head_of(split, &pieces, Some(booking), Role::Prefill);
    let decode_head = head_of(split, &pieces, Some(booking), Role::Decode);
    let mut prefill = PrefillTask(tokio::spawn(prefill_beside(
        thread.clone(),
        prefill_head,
        pieces.to_vec(),
        leg.worker.instance,
    )));
    let target = Target::leg(Some(booking), Role::Decode);
    let mut decode = std::pin::pin!(attempt(thread, &Method::POST, &decode_head, &pieces, target));
    let mut silence = std::pin::pin!(Target::leg(Some(booking), Role::Prefill).went_silent());
    let mut is_prefilled = false;
    loop {
        tokio::select! {
            // A decode worker may fail because its prefill worker did; the cause comes first.
            biased;
            ended = &mut prefill.0, if !is_prefilled => match ended {
                Ok(Ok(Tried { fault: Fault::None, .. })) => is_prefilled = true,
                Ok(result) => return SplitTried::of(Role::Prefill, result),
                Err(_) => return SplitTried::of(Role::Prefill, Err(Failed::WorkerBroken)),
            },
            () = &mut silence, if !is_prefilled => {
                return SplitTried::of(Role::Prefill, Err(Failed::WorkerSilent));
            }
            result = &mut decode => {
                let result = result.map(|mut tried| {
                    if let Reply::Stream(_, _, body) = &mut tried.reply && !is_prefilled {
                        body.accompany(prefill);
                    }
                    tried
                });
                return SplitTried::of(Role::Decode, result);
            }
        }
    }
}

/// The prefill leg of `SGLang`, read to its end. Its tokens are those of the decode leg too, so nothing of it is used.
async fn prefill_beside(
    thread: Arc<Thread>,
    head: BytesMut,
    pieces: Vec<Bytes>,
    instance: u64,
) -> Result<Tried, Failed> {
    let mut tried = attempt(&thread, &Method::POST, &head, &pieces, Target::worker(instance)).await?;
    if let (Reply::Stream(_, _, body), Fault::None) = (&mut tried.reply, tried.fault) {
        while let Some(piece) = std::future::poll_fn(|cx| body.poll_piece(cx)).await {
            piece.map_err(|_| Failed::WorkerBroken)?;
        }
    }
    Ok(tried)
}

/// A number for one transfer: 63 bits, different from those of other requests and routers. Its remainder by the ranks is the prefill rank.
fn room(thread: &Thread, ranks: u64, rank: u64) -> u64 {
    let number = thread.shared.service.next_request_number();
    // The finaliser of SplitMix64 turns a counter into numbers that look random.
    let mut mixed = thread.shared.nonce ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // A free bit below 2⁶³ leaves space for the rooms of a batch.
    let room = ((mixed ^ (mixed >> 31)) >> 1) & !(1 << 62);
    room - room % ranks + rank % ranks
}

/// The head of one leg: the client's fields, the length of the leg's body, and the rank of its worker.
fn head_of(split: &SplitRequest<'_>, pieces: &[Bytes], booking: Option<&Booking>, role: Role) -> BytesMut {
    let mut head = BytesMut::with_capacity(1024);
    let length = pieces.iter().map(Bytes::len).sum();
    write_head(&mut head, &Method::POST, split.uri, split.headers, Some(length));
    if let Some(leg) = booking.and_then(|booking| booking.leg(role)) {
        pins::write_rank(&mut head, leg);
    }
    head
}

/// Reads the answer of a prefill leg to its end.
///
/// # Errors
/// The answer broke off, is too large or too slow.
async fn read_whole(body: RelayBody, limit_ms: u64) -> Result<Bytes, Failed> {
    let read = Limited::new(body, ANSWER_LIMIT_BYTES).collect();
    match tokio::time::timeout(Duration::from_millis(limit_ms), read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the answer of a prefill worker is not whole");
            Err(Failed::WorkerBroken)
        }
        Err(_) => Err(Failed::WorkerSilent),
    }
}
