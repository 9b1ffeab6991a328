//! In place of [`super`] in a build without the feature `peers`: this router shares nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use wardrop_core::WorkerId;
use wardrop_core::ledger::Work;

use crate::config::PeerOptions;
use crate::metrics::MetricBuilder;
use crate::models::Models;
use crate::pool::Role;
use crate::service::PartState;
use crate::{Clock, ServiceError};

/// A booking for peers; it is never made in this build.
#[allow(dead_code, reason = "the build with peers reads it")]
pub(crate) struct OwnBooking {
    pub model: Arc<str>,
    pub role: Role,
    pub worker: WorkerId,
    pub work: Work,
    pub hashes: Vec<u64>,
    pub further_blocks: u32,
    pub is_unstreamed: bool,
}

/// An announced booking; it does not exist in this build.
pub(crate) enum Announced {}

/// The peers; they do not exist in this build.
pub(crate) enum Peers {}

impl Peers {
    pub fn new(
        options: &PeerOptions,
        _: &str,
        _: (Arc<Models>, Clock),
        _: &MetricBuilder,
    ) -> Result<Self, ServiceError> {
        options.check()?;
        Err(ServiceError::Config(
            "peers: this build cannot share its load".into(),
        ))
    }

    pub fn start(&self) -> Result<Option<SocketAddr>, ServiceError> {
        match *self {}
    }

    pub fn address(&self) -> Option<SocketAddr> {
        match *self {}
    }

    pub fn announce(&self, _: impl FnOnce() -> OwnBooking) -> Option<Announced> {
        match *self {}
    }

    pub fn state(&self) -> PartState {
        match *self {}
    }

    pub fn update_metrics(&self) {
        match *self {}
    }

    pub fn stop(&self) {
        match *self {}
    }
}

impl Announced {
    pub fn prefill_done(&self) {
        match *self {}
    }

    pub fn renew(&self) {
        match *self {}
    }

    pub fn release(&self) {
        match *self {}
    }
}
