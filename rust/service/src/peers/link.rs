//! A link to one address of a peer: follow its stream, begin again after an end, and let its bookings expire when it is silent.
//!
//! ```text
//! connect ─▶ Start ─▶ snapshot ─▶ changes, heartbeats ─▶ end ─▶ pause ─▶ connect
//!               │ the own incarnation, or that of another link: pause for long
//! ```
//!
//! The bookings outlive the end of a stream until the peer was silent for `silence_ms`. A short break costs nothing that way, and
//! the next snapshot corrects what changed meanwhile.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use super::Shared;
use super::inbox::PeerBookings;
use super::proto::peers_client::PeersClient;
use super::proto::{FollowRequest, FollowResponse};

/// First pause after a stream that ended. Each further attempt without a stream doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Pause after an address led to a router that another link follows.
const DUPLICATE_PAUSE: Duration = Duration::from_secs(5);
/// Pause after an address led to this router itself. Another router may take the address over.
const ITSELF_PAUSE: Duration = Duration::from_secs(30);
/// Time between two looks at silence and at bookings that wait for their worker.
const UPKEEP_EVERY: Duration = Duration::from_millis(100);
/// Largest message of a peer, bytes.
const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Why a stream ended or did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// No connection came about.
    Unreachable,
    /// The connection or the stream broke, or the peer ended it.
    Broken,
    /// The peer asks for a secret that this router does not have.
    Unauthenticated,
    /// No message came for `silence_ms`.
    Silent,
    /// The first message is not the start of a stream.
    Malformed,
    /// The address leads to this router.
    Itself,
    /// Another link follows the same router.
    Duplicate,
}

impl Ended {
    pub(super) const ALL: [Self; 7] = [
        Self::Unauthenticated,
        Self::Unreachable,
        Self::Broken,
        Self::Silent,
        Self::Malformed,
        Self::Itself,
        Self::Duplicate,
    ];

    /// Value of the label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Unauthenticated => "unauthenticated",
            Self::Silent => "silent",
            Self::Malformed => "malformed",
            Self::Itself => "itself",
            Self::Duplicate => "duplicate",
        }
    }

    /// Whether bookings of a peer are missing because of it.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Itself | Self::Duplicate)
    }
}

/// What others see of a link.
pub(super) struct LinkStatus {
    /// Address of the peer.
    pub address: SocketAddr,
    state: Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    is_connected: bool,
    /// Whether the address leads to this router, or to a router that another link follows.
    is_needless: bool,
    /// Incarnation that this link follows; 0 for none.
    incarnation: u64,
    last_message: Option<Instant>,
}

impl LinkStatus {
    /// A link without a stream.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            state: Mutex::default(),
        }
    }

    /// Whether a stream is open.
    pub fn is_connected(&self) -> bool {
        self.state.lock().is_connected
    }

    /// Whether nothing is missing: a stream is open, or none is needed.
    pub fn is_well(&self) -> bool {
        let state = self.state.lock();
        state.is_connected || state.is_needless
    }

    /// Time since the last message; `None` before the first one and for a link that is not needed.
    pub fn message_age_s(&self) -> Option<f64> {
        let state = self.state.lock();
        let last = state.last_message.filter(|_| !state.is_needless)?;
        Some(last.elapsed().as_secs_f64())
    }

    fn change(&self, change: impl FnOnce(&mut LinkState)) {
        change(&mut self.state.lock());
    }
}

/// The task of one address.
pub(super) struct Link {
    shared: Arc<Shared>,
    status: Arc<LinkStatus>,
    bookings: PeerBookings,
    last_message: Instant,
    /// Whether the last stream had its start.
    has_begun: bool,
}

impl Link {
    /// A link that has not begun.
    pub fn new(shared: Arc<Shared>, status: Arc<LinkStatus>) -> Self {
        Self {
            bookings: PeerBookings::new(shared.clone()),
            shared,
            status,
            last_message: Instant::now(),
            has_begun: false,
        }
    }

    /// Follows the peer for as long as the task lives.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut last_end = None;
        loop {
            self.has_begun = false;
            let ended = self.follow().await;
            self.shared.metrics.count_ended(ended);
            self.status.change(|state| {
                state.is_connected = false;
                state.is_needless = !ended.is_failure();
            });
            // A peer that is down for long is one line of the log.
            if last_end.replace(ended) != Some(ended) || self.has_begun {
                let address = self.status.address;
                tracing::info!(%address, reason = ended.name(), "no stream of bookings from a peer");
            }
            let this_pause = match ended {
                Ended::Itself => ITSELF_PAUSE,
                Ended::Duplicate => DUPLICATE_PAUSE,
                _ if self.has_begun => FIRST_PAUSE,
                _ => pause,
            };
            pause = if self.has_begun {
                FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_PAUSE)
            };
            let share = 0.5 + 0.5 * random_share();
            self.with_upkeep(tokio::time::sleep(this_pause.mul_f64(share)))
                .await;
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> Ended {
        let silence = self.shared.silence();
        let endpoint = Endpoint::from_shared(format!("http://{}", self.status.address));
        let Ok(endpoint) = endpoint else {
            return Ended::Unreachable;
        };
        let endpoint = endpoint.connect_timeout(silence).tcp_nodelay(true);
        let connecting = tokio::time::timeout(silence, endpoint.connect());
        let Ok(Ok(channel)) = self.with_upkeep(connecting).await else {
            return Ended::Unreachable;
        };
        let mut client = PeersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut asked = Request::new(FollowRequest {
            router_id: self.shared.router_id.clone(),
        });
        if let Some(token) = &self.shared.token
            && let Err(error) = token.show(asked.metadata_mut())
        {
            tracing::error!(%error, "this router can follow no peer: peers.token_file is not usable");
            return Ended::Unauthenticated;
        }
        let calling = tokio::time::timeout(silence, client.follow(asked));
        let mut stream = match self.with_upkeep(calling).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) if status.code() == Code::Unauthenticated => return Ended::Unauthenticated,
            Ok(Err(_)) => return Ended::Broken,
            Err(_) => return Ended::Silent,
        };
        loop {
            let next = tokio::time::timeout(silence, stream.message());
            let message = match self.with_upkeep(next).await {
                Ok(Ok(Some(message))) => message,
                Ok(_) => return Ended::Broken,
                Err(_) => return Ended::Silent,
            };
            if let Err(ended) = self.take(message) {
                return ended;
            }
        }
    }

    /// Takes one message over.
    fn take(&mut self, message: FollowResponse) -> Result<(), Ended> {
        match (&message.start, self.has_begun) {
            (Some(start), false) if start.incarnation != 0 => self.begin(start.incarnation)?,
            (None, true) => {}
            _ => return Err(Ended::Malformed),
        }
        self.last_message = Instant::now();
        self.status.change(|state| {
            state.last_message = Some(self.last_message);
            state.is_connected = true;
            state.is_needless = false;
        });
        for change in message.changes {
            self.bookings.apply(change);
        }
        if message.is_snapshot_end {
            self.bookings.end_snapshot();
        }
        Ok(())
    }

    /// Begins a stream, unless it leads to this router or to one that another link follows.
    fn begin(&mut self, incarnation: u64) -> Result<(), Ended> {
        if incarnation == self.shared.incarnation {
            self.drop_bookings();
            return Err(Ended::Itself);
        }
        {
            // One lock over the look at the others and the claim: two links of one router must not both go on.
            let links = self.shared.links.lock();
            let mut others = links.iter().filter(|link| !Arc::ptr_eq(link, &self.status));
            let is_taken = others.any(|link| link.state.lock().incarnation == incarnation);
            self.status
                .change(|state| state.incarnation = if is_taken { 0 } else { incarnation });
            if is_taken {
                drop(links);
                self.bookings.clear();
                return Err(Ended::Duplicate);
            }
        }
        self.has_begun = true;
        self.bookings.begin(incarnation);
        Ok(())
    }

    /// Waits for `future`, and meanwhile looks after silence and waiting bookings.
    async fn with_upkeep<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                // A message that is there comes before the verdict of silence.
                biased;
                out = &mut future => return out,
                () = tokio::time::sleep(UPKEEP_EVERY.min(self.shared.heartbeat())) => self.look_after(),
            }
        }
    }

    fn look_after(&mut self) {
        if self.last_message.elapsed() > self.shared.silence() {
            self.drop_bookings();
        } else {
            self.bookings.place_waiting();
        }
    }

    /// Ends the bookings of a peer that is silent, and the claim to its incarnation.
    fn drop_bookings(&mut self) {
        let expired = self.bookings.clear();
        self.shared.metrics.expired.inc_by(expired as u64);
        self.status.change(|state| state.incarnation = 0);
    }
}

/// A number from 0 to 1, so that routers that lost one peer do not all return in the same moment.
fn random_share() -> f64 {
    let mut bytes = [0; 4];
    // Without a random number the pause is the shortest.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
