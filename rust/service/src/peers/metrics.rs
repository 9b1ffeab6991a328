//! Metrics of peers.

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge};

use super::link::Ended;
use crate::metrics::MetricBuilder;

/// Counters and gauges of peers.
#[derive(Clone)]
pub(super) struct PeerMetrics {
    connected: IntGauge,
    message_age: GaugeVec,
    /// Followers with an open stream.
    pub followers: IntGauge,
    /// Bookings of peers that this router holds.
    pub bookings: IntGauge,
    /// Bookings among them whose worker this router does not know yet.
    pub waiting: IntGauge,
    /// Bookings of silent peers that expired.
    pub expired: IntCounter,
    /// Changes that peers reported.
    pub received: IntCounter,
    refused: IntCounterVec,
    ended: IntCounterVec,
    cut_off: IntCounterVec,
}

/// Why a booking of a peer is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The peer has as many bookings as one peer may have.
    PeerFull,
    /// All peers together have as many bookings as they may have.
    Full,
    /// The booking has figures that cannot be true.
    Impossible,
}

impl Refused {
    const ALL: [(Self, &'static str); 3] = [
        (Self::PeerFull, "peer_full"),
        (Self::Full, "full"),
        (Self::Impossible, "impossible"),
    ];
}

/// Why this router ended the stream of a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CutOff {
    /// The follower read more slowly than changes came.
    Behind,
    /// There are as many followers as there may be.
    TooMany,
    /// The follower did not show the secret.
    Unauthenticated,
}

impl CutOff {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Behind, "behind"),
        (Self::TooMany, "too_many"),
        (Self::Unauthenticated, "unauthenticated"),
    ];
}

impl PeerMetrics {
    /// All metrics at zero.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(builder: &MetricBuilder) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            connected: builder.gauge("peers_connected", "Peers whose stream of bookings is open")?,
            message_age: builder.gauges(
                "peer_message_age_seconds",
                "Time since the last message of the peer that is silent the longest",
                &[],
            )?,
            followers: builder.gauge("peer_followers", "Peers that follow the bookings of this router")?,
            bookings: builder.gauge(
                "peer_bookings",
                "Bookings of peers that this router holds; each is load in its prices",
            )?,
            waiting: builder.gauge(
                "peer_bookings_waiting",
                "Bookings of peers whose worker this router does not know yet; they are no load until then",
            )?,
            expired: builder.counter(
                "peer_bookings_expired_total",
                "Bookings of peers that expired because their peer was silent",
            )?,
            received: builder.counter("peer_changes_received_total", "Changes of bookings that peers reported")?,
            refused: builder.counters(
                "peer_bookings_refused_total",
                "Bookings of peers that this router does not hold, because of a limit or of impossible figures",
                &["reason"],
            )?,
            ended: builder.counters(
                "peer_streams_ended_total",
                "Streams from peers that ended, and attempts that opened none",
                &["reason"],
            )?,
            cut_off: builder.counters(
                "peer_followers_cut_off_total",
                "Streams to followers that this router ended or refused; a follower begins again with a snapshot",
                &["reason"],
            )?,
        };
        for (_, name) in Refused::ALL {
            metrics.refused.with_label_values(&[name]);
        }
        for ended in Ended::ALL {
            metrics.ended.with_label_values(&[ended.name()]);
        }
        for (_, name) in CutOff::ALL {
            metrics.cut_off.with_label_values(&[name]);
        }
        Ok(metrics)
    }

    /// Counts a booking that is not held.
    pub fn count_refused(&self, reason: Refused) {
        let named = Refused::ALL.iter().find(|(known, _)| *known == reason);
        if let Some((_, name)) = named {
            self.refused.with_label_values(&[name]).inc();
        }
    }

    /// Counts the end of a stream from a peer.
    pub fn count_ended(&self, reason: Ended) {
        self.ended.with_label_values(&[reason.name()]).inc();
    }

    /// Counts the end of a stream to a follower.
    pub fn count_cut_off(&self, reason: CutOff) {
        let named = CutOff::ALL.iter().find(|(known, _)| *known == reason);
        if let Some((_, name)) = named {
            self.cut_off.with_label_values(&[name]).inc();
        }
    }

    /// Streams that ended by a failure.
    pub fn failures(&self) -> u64 {
        let failed = Ended::ALL.iter().filter(|ended| ended.is_failure());
        failed
            .map(|ended| self.ended.with_label_values(&[ended.name()]).get())
            .sum()
    }

    /// Sets the gauges of the links.
    pub fn set_links(&self, connected: usize, message_age_s: f64) {
        self.connected.set(i64::try_from(connected).unwrap_or(i64::MAX));
        self.message_age.with_label_values::<&str>(&[]).set(message_age_s);
    }
}
