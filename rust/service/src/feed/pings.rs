//! Whether a publisher answers PINGs, which decides whether silence proves a lost connection.
//!
//! [`super::link`] asks before each connection whether to set a deadline, and records the end of
//! each connection here.

use super::zmtp::ZmtpError;

/// Connections in a row whose PING stayed unanswered after which a publisher that never answered is pinged no more.
const UNANSWERED_MAX: u32 = 2;

/// Whether a publisher answers PINGs. Old or foreign implementations may not.
#[derive(Debug, Default)]
pub(super) struct PingHistory {
    /// The publisher answered a PING once.
    has_answered: bool,
    /// Connections in a row that ended with an unanswered PING.
    unanswered: u32,
}

impl PingHistory {
    /// Whether silence after a PING proves a lost connection. A half-open connection fails the next handshake, while a
    /// publisher without PINGs passes it and stays silent again.
    pub fn are_useful(&self) -> bool {
        self.has_answered || self.unanswered < UNANSWERED_MAX
    }

    /// Records the end of a connection.
    pub fn record(&mut self, has_pong: bool, error: &ZmtpError) {
        self.has_answered |= has_pong;
        if matches!(error, ZmtpError::Silent) {
            self.unanswered += 1;
        } else {
            self.unanswered = 0;
        }
    }
}
