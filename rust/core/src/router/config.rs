//! The configuration of a router.
//!
//! One constructor with defaults and `with_*` methods. A router checks every value once, when it is made
//! ([`RouterConfig::validate`]), and never changes its configuration. Only the policy can be replaced later,
//! as a whole.
//!
//! Upper bounds are as important as lower ones: sums of bounded counts must convert to floats exactly, and
//! times must not overflow ([`crate::exact`], [`crate::request`]).

use crate::error::Error;
use crate::hash::HashMode;
use crate::latency::Prior;
use crate::predicted::PredictedConfig;
use crate::price::PolicyConfig;

/// Smallest limit of the index, bytes: an index of few blocks, with room to work.
const INDEX_BYTES_MIN: u64 = 1 << 20;

/// Largest limit of open bookings. [`crate::request::MAX_INPUT_TOKENS`] of each still add up to less than 2⁵² tokens.
const BOOKINGS_MAX: usize = 1 << 24;
/// Longest life of a booking, seconds: 30 years.
const TTL_MAX_S: f64 = 1e9;

/// The configuration of a [`Router`](super::Router), which validates it.
///
/// ```
/// use wardrop_core::{PolicyConfig, Router, RouterConfig};
///
/// let config = RouterConfig::new(16)
///     .with_policy(PolicyConfig::Toll(Default::default()))
///     .with_max_workers(256)
///     .with_index_max_bytes(1 << 30);
/// assert!(Router::new(config).is_ok());
/// let error = Router::new(RouterConfig::new(0)).err().unwrap();
/// assert_eq!(error.to_string(), "block_size = 0: expected at least 1 token");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools, reason = "four independent settings")]
pub struct RouterConfig {
    /// Tokens per KV block, above 0.
    pub block_size: u32,
    /// Seed of random ties and samples.
    pub seed: u64,
    /// The policy at the start.
    pub policy: PolicyConfig,
    /// Whether this pool prefills. The bookings of a pool that does not (the decode leg of a split) carry no prefill
    /// tokens.
    pub tracks_prefill: bool,
    /// Whether this pool decodes. A pool that does not (the prefill leg of a split) prices no answer.
    pub tracks_decode: bool,
    /// Coefficients at which the latency curves of the fleet start, each 0 to 10⁶.
    pub curves: Prior,
    /// Shares of a block's prefill that a block in host memory, and on disk, saves: each 0 to 1.
    pub reuse_weights: [f64; 2],
    /// Seconds to transfer the KV of one prompt token from a prefill to a decode worker, 0 or above. Only a pool that
    /// does not prefill counts it. 0 (the default) when unknown.
    pub handoff_s_per_token: f64,
    /// Seconds until a booking that was not released expires, above 0 and at most 10⁹.
    pub booking_ttl_s: f64,
    /// Largest number of open bookings, 1 to 2²⁴.
    pub max_bookings: usize,
    /// Largest number of workers, 1 to 65,536.
    pub max_workers: usize,
    /// Largest number of distinct blocks in the index, above 0. A full index evicts blocks that were not stored or
    /// matched recently.
    pub index_max_blocks: u64,
    /// Largest size of the index, bytes, at least 1 MiB. A full index evicts as above.
    pub index_max_bytes: u64,
    /// Hash of blocks. A feed of hashes without tokens, such as Dynamo's, needs the default. Other feeds may
    /// use a key, which makes collisions unpredictable ([`crate::hash::keyed`]).
    pub hash: HashMode,
    /// Whether caches are predicted from where requests were sent. Off is Dynamo's default, and exact parity needs it.
    pub predicted: PredictedConfig,
    /// Whether the trust in the index follows what engines report. Without it, every worker stays exact.
    pub measures_trust: bool,
    /// Whether a static rule decides while the predictions of a price in seconds do not fit the fleet
    /// ([`crate::price_guard`]).
    pub guards_price: bool,
}

impl RouterConfig {
    /// Defaults for a block size: least loaded, seed 0, bookings of 600 s, a million bookings, 65,536 workers, 10⁸
    /// blocks.
    pub fn new(block_size: u32) -> Self {
        Self {
            block_size,
            seed: 0,
            policy: PolicyConfig::default(),
            tracks_prefill: true,
            tracks_decode: true,
            curves: Prior::default(),
            reuse_weights: [0.75, 0.25],
            handoff_s_per_token: 0.0,
            booking_ttl_s: 600.0,
            max_bookings: 1_000_000,
            max_workers: 65_536,
            index_max_blocks: 100_000_000,
            index_max_bytes: u64::MAX,
            hash: HashMode::Xxh3,
            predicted: PredictedConfig::default(),
            measures_trust: true,
            guards_price: false,
        }
    }

    /// With another seed.
    #[must_use]
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// With another policy.
    #[must_use]
    pub fn with_policy(mut self, policy: PolicyConfig) -> Self {
        self.policy = policy;
        self
    }

    /// With or without prefill in this pool. The default is with.
    #[must_use]
    pub const fn with_prefill_tracking(mut self, tracks: bool) -> Self {
        self.tracks_prefill = tracks;
        self
    }

    /// With or without decode in this pool. The default is with.
    #[must_use]
    pub const fn with_decode_tracking(mut self, tracks: bool) -> Self {
        self.tracks_decode = tracks;
        self
    }

    /// With another start of the latency curves, for instance [`Prior::fit`] of a timing table.
    #[must_use]
    pub const fn with_curves(mut self, prior: Prior) -> Self {
        self.curves = prior;
        self
    }

    /// With other shares of a block's prefill that host memory and disk save, each 0 to 1.
    #[must_use]
    pub const fn with_reuse_weights(mut self, host: f64, disk: f64) -> Self {
        self.reuse_weights = [host, disk];
        self
    }

    /// With another time to transfer the KV of one token to this pool, seconds.
    #[must_use]
    pub const fn with_handoff_s_per_token(mut self, seconds: f64) -> Self {
        self.handoff_s_per_token = seconds;
        self
    }

    /// With another time to expiry of bookings, seconds.
    #[must_use]
    pub const fn with_booking_ttl_s(mut self, ttl_s: f64) -> Self {
        self.booking_ttl_s = ttl_s;
        self
    }

    /// With another limit of open bookings.
    #[must_use]
    pub const fn with_max_bookings(mut self, bookings: usize) -> Self {
        self.max_bookings = bookings;
        self
    }

    /// With another limit of workers.
    #[must_use]
    pub const fn with_max_workers(mut self, workers: usize) -> Self {
        self.max_workers = workers;
        self
    }

    /// With another limit of distinct blocks in the index.
    #[must_use]
    pub const fn with_index_max_blocks(mut self, blocks: u64) -> Self {
        self.index_max_blocks = blocks;
        self
    }

    /// With another limit of the size of the index, bytes.
    #[must_use]
    pub const fn with_index_max_bytes(mut self, bytes: u64) -> Self {
        self.index_max_bytes = bytes;
        self
    }

    /// With another hash of blocks.
    #[must_use]
    pub fn with_hash(mut self, hash: HashMode) -> Self {
        self.hash = hash;
        self
    }

    /// With caches predicted from where requests were sent.
    #[must_use]
    pub const fn with_predicted(mut self, predicted: PredictedConfig) -> Self {
        self.predicted = predicted;
        self
    }

    /// With or without a trust in the index that follows what engines report. The default is with.
    #[must_use]
    pub const fn with_measured_trust(mut self, measures: bool) -> Self {
        self.measures_trust = measures;
        self
    }

    /// With or without the price guard. The default is without: a router decides by its policy alone.
    #[must_use]
    pub const fn with_price_guard(mut self, guards: bool) -> Self {
        self.guards_price = guards;
        self
    }

    /// Checks every value except those of the policy.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the first value that is out of range.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |field, got: String, expected| Err(Error::Parameter { field, got, expected });
        if self.block_size == 0 {
            return refuse("block_size", "0".to_owned(), "at least 1 token");
        }
        if !(self.booking_ttl_s > 0.0 && self.booking_ttl_s <= TTL_MAX_S) {
            return refuse(
                "booking_ttl_s",
                self.booking_ttl_s.to_string(),
                "a number of seconds above 0, at most 1e9",
            );
        }
        self.curves.validate()?;
        if !(self.handoff_s_per_token >= 0.0 && self.handoff_s_per_token.is_finite()) {
            return refuse(
                "handoff_s_per_token",
                self.handoff_s_per_token.to_string(),
                "a finite number of seconds, 0 or above",
            );
        }
        for (field, weight) in ["host reuse weight", "disk reuse weight"]
            .into_iter()
            .zip(self.reuse_weights)
        {
            if !(0.0..=1.0).contains(&weight) {
                return refuse(field, weight.to_string(), "a share from 0 to 1");
            }
        }
        if !(1..=BOOKINGS_MAX).contains(&self.max_bookings) {
            return refuse("max_bookings", self.max_bookings.to_string(), "1 to 16777216");
        }
        if self.index_max_blocks == 0 {
            return refuse("index_max_blocks", "0".to_owned(), "at least 1");
        }
        if self.index_max_bytes < INDEX_BYTES_MIN {
            return refuse(
                "index_max_bytes",
                self.index_max_bytes.to_string(),
                "1 MiB or above",
            );
        }
        if !(1..=65_536).contains(&self.max_workers) {
            return refuse("max_workers", self.max_workers.to_string(), "1 to 65536");
        }
        self.predicted.validate()
    }
}
