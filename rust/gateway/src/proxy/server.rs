//! Serving threads. Each runs its own event loop and keeps a connection from accept to close, so that no request changes threads.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use wardrop_core::control::Routing;

use super::handler::handle;
use super::tenants::Tenants;
use crate::GatewayError;
use crate::config::GatewayConfig;
use crate::fleet::Registry;
use crate::metrics::{Metrics, THREAD_PREFIX};
use crate::outcomes::Outcomes;
use crate::receipts::Receipts;
use crate::shadows::Shadows;
use crate::upstream::{ConnectionPool, UpstreamSet};

/// hyper answers a head above its own limit without a body, so it gets room and ours is met first.
const HEAD_ROOM_FACTOR: usize = 4;
const MIN_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 256;
/// Accepted connections that wait for their serving thread.
const INBOX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const PRUNE_EVERY: Duration = Duration::from_secs(10);
/// Threads that tokenise long prompts, per serving thread.
const BLOCKING_THREADS: usize = 2;
/// A client that keeps a connection without using it.
const IDLE_CLIENT: Duration = Duration::from_secs(300);

/// What all serving threads share.
pub struct Shared {
    /// Configuration, fixed for the life of the gateway.
    pub config: GatewayConfig,
    /// What of the routing may change while the gateway runs.
    pub routing: Mutex<Routing>,
    /// Models and workers.
    pub registry: Registry,
    /// Metrics.
    pub metrics: Metrics,
    /// Upstreams.
    pub upstreams: Arc<UpstreamSet>,
    /// What came of requests since a controller asked last.
    pub outcomes: Outcomes,
    /// Shadow fleets, when they are on.
    pub shadows: Option<Shadows>,
    /// Who pays.
    pub tenants: Tenants,
    /// Why requests went where they went, when that is kept.
    pub receipts: Receipts,
    /// Origin of the routers' time.
    pub clock: Instant,
    /// Makes request ids of this process unlike those of another.
    pub nonce: u64,
    /// Ids of bookings and of requests that came without one.
    pub next_request: AtomicU64,
    /// Requests in flight.
    pub in_flight: AtomicUsize,
    /// Prompts that are prepared off the serving threads now.
    pub heavy: AtomicUsize,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// No new requests.
    pub draining: AtomicBool,
}

impl Shared {
    /// Seconds on the routers' clock.
    pub fn now_s(&self) -> f64 {
        self.clock.elapsed().as_secs_f64()
    }
}

/// One serving thread's own things.
pub struct Thread {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// This thread's upstream connections.
    pub connections: Arc<ConnectionPool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Run,
    Drain,
    Stop,
}

/// The running server.
pub struct Server {
    address: SocketAddr,
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Binds and starts serving.
    ///
    /// # Errors
    /// [`GatewayError::Io`] when the address can not be bound or a thread not started.
    pub fn start(shared: &Arc<Shared>) -> Result<Self, GatewayError> {
        let listen = shared.config.listen.clone();
        let io = |source| GatewayError::Io {
            what: format!("listening on {listen}"),
            source,
        };
        let listener = bind(&listen).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let (phase, watched) = watch::channel(Phase::Run);
        let mut threads = Vec::new();
        let mut inboxes = Vec::new();
        for index in 0..shared.config.worker_threads {
            let (sender, inbox) = mpsc::channel(INBOX);
            inboxes.push(sender);
            let work = serve_thread(shared.clone(), index, inbox, watched.clone());
            threads.push(spawn(&format!("http-{index}"), work)?);
        }
        threads.push(spawn(
            "accept",
            accept(listener, inboxes, shared.clone(), watched),
        )?);
        Ok(Self {
            address,
            phase,
            threads,
        })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting and cuts what is still open.
    pub fn stop(self) {
        let _ = self.phase.send(Phase::Stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }

    /// Stops accepting; open connections end after their current answer.
    pub fn drain(&self, shared: &Shared) {
        shared.draining.store(true, Ordering::Relaxed);
        let _ = self.phase.send(Phase::Drain);
    }
}

fn bind(listen: &str) -> std::io::Result<std::net::TcpListener> {
    use std::net::ToSocketAddrs;
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in listen.to_socket_addrs()? {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A thread with an event loop of its own.
pub(crate) fn spawn<F>(name: &str, work: F) -> Result<JoinHandle<()>, GatewayError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let name = format!("{THREAD_PREFIX}{name}");
    let io = |source| GatewayError::Io {
        what: format!("starting thread {name}"),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name(format!("{THREAD_PREFIX}tokens"))
        .build()
        .map_err(io)?;
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            runtime.block_on(work);
            // Tokenising may be under way; nobody waits for it.
            runtime.shutdown_background();
        })
        .map_err(io)
}

/// Hands out connections in turn; in a drain none are taken any more.
async fn accept(
    listener: std::net::TcpListener,
    inboxes: Vec<mpsc::Sender<std::net::TcpStream>>,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<Phase>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the listener can not be used");
            return;
        }
    };
    let mut next = 0usize;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.changed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if shared.connections.load(Ordering::Relaxed) >= shared.config.limits.connections {
            shared
                .metrics
                .refusals
                .with_label_values(&["too_many_connections"])
                .inc();
            continue;
        }
        // A socket belongs to the event loop that it was registered with; it moves bare.
        let Ok(stream) = stream.into_std() else { continue };
        next = (next + 1) % inboxes.len();
        if inboxes[next].send(stream).await.is_err() {
            return;
        }
    }
}

/// One serving thread: takes connections from its inbox until the gateway stops.
async fn serve_thread(
    shared: Arc<Shared>,
    index: usize,
    mut inbox: mpsc::Receiver<std::net::TcpStream>,
    mut phase: watch::Receiver<Phase>,
) {
    let pool = ConnectionPool::new(shared.upstreams.clone(), shared.config.upstream.clone(), index);
    let thread = Arc::new(Thread {
        shared,
        connections: Arc::new(pool),
    });
    let mut prune = tokio::time::interval(PRUNE_EVERY);
    let for_connections = phase.clone();
    loop {
        tokio::select! {
            Some(stream) = inbox.recv() => {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    tokio::spawn(serve_connection(thread.clone(), stream, for_connections.clone()));
                }
            }
            _ = prune.tick() => thread.connections.prune(),
            stopped = phase.wait_for(|phase| *phase == Phase::Stop) => {
                drop(stopped);
                return;
            }
        }
    }
}

async fn serve_connection(thread: Arc<Thread>, stream: TcpStream, mut phase: watch::Receiver<Phase>) {
    // Tokens are small writes that must not wait for each other.
    let _ = stream.set_nodelay(true);
    thread.shared.connections.fetch_add(1, Ordering::Relaxed);
    let limits = &thread.shared.config.limits;
    let head_bytes = (limits.header_bytes * HEAD_ROOM_FACTOR).max(MIN_HEAD_BYTES);
    let service = service_fn(|request| {
        let thread = thread.clone();
        async move { Ok::<_, Infallible>(handle(thread, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.read_timeout_ms).max(IDLE_CLIENT))
        .max_header_size(head_bytes)
        .max_headers(MAX_HEADERS)
        .writev(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut draining = *phase.borrow() != Phase::Run;
    if draining {
        connection.as_mut().graceful_shutdown();
    }
    loop {
        tokio::select! {
            biased;
            _ = connection.as_mut() => break,
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow() == Phase::Stop {
                    break;
                }
                if !draining {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
    thread.shared.connections.fetch_sub(1, Ordering::Relaxed);
}
