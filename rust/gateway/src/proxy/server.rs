//! Serving threads. Each runs an event loop of its own and keeps a connection from accept to close: no request changes threads.
//!
//! Threads: `worker_threads` serve, one accepts, one probes upstreams. A panic in one of them is
//! counted, and the thread starts again.
//!
//! One event loop per thread keeps a request on one core's caches and needs no lock between its
//! steps. Connections are spread in turn when they are accepted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use wardrop_service::metrics::THREAD_PREFIX;

use super::accept::{Accepted, Acceptor, ServingThread};
use super::client_state::IdleConnections;
use super::connection::serve_connection;
use super::guard::supervise;
use super::shared::{Shared, Thread};
use crate::ServiceError;
use crate::upstream::{ConnectionPool, probe_upstreams};

/// Most accepted connections that wait for one serving thread.
const INBOX: usize = 64;
/// Interval at which idle upstream connections beyond their age are closed.
const PRUNE_EVERY: Duration = Duration::from_secs(10);

/// Phase of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerPhase {
    /// The server accepts and serves.
    Run,
    /// The server accepts nothing. Open connections end after their current answer.
    Drain,
    /// The server cuts all connections.
    Stop,
}

/// The running server.
pub struct Server {
    /// Bound address.
    address: SocketAddr,
    /// Phase that all threads and connections watch.
    phase: watch::Sender<ServerPhase>,
    /// All threads, until the stop joins them.
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Binds and starts serving.
    ///
    /// # Errors
    /// [`ServiceError::Io`] when the address cannot be bound or a thread not started.
    pub fn start(shared: &Arc<Shared>) -> Result<Self, ServiceError> {
        let listen = shared.config.listen.clone();
        let io = |source| ServiceError::Io {
            what: format!("listening on {listen}"),
            source,
        };
        let listener = bind(&listen).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let (phase, watched) = watch::channel(ServerPhase::Run);
        let mut threads = Vec::new();
        let mut serving = Vec::new();
        for index in 0..shared.config.worker_threads {
            let (sender, inbox) = mpsc::channel(INBOX);
            let idle = Arc::new(IdleConnections::default());
            serving.push(ServingThread {
                inbox: sender,
                idle: idle.clone(),
            });
            let pool = ConnectionPool::new(shared.upstreams.clone(), shared.config.upstream.clone(), index);
            let thread = Arc::new(Thread {
                shared: shared.clone(),
                connections: Arc::new(pool),
                idle,
            });
            let (inbox, watched) = (Mutex::new(inbox), watched.clone());
            threads.push(spawn(&format!("http-{index}"), shared, move |runtime| {
                runtime.block_on(serve_thread(&thread, &mut inbox.lock(), watched.clone()));
            })?);
        }
        let every = Duration::from_millis(shared.config.upstream.probe_interval_ms);
        if !every.is_zero() {
            let (upstreams, watched) = (shared.upstreams.clone(), watched.clone());
            threads.push(spawn("probe", shared, move |runtime| {
                let mut phase = watched.clone();
                runtime.block_on(async {
                    tokio::select! {
                        () = probe_upstreams(upstreams.clone(), every) => {}
                        _ = phase.wait_for(|phase| *phase == ServerPhase::Stop) => {}
                    }
                });
            })?);
        }
        let acceptor = Acceptor::new(listener, serving, shared.clone());
        threads.push(spawn("accept", shared, move |runtime| {
            runtime.block_on(acceptor.run(watched.clone()));
        })?);
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
    ///
    /// Every thread is joined, so that no request outlives the gateway object.
    pub fn stop(self) {
        let _ = self.phase.send(ServerPhase::Stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }

    /// Stops accepting; open connections end after their current answer.
    pub fn drain(&self, shared: &Shared) {
        shared.draining.store(true, Ordering::Relaxed);
        let _ = self.phase.send(ServerPhase::Drain);
    }
}

/// The first address of `listen` that can be bound, without blocking reads.
///
/// # Errors
/// The error of the last address that was tried.
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

/// Starts a thread that runs `work` on an event loop of its own. After a panic the work runs again on the same event loop, so the
/// connections of the thread live on.
fn spawn<F>(name: &str, shared: &Arc<Shared>, work: F) -> Result<JoinHandle<()>, ServiceError>
where
    F: Fn(&tokio::runtime::Runtime) + Send + 'static,
{
    let thread_name = format!("{THREAD_PREFIX}{name}");
    let io = |source| ServiceError::Io {
        what: format!("starting thread {thread_name}"),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io)?;
    let (part, panics) = (name.to_owned(), shared.metrics.panics.clone());
    std::thread::Builder::new()
        .name(thread_name.clone())
        .spawn(move || {
            supervise(&part, &panics, || work(&runtime));
            // A task that still runs must not hold up the stop.
            runtime.shutdown_background();
        })
        .map_err(io)
}

/// One serving thread: takes connections from its inbox until the gateway stops.
async fn serve_thread(
    thread: &Arc<Thread>,
    inbox: &mut mpsc::Receiver<Accepted>,
    mut phase: watch::Receiver<ServerPhase>,
) {
    let mut prune = tokio::time::interval(PRUNE_EVERY);
    let for_connections = phase.clone();
    loop {
        tokio::select! {
            Some(accepted) = inbox.recv() => {
                if let Ok(stream) = TcpStream::from_std(accepted.stream) {
                    tokio::spawn(serve_connection(thread.clone(), stream, accepted.place, for_connections.clone()));
                }
            }
            _ = prune.tick() => thread.connections.prune(),
            stopped = phase.wait_for(|phase| *phase == ServerPhase::Stop) => {
                drop(stopped);
                return;
            }
        }
    }
}
