//! Serving threads. Each runs an event loop of its own and keeps a connection from accept to close: no request changes threads.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use wardrop_service::metrics::THREAD_PREFIX;

use super::handler::handle;
use super::shared::{Shared, Thread};
use crate::ServiceError;
use crate::upstream::ConnectionPool;

/// Factor between the limit of hyper and the configured header limit. hyper answers an oversized head without a body, so its
/// limit is larger and the gateway's own check answers first.
const HEAD_ROOM_FACTOR: usize = 4;
const MIN_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 256;
/// Most accepted connections that wait for one serving thread.
const INBOX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const PRUNE_EVERY: Duration = Duration::from_secs(10);
/// Threads that tokenise long prompts, per serving thread.
const BLOCKING_THREADS: usize = 2;
/// Time after which an unused client connection is closed.
const IDLE_CLIENT: Duration = Duration::from_secs(300);

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
    /// [`ServiceError::Io`] when the address can not be bound or a thread not started.
    pub fn start(shared: &Arc<Shared>) -> Result<Self, ServiceError> {
        let listen = shared.config.listen.clone();
        let io = |source| ServiceError::Io {
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

    /// Stops accepting and cuts all open connections.
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

/// Starts a thread that runs `work` on an event loop of its own.
pub(crate) fn spawn<F>(name: &str, work: F) -> Result<JoinHandle<()>, ServiceError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let name = format!("{THREAD_PREFIX}{name}");
    let io = |source| ServiceError::Io {
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
            // A blocking thread may still tokenise; nothing waits for its result.
            runtime.shutdown_background();
        })
        .map_err(io)
}

/// Accepts connections and gives them to the serving threads in turn, until the gateway drains.
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
        // A socket is registered with one event loop, so it moves to another thread unregistered.
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
    // Tokens are small writes; with Nagle's algorithm each would wait for an acknowledgement.
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
