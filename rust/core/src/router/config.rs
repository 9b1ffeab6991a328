//! How a router is made.

use crate::error::Error;
use crate::hash::HashMode;
use crate::latency::Prior;
use crate::predicted::PredictedConfig;
use crate::price::PolicyConfig;

/// Bytes that an index must be allowed: what it takes with few blocks, and room to work.
const INDEX_BYTES_MIN: u64 = 1 << 20;

/// How a router is made. Validated by [`Router::new`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RouterConfig {
    /// Tokens per block, above 0.
    pub block_size: u32,
    /// Seed of ties and samples.
    pub seed: u64,
    /// The price in force.
    pub policy: PolicyConfig,
    /// Whether this pool prefills. A decode pool of a split does not: its bookings carry no prefill tokens.
    pub tracks_prefill: bool,
    /// Whether this pool decodes. A prefill pool of a split does not: no answer is priced there.
    pub tracks_decode: bool,
    /// Where the latency curves of a fleet that nothing is known of start.
    pub curves: Prior,
    /// Share of a block's prefill that a block in host memory, respectively on disk, saves: 0 to 1.
    pub reuse_weights: [f64; 2],
    /// Seconds to move the KV of one prompt token from a prefill to a decode worker, 0 or above. Counts in a pool that does
    /// not prefill; 0 (the default) where it is not known.
    pub handoff_s_per_token: f64,
    /// Seconds until a booking that nobody released ends, above 0.
    pub booking_ttl_s: f64,
    /// Open bookings at most, above 0.
    pub max_bookings: usize,
    /// Workers at most, 1 to 65,536.
    pub max_workers: usize,
    /// Distinct blocks that the index may hold, above 0. Beyond, what was neither stored nor matched for longest goes.
    pub index_max_blocks: u64,
    /// Bytes that the index may take, at least 1 MiB; the same rule.
    pub index_max_bytes: u64,
    /// How blocks are hashed. A feed of hashes without tokens, as Dynamo's, needs the default.
    pub hash: HashMode,
    /// What is predicted of caches by where requests were sent. Off is Dynamo's default, and exact parity needs it.
    pub predicted: PredictedConfig,
}

impl RouterConfig {
    /// Defaults: least loaded, seed 0, bookings of 600 s, a million bookings, 65,536 workers, 10⁸ blocks.
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

    /// For a pool that prefills (the default) or not.
    #[must_use]
    pub const fn with_prefill_tracking(mut self, tracks: bool) -> Self {
        self.tracks_prefill = tracks;
        self
    }

    /// For a pool that decodes (the default) or not.
    #[must_use]
    pub const fn with_decode_tracking(mut self, tracks: bool) -> Self {
        self.tracks_decode = tracks;
        self
    }

    /// With latency curves that start elsewhere, for instance at [`Prior::fit`] of a timing table.
    #[must_use]
    pub const fn with_curves(mut self, prior: Prior) -> Self {
        self.curves = prior;
        self
    }

    /// With other shares of a block's prefill that host memory and disk save.
    #[must_use]
    pub const fn with_reuse_weights(mut self, host: f64, disk: f64) -> Self {
        self.reuse_weights = [host, disk];
        self
    }

    /// With another time to move the KV of one token to this pool, seconds.
    #[must_use]
    pub const fn with_handoff_s_per_token(mut self, seconds: f64) -> Self {
        self.handoff_s_per_token = seconds;
        self
    }

    /// With another life of bookings, seconds.
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

    /// With another limit of the index's bytes.
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

    /// With caches predicted by where requests were sent.
    #[must_use]
    pub const fn with_predicted(mut self, predicted: PredictedConfig) -> Self {
        self.predicted = predicted;
        self
    }

    /// Refuse what is out of range.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |field, got: String, expected| Err(Error::Parameter { field, got, expected });
        if self.block_size == 0 {
            return refuse("block_size", "0".to_owned(), "at least 1 token");
        }
        if !(self.booking_ttl_s > 0.0 && self.booking_ttl_s.is_finite()) {
            return refuse(
                "booking_ttl_s",
                self.booking_ttl_s.to_string(),
                "a finite number of seconds above 0",
            );
        }
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
        if self.max_bookings == 0 {
            return refuse("max_bookings", "0".to_owned(), "at least 1");
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
