//! NVIDIA Dynamo's own cost, exactly.

use serde::{Deserialize, Serialize};

use super::config::{non_negative, share};
use super::{Policy, View};
use crate::error::Error;
use crate::rng::Rng;

/// Parameters of [`Dynamo`], with Dynamo's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamoConfig {
    /// Blocks of credit for each cached device block, 0 to 1.
    pub overlap_score_credit: f64,
    /// How fast the credit decays with the prefill backlog above the least loaded candidate.
    pub overlap_score_credit_decay: f64,
    /// Weight of a prefill block against a decode block.
    pub prefill_load_scale: f64,
    /// Blocks that each request in flight costs.
    pub decode_active_request_weight: f64,
    /// Credit of a block in host memory, 0 to 1.
    pub host_cache_hit_weight: f64,
    /// Credit of a block on disk, 0 to 1.
    pub disk_cache_hit_weight: f64,
    /// Temperature of the pick.
    pub router_temperature: f64,
}

impl Default for DynamoConfig {
    fn default() -> Self {
        Self {
            overlap_score_credit: 1.0,
            overlap_score_credit_decay: 0.0,
            prefill_load_scale: 1.0,
            decode_active_request_weight: 0.0,
            host_cache_hit_weight: 0.75,
            disk_cache_hit_weight: 0.25,
            router_temperature: 0.0,
        }
    }
}

impl DynamoConfig {
    /// What Dynamo uses for the decode leg of a split: no overlap credit. The router must not track prefill there.
    pub fn decode_leg() -> Self {
        Self {
            overlap_score_credit: 0.0,
            ..Self::default()
        }
    }
}

/// Cost in blocks:
///
/// ```text
/// credit = c / (1 + decay · excess / max(1, ⌈input / B⌉)) · device + w_host · host + w_disk · disk
/// excess = (active prefill tokens of the candidate − lowest among the candidates) / B
/// raw    = (active prefill tokens + input) / B
/// cost   = prefill_load_scale · max(0, raw − credit) + |active blocks ∪ request blocks| + w_request · active requests
/// ```
///
/// On a pool that decodes nothing (the prefill leg of a split) no decode block counts: Dynamo routes it with
/// `router_track_active_blocks` off. On a pool that prefills nothing (the decode leg of a split) the cost is `max(0, |active ∪ request| − credit) + w_request ·
/// active requests` with a positive `c`, and without the credit at c = 0. Source: Dynamo 1.6.1, `dynamo-kv-router`,
/// scheduling/selector; without its shared cache and taints, which Wardrop does not know.
#[derive(Clone, Debug)]
pub struct Dynamo {
    config: DynamoConfig,
}

impl Dynamo {
    /// Refuses parameters out of range.
    pub fn new(config: DynamoConfig) -> Result<Self, Error> {
        share("overlap_score_credit", config.overlap_score_credit)?;
        non_negative("overlap_score_credit_decay", config.overlap_score_credit_decay)?;
        non_negative("prefill_load_scale", config.prefill_load_scale)?;
        non_negative(
            "decode_active_request_weight",
            config.decode_active_request_weight,
        )?;
        share("host_cache_hit_weight", config.host_cache_hit_weight)?;
        share("disk_cache_hit_weight", config.disk_cache_hit_weight)?;
        non_negative("router_temperature", config.router_temperature)?;
        Ok(Self { config })
    }

    fn decay(&self, view: &View<'_>, i: usize, lowest_prefill_tokens: u64) -> f64 {
        let excess_tokens = view.prefill_tokens[i] - lowest_prefill_tokens;
        let excess_blocks = excess_tokens as f64 / f64::from(view.block_size);
        let request_blocks = view.input_tokens.div_ceil(view.block_size).max(1);
        1.0 / (1.0 + self.config.overlap_score_credit_decay * (excess_blocks / f64::from(request_blocks)))
    }
}

impl Policy for Dynamo {
    fn name(&self) -> &'static str {
        "dynamo"
    }

    fn price(&self, view: &View<'_>, _rng: &mut Rng, costs: &mut [f64]) {
        let decays = view.tracks_prefill && self.config.overlap_score_credit_decay > 0.0;
        let lowest = if decays {
            view.prefill_tokens.iter().copied().min().unwrap_or(0)
        } else {
            0
        };
        let DynamoConfig {
            overlap_score_credit: device_weight,
            host_cache_hit_weight: host_weight,
            disk_cache_hit_weight: disk_weight,
            ..
        } = self.config;
        let block_size = f64::from(view.block_size);
        let input_tokens = f64::from(view.input_tokens);
        // Floating point throughout and slices of one length: a quarter of the time of checked integers.
        let n = costs.len();
        let (device, host, disk) = (
            &view.device_blocks[..n],
            &view.host_blocks[..n],
            &view.disk_blocks[..n],
        );
        let (shared, requests) = (&view.shared_blocks[..n], &view.active_requests[..n]);
        let (prefill, active) = (&view.prefill_tokens[..n], &view.decode_blocks[..n]);
        let request_blocks = f64::from(view.request_blocks);
        for (i, cost) in costs.iter_mut().enumerate() {
            let decay = if decays { self.decay(view, i, lowest) } else { 1.0 };
            let credit = device_weight * decay * f64::from(device[i])
                + host_weight * f64::from(host[i])
                + disk_weight * f64::from(disk[i]);
            let decode = if view.tracks_decode {
                active[i].cast_signed() as f64 + (request_blocks - f64::from(shared[i]))
            } else {
                0.0
            };
            let requests = self.config.decode_active_request_weight * f64::from(requests[i]);
            *cost = if view.tracks_prefill {
                let raw = (prefill[i].cast_signed() as f64 + input_tokens) / block_size;
                self.config.prefill_load_scale * (raw - credit).max(0.0) + decode + requests
            } else if device_weight > 0.0 {
                (decode - credit).max(0.0) + requests
            } else {
                decode + requests
            };
        }
    }

    fn reuse_weights(&self) -> Option<[f64; 2]> {
        Some([
            self.config.host_cache_hit_weight,
            self.config.disk_cache_hit_weight,
        ])
    }

    fn temperature(&self) -> f64 {
        self.config.router_temperature
    }
}
