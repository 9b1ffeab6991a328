//! The server that peers follow: one stream for each follower, from a snapshot on.
//!
//! A stream reads the ring of changes. When the ring overran it, or the follower took nothing for `silence_ms`, the stream ends
//! and the follower begins again. Memory of a stream: one batch of changes, two batches in the outgoing channel, and the snapshot
//! while it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::mpsc::Sender;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::metrics::CutOff;
use super::outbox::Change;
use super::proto::change::Kind;
use super::proto::peers_server::{Peers, PeersServer};
use super::proto::{Change as Message, FollowRequest, FollowResponse, Start};
use super::{Shared, messages};

/// Changes in one message.
const BATCH: usize = 256;
/// Hashes in one message after which it takes no further change: half a mebibyte.
const BATCH_HASHES: usize = 1 << 16;
/// Batches that wait for the connection.
const OUTGOING_BATCHES: usize = 2;
/// Bytes of the only message that a follower sends.
const MAX_REQUEST_BYTES: usize = 4096;
/// Streams of one connection. A follower needs one.
const MAX_STREAMS: u32 = 4;

type Sent = Result<FollowResponse, Status>;

/// Serves followers until `stopped` is true.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, mut stopped: watch::Receiver<bool>) {
    let door = Door {
        followers: Arc::new(AtomicUsize::new(0)),
        shared: shared.clone(),
    };
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(shared.silence()))
        .http2_keepalive_timeout(Some(shared.silence()))
        .add_service(PeersServer::new(door).max_decoding_message_size(MAX_REQUEST_BYTES));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::select! {
        served = server.serve_with_incoming(incoming) => if let Err(error) = served {
            tracing::error!(%error, "the server of peers ended; no router can follow this one");
        },
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

/// The service that followers call.
struct Door {
    shared: Arc<Shared>,
    followers: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Peers for Door {
    type FollowStream = ReceiverStream<Sent>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let shared = self.shared.clone();
        if let Some(token) = &shared.token
            && !token.is_in(request.metadata())
        {
            shared.metrics.count_cut_off(CutOff::Unauthenticated);
            return Err(Status::unauthenticated(
                "this router lets those peers follow that show its secret; give all routers the same peers.token_file",
            ));
        }
        let most = shared.options.max_peers;
        let Some(place) = Place::take(&self.followers, most, &shared) else {
            shared.metrics.count_cut_off(CutOff::TooMany);
            return Err(Status::resource_exhausted(format!(
                "this router has {most} followers already; raise peers.max_peers or take routers out"
            )));
        };
        let router_id: String = request.into_inner().router_id.chars().take(64).collect();
        let (out, messages) = mpsc::channel(OUTGOING_BATCHES);
        tokio::spawn(async move {
            if stream(&shared, &out).await == Some(CutOff::Behind) {
                tracing::warn!(
                    peer = router_id,
                    "a follower fell behind and begins again with a snapshot"
                );
                shared.metrics.count_cut_off(CutOff::Behind);
                // The channel may be full. The end of the stream alone makes the follower call again, too.
                let _ = out.try_send(Err(Status::aborted("the follower fell behind; call again")));
            }
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Sends a snapshot and then every change, until the follower leaves (`None`) or falls behind.
async fn stream(shared: &Shared, out: &Sender<Sent>) -> Option<CutOff> {
    let (open, mut changes) = shared.outbox.subscribe();
    let start = Start {
        incarnation: shared.incarnation,
        router_id: shared.router_id.clone(),
    };
    let first = FollowResponse {
        start: Some(start),
        ..FollowResponse::default()
    };
    let limit = shared.silence();
    if let Some(end) = send(out, first, limit).await {
        return end.0;
    }
    let mut batch = Batch::default();
    for booking in open {
        batch.add(messages::open(&booking));
        if batch.is_full()
            && let Some(end) = send(out, std::mem::take(&mut batch).message(), limit).await
        {
            return end.0;
        }
    }
    if let Some(end) = send(out, batch.message(), limit).await {
        return end.0;
    }
    let mut next = FollowResponse {
        is_snapshot_end: true,
        ..FollowResponse::default()
    };
    loop {
        if let Some(end) = send(out, next, limit).await {
            return end.0;
        }
        next = tokio::select! {
            batch = next_batch(&mut changes) => match batch {
                Some(batch) => batch,
                None => return Some(CutOff::Behind),
            },
            () = tokio::time::sleep(shared.heartbeat()) => FollowResponse::default(),
            () = out.closed() => return None,
        };
    }
}

/// The next changes in one message: all that are there, at least one. `None` when the ring overran this reader.
async fn next_batch(changes: &mut Receiver<Change>) -> Option<FollowResponse> {
    let mut batch = Batch::default();
    match changes.recv().await {
        Ok(change) => batch.add(messages::change(&change)),
        Err(RecvError::Lagged(_) | RecvError::Closed) => return None,
    }
    while !batch.is_full() {
        match changes.try_recv() {
            Ok(change) => batch.add(messages::change(&change)),
            Err(TryRecvError::Empty) => break,
            // The receiver would go on behind the gap.
            Err(TryRecvError::Lagged(_) | TryRecvError::Closed) => return None,
        }
    }
    Some(batch.message())
}

/// Changes of the next message.
#[derive(Default)]
struct Batch {
    changes: Vec<Message>,
    hashes: usize,
}

impl Batch {
    fn add(&mut self, change: Message) {
        if let Some(Kind::Booked(booked)) = &change.kind {
            self.hashes += booked.local_hashes.len();
        }
        self.changes.push(change);
    }

    fn is_full(&self) -> bool {
        self.changes.len() >= BATCH || self.hashes >= BATCH_HASHES
    }

    fn message(self) -> FollowResponse {
        FollowResponse {
            changes: self.changes,
            ..FollowResponse::default()
        }
    }
}

/// The end of a stream.
struct End(Option<CutOff>);

/// Hands a message to the connection. Returns the end of the stream when the follower left or took nothing for `limit`.
async fn send(out: &Sender<Sent>, message: FollowResponse, limit: Duration) -> Option<End> {
    match tokio::time::timeout(limit, out.send(Ok(message))).await {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some(End(None)),
        Err(_) => Some(End(Some(CutOff::Behind))),
    }
}

/// The place of one follower among the most that there may be.
struct Place {
    followers: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

impl Place {
    fn take(followers: &Arc<AtomicUsize>, most: usize, shared: &Arc<Shared>) -> Option<Self> {
        let taken = followers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < most).then_some(taken + 1)
        });
        taken.ok()?;
        shared.metrics.followers.inc();
        Some(Self {
            followers: followers.clone(),
            shared: shared.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.followers.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.followers.dec();
    }
}
