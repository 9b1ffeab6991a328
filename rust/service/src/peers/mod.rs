//! Peers: other routers in front of the same fleet. Each reports what it has in flight, so that each prices the whole load.
//!
//! ```text
//! own booking ─▶ outbox ─▶ server ─▶ stream of each follower            what this router reports
//! peer's stream ─▶ link ─▶ inbox ─▶ WorkerPool ─▶ Router: load          what this router hears
//! directory: names ─▶ addresses ─▶ one link for each
//! ```
//!
//! A router follows each peer that it names, and reports its own bookings to whoever follows it. It never passes on what it
//! heard, so a booking counts once, regardless of who names whom. A stream begins with a snapshot. A peer that is silent for
//! `silence_ms` expires with its bookings, and a peer that started anew (another incarnation) loses the old ones at once.
//!
//! No request waits for a peer: a booking is appended to a ring of fixed size. A follower that falls behind the ring is cut off and
//! begins again with a snapshot. Everything runs on one thread of its own.
//!
//! Cost per request and follower: three small messages, 8 bytes for each block of the prompt.

mod directory;
mod inbox;
mod link;
mod messages;
mod metrics;
mod outbox;
mod server;
#[cfg(test)]
mod tests;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::directory::Directory;
use self::inbox::Inbox;
use self::link::LinkStatus;
use self::metrics::PeerMetrics;
use self::outbox::Outbox;
pub(crate) use self::outbox::{Announced, OwnBooking};
use self::token::TokenFile;
use crate::config::PeerOptions;
use crate::metrics::{MetricBuilder, THREAD_PREFIX};
use crate::models::Models;
use crate::service::PartState;
use crate::{Clock, ServiceError};

#[allow(missing_docs, clippy::pedantic, clippy::all, reason = "generated code")]
mod proto {
    tonic::include_proto!("wardrop.peers.v1");
}

/// What all tasks of peers share.
struct Shared {
    options: PeerOptions,
    router_id: String,
    /// Number of this start of the router, never 0.
    incarnation: u64,
    outbox: Arc<Outbox>,
    inbox: Inbox,
    metrics: PeerMetrics,
    /// Secret of the fleet's routers; `None` without one.
    token: Option<TokenFile>,
    /// Streams to and from peers, by the address of the link.
    links: Mutex<Vec<Arc<LinkStatus>>>,
}

impl Shared {
    fn silence(&self) -> Duration {
        Duration::from_millis(self.options.silence_ms)
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.options.heartbeat_ms)
    }
}

/// The running thread.
struct Running {
    address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// This router among its peers.
pub(crate) struct Peers {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

impl Peers {
    /// Peers that are neither followed nor listened to yet.
    ///
    /// # Errors
    /// The operating system gives no random number, a metric's name is taken, or the file of the secret is not usable.
    pub fn new(
        options: &PeerOptions,
        router_id: &str,
        (models, clock): (Arc<Models>, Clock),
        builder: &MetricBuilder,
    ) -> Result<Self, ServiceError> {
        let metrics = PeerMetrics::new(builder)
            .map_err(|error| ServiceError::Config(format!("metrics of peers: {error}")))?;
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| ServiceError::Io {
            what: "drawing the incarnation of this router".into(),
            source: std::io::Error::other(error),
        })?;
        let token = options.token_file.as_deref().map(TokenFile::open).transpose()?;
        let shared = Shared {
            token,
            incarnation: u64::from_le_bytes(bytes).max(1),
            outbox: Arc::new(Outbox::new(options.outgoing_changes)),
            inbox: Inbox::new(models, clock, options, metrics.clone()),
            metrics,
            links: Mutex::default(),
            router_id: router_id.to_owned(),
            options: options.clone(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            running: Mutex::default(),
        })
    }

    /// Listens to followers and follows the peers. Returns the address for followers. A second call changes nothing.
    ///
    /// # Errors
    /// The address cannot be bound, or the operating system gives no thread.
    pub fn start(&self) -> Result<Option<SocketAddr>, ServiceError> {
        let mut running = self.running.lock();
        if let Some(running) = &*running {
            return Ok(running.address);
        }
        let io = |what: String| move |source| ServiceError::Io { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .thread_name(format!("{THREAD_PREFIX}names"))
            .build()
            .map_err(io("starting the thread of peers".into()))?;
        let listener = match &self.shared.options.listen {
            Some(listen) => {
                let bound = runtime.block_on(TcpListener::bind(listen));
                Some(bound.map_err(io(format!("listening for peers on {listen}")))?)
            }
            None => None,
        };
        let address = listener
            .as_ref()
            .map(TcpListener::local_addr)
            .transpose()
            .map_err(io("reading the address for peers".into()))?;
        let (stop, mut stopped) = watch::channel(false);
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("{THREAD_PREFIX}peers"))
            .spawn(move || {
                runtime.block_on(async move {
                    if let Some(listener) = listener {
                        tokio::spawn(server::serve(shared.clone(), listener, stopped.clone()));
                    }
                    let directory = tokio::spawn(Directory::new(shared).run());
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                    directory.abort();
                });
                runtime.shutdown_background();
            })
            .map_err(io("starting the thread of peers".into()))?;
        if let Some(address) = address {
            tracing::info!(%address, has_secret = self.shared.token.is_some(), "peers may follow this router");
            if self.shared.token.is_none() && !address.ip().is_loopback() {
                tracing::warn!(
                    %address,
                    "every host that reaches this address may read which prompts are in flight, as hashes; name a secret with \
                     --peer-token-file"
                );
            }
        }
        *running = Some(Running {
            address,
            stop,
            thread,
        });
        Ok(address)
    }

    /// Address on which peers follow this router; `None` before the start and where none may.
    pub fn address(&self) -> Option<SocketAddr> {
        self.running.lock().as_ref()?.address
    }

    /// Reports a booking of this router to its followers until the returned value is dropped. `None` where no peer may follow.
    pub fn announce(&self, booking: impl FnOnce() -> OwnBooking) -> Option<Announced> {
        let options = &self.shared.options;
        options.listen.as_ref()?;
        Some(self.shared.outbox.book(booking(), options.hash_blocks))
    }

    /// The state of this part for `/health`: up while a stream from every address of a peer is open.
    pub fn state(&self) -> PartState {
        let links = self.shared.links.lock();
        let down: Vec<String> = links
            .iter()
            .filter(|link| !link.is_well())
            .map(|link| link.address.to_string())
            .collect();
        PartState {
            up: down.is_empty() && links.len() >= usize::from(!self.shared.options.routers.is_empty()),
            failures: self.shared.metrics.failures(),
            answered_unix_s: None,
            error: match down.as_slice() {
                [] => String::new(),
                _ => format!(
                    "no stream from {}; this router prices without them",
                    down.join(", ")
                ),
            },
        }
    }

    /// Sets the gauges before a page of metrics.
    pub fn update_metrics(&self) {
        let links = self.shared.links.lock();
        let connected = links.iter().filter(|link| link.is_connected()).count();
        let ages = links.iter().filter_map(|link| link.message_age_s());
        self.shared.metrics.set_links(connected, ages.fold(0.0, f64::max));
        self.shared.inbox.update_metrics();
    }

    /// Ends the thread. A second call does nothing.
    pub fn stop(&self) {
        if let Some(running) = self.running.lock().take() {
            let _ = running.stop.send(true);
            let _ = running.thread.join();
        }
    }
}
