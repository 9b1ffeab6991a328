//! Settings of the routers that share this router's fleet.

use std::path::PathBuf;

use serde::Deserialize;

use crate::ServiceError;

/// Longest time of a setting, in milliseconds: ten minutes.
const MAX_TIME_MS: u64 = 600_000;
/// Most peers.
const MAX_PEERS: usize = 1024;
/// Most bookings of peers.
const MAX_BOOKINGS: usize = 1 << 24;

/// Where this router hears of its peers' work, and where it reports its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerOptions {
    /// `host:port` on which peers follow this router; port 0 takes a free one, `None` lets no peer follow.
    pub listen: Option<String>,
    /// `host:port` of the peers to follow. A name with several addresses stands for a router at each.
    pub routers: Vec<String>,
    /// File whose first line is the secret that all routers share; `None` lets every caller follow.
    pub token_file: Option<PathBuf>,
    /// Time without a message after which a peer's bookings expire, in milliseconds.
    pub silence_ms: u64,
    /// Time between two messages to a peer while nothing changes, in milliseconds; below `silence_ms`.
    pub heartbeat_ms: u64,
    /// Peers that this router follows at most, and peers that may follow it.
    pub max_peers: usize,
    /// Bookings that this router holds for one peer.
    pub max_bookings_per_peer: usize,
    /// Bookings that this router holds for all peers together.
    pub max_bookings: usize,
    /// Changes that are kept for peers that read slowly. A peer that falls further behind gets a snapshot.
    pub outgoing_changes: usize,
    /// Hashes of leading blocks that a booking carries to peers; further blocks are only counted.
    pub hash_blocks: usize,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            listen: None,
            routers: Vec::new(),
            token_file: None,
            silence_ms: 3_000,
            heartbeat_ms: 500,
            max_peers: 64,
            max_bookings_per_peer: 65_536,
            max_bookings: 262_144,
            outgoing_changes: 4_096,
            hash_blocks: 1_024,
        }
    }
}

impl PeerOptions {
    /// Checks every value.
    pub(crate) fn check(&self) -> Result<(), ServiceError> {
        let most_hash_blocks = 16_384;
        for (name, value, least, most) in [
            ("silence_ms", self.silence_ms, 1, MAX_TIME_MS),
            ("heartbeat_ms", self.heartbeat_ms, 1, MAX_TIME_MS),
            ("max_peers", self.max_peers as u64, 1, MAX_PEERS as u64),
            (
                "max_bookings_per_peer",
                self.max_bookings_per_peer as u64,
                1,
                MAX_BOOKINGS as u64,
            ),
            ("max_bookings", self.max_bookings as u64, 1, MAX_BOOKINGS as u64),
            ("outgoing_changes", self.outgoing_changes as u64, 1, 1 << 20),
            ("hash_blocks", self.hash_blocks as u64, 0, most_hash_blocks),
        ] {
            if !(least..=most).contains(&value) {
                return Err(ServiceError::Config(format!(
                    "peers.{name} must be {least} to {most}, got {value}"
                )));
            }
        }
        if self.heartbeat_ms >= self.silence_ms {
            return Err(ServiceError::Config(format!(
                "peers.heartbeat_ms must be below peers.silence_ms ({}), got {}; otherwise an idle peer counts as silent",
                self.silence_ms, self.heartbeat_ms
            )));
        }
        if self.routers.len() > self.max_peers {
            return Err(ServiceError::Config(format!(
                "peers.routers: got {} routers, at most {} (peers.max_peers)",
                self.routers.len(),
                self.max_peers
            )));
        }
        for name in self.routers.iter().chain(&self.listen) {
            let port = name
                .rsplit_once(':')
                .filter(|(host, _)| !host.is_empty())
                .and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                return Err(ServiceError::Config(format!(
                    "peers: got {name:?}, expected HOST:PORT with a port up to 65535"
                )));
            }
        }
        if !cfg!(feature = "peers") && (self.listen.is_some() || !self.routers.is_empty()) {
            return Err(ServiceError::Config(
                "peers: this build cannot share its load; build wardrop-service with the feature peers"
                    .into(),
            ));
        }
        Ok(())
    }
}
