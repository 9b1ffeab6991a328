//! One client connection: its requests one after the other, until the client leaves or the gateway stops.
//!
//! One task per connection, on the serving thread that got it. Dropping the task cancels the
//! request, the exchange with the upstream, and with it the generation in Dynamo.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::accept::ConnectionPlace;
use super::client_io::{ClientIo, ClientWaits, LINGER_BYTES, client_end};
use super::client_state::{ClientState, Phase};
use super::handler::handle;
use super::linger::linger;
use super::server::ServerPhase;
use super::shared::Thread;

/// Factor between the limit of hyper and the configured header limit. hyper answers an oversized head without a body, so its
/// limit is larger and the gateway's own check answers first.
const HEAD_ROOM_FACTOR: usize = 4;
/// Smallest buffer of hyper for a head, in bytes.
const MIN_HEAD_BYTES: usize = 16 << 10;
/// Most header fields of a request. hyper answers 431 beyond it.
const MAX_HEADERS: usize = 256;

/// Serves a connection to its end.
///
/// The phase of the server ends the connection: draining lets the current answer end, stopping cuts
/// it.
pub async fn serve_connection(
    thread: Arc<Thread>,
    stream: TcpStream,
    _place: ConnectionPlace,
    mut phase: watch::Receiver<ServerPhase>,
) {
    // Tokens are small writes; with Nagle's algorithm each would wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let limits = &thread.shared.config.limits;
    let head_bytes = limits
        .header_bytes
        .saturating_mul(HEAD_ROOM_FACTOR)
        .max(MIN_HEAD_BYTES);
    let stream = Arc::new(stream);
    let state = ClientState::new(thread.idle.clone());
    let waits = ClientWaits::new(limits, thread.shared.metrics.clone());
    let io = ClientIo::new(stream.clone(), state.clone(), waits);
    let service = service_fn(|request: Request<Incoming>| {
        let (thread, guard) = (thread.clone(), state.serve());
        async move { Ok::<_, Infallible>(handle(thread, request, guard).await) }
    });
    let connection = http1::Builder::new()
        .max_header_size(head_bytes)
        .max_headers(MAX_HEADERS)
        .max_buf_size(head_bytes)
        .writev(true)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let mut draining = *phase.borrow() != ServerPhase::Run;
    if draining {
        connection.as_mut().graceful_shutdown();
    }
    let mut has_ended = false;
    loop {
        let is_left = has_ended;
        tokio::select! {
            // The connection comes first: an answer that is ready still goes to a client that closed its sending side.
            biased;
            _ = connection.as_mut() => break,
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow() == ServerPhase::Stop {
                    break;
                }
                if !draining {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
            () = state.evicted() => {
                if state.phase() == Phase::Idle {
                    // Nothing is under way, so nothing is lost, and the place is free at once.
                    break;
                }
                connection.as_mut().graceful_shutdown();
            }
            // A client that closes its sending side counts as gone. TCP cannot distinguish it from
            // a client that left, and RFC 9112 asks for no more.
            () = client_end(&stream), if !has_ended => has_ended = true,
            // The client left. Dropping the connection cancels its request and all work upstream.
            () = std::future::poll_fn(|_| {
                if state.phase() == Phase::Request {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            }), if is_left => break,
        }
    }
    if state.is_refused() {
        linger(&stream, LINGER_BYTES).await;
    }
}
