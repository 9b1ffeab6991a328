//! Shadow fleets: what would other policies have made of the traffic that is coming in right now?
//!
//! ```text
//! arrival (hashes, lengths, time) ─▶ push ─┐  lag_s later, its answer's length known
//! outcome (measured TTFT, length) ─────────┴▶ advance ─▶ one LiveFleet per arm ─▶ ticks ─▶ report
//!                                                                        charge(busy) ─▶ rest when over the share
//! ```
//!
//! Every arm is a persistent fleet of the simulator under another policy or other weights, fed the same requests at the
//! same times: no tokens, no text. The first arm runs what production runs, and everything is told relative to it.
//!
//! * **Paired.** Requests are grouped into ticks by arrival. An arm's mean is over the last `window_ticks` whole ticks; its ratio
//!   to the first arm comes with a Student interval over batches of neighbouring ticks (see [`Estimate`]), and counts as
//!   significant when that interval leaves 1 out.
//! * **Doubted.** The first arm's TTFT is held to what was measured for the same requests. Outside `clock_bound`, or with
//!   too few measurements, nothing is to be trusted ([`Trust`]), and [`Twin::suggest`] is silent: curves 1.5 times too slow
//!   were found to do harm.
//! * **Cheap.** The caller says what it spent ([`Twin::charge`]). Above `cpu_share` of one core all arms rest together until
//!   the account is level, and start with `warm_ticks` that do not count. Arrivals meanwhile are counted, not kept.
//! * **Bounded** in waiting requests, their blocks, requests in flight per arm, ticks and arms; what does not fit is
//!   counted, and its tick does not count for any arm.
//!
//! It starts from the price: an arm is only ever suggested instead of what runs, for a significant gain above `min_gain`.
//! `docs/pricing.md` says why not more. Pure: no clock, no I/O.

mod budget;
mod compare;
mod config;
mod intake;
mod report;
mod ticks;

#[cfg(test)]
mod tests;

use rustc_hash::FxHashMap;

use budget::Budget;
pub use compare::Estimate;
pub use config::{ArmSpec, TwinConfig};
pub use intake::{Arrival, Observed};
use intake::{Intake, Waiting};
pub use report::{ArmReport, Figure, Trust, TwinReport};
pub use ticks::Lost;
use ticks::{Row, Ticks};

use crate::sim::{Ended, LiveFleet, LiveRequest, RouterSpec, SimError, Timing};

/// One shadow.
struct Arm {
    name: String,
    fleet: LiveFleet,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TwinCounts {
    /// Arrivals told.
    pub arrivals: u64,
    /// … of which simulated.
    pub simulated: u64,
    /// … not taken because too much waited or was in flight.
    pub dropped: u64,
    /// … not taken because the twin rested.
    pub rested: u64,
    /// Times that the twin went to rest.
    pub rests: u64,
}

/// See the module.
pub struct Twin {
    config: TwinConfig,
    arms: Vec<Arm>,
    intake: Intake,
    ticks: Ticks,
    budget: Budget,
    counts: TwinCounts,
    /// Time of the twin's clock zero, s.
    origin_s: Option<f64>,
    /// Rows in flight in some arm: which tick they belong to, and in how many arms they are still open.
    open: FxHashMap<u64, (u64, u32)>,
    next_row: u64,
    ended: Vec<Ended>,
}

impl Twin {
    /// All arms idle, with empty caches.
    pub fn new(config: TwinConfig) -> Result<Self, SimError> {
        config.validate()?;
        let arm = |spec: &ArmSpec| {
            Ok(Arm {
                name: spec.name.clone(),
                fleet: fleet(&config, &spec.routers)?,
            })
        };
        let arms = config
            .arms
            .iter()
            .map(arm)
            .collect::<Result<Vec<_>, SimError>>()?;
        Ok(Self {
            intake: Intake::new(config.max_waiting, config.max_waiting_blocks),
            ticks: Ticks::new(&config),
            budget: Budget::new(config.cpu_share),
            counts: TwinCounts::default(),
            origin_s: None,
            open: FxHashMap::default(),
            next_row: 0,
            ended: Vec::new(),
            arms,
            config,
        })
    }

    /// What it was made of.
    pub const fn config(&self) -> &TwinConfig {
        &self.config
    }

    /// A request came. It is simulated `lag_s` after this. O(its blocks).
    pub fn push(&mut self, arrival: &Arrival<'_>) {
        self.counts.arrivals += 1;
        let origin_s = *self.origin_s.get_or_insert(arrival.at_s);
        if self.budget.resting() {
            self.counts.rested += 1;
            return;
        }
        let fits = arrival.input_tokens > 0
            && arrival.sequence_hashes.len()
                >= (arrival.input_tokens / self.config.fleet.pools[0].engine.block_size) as usize;
        if !fits || !self.intake.push(arrival) {
            self.counts.dropped += 1;
            self.ticks.spoil(self.ticks.at(arrival.at_s - origin_s));
        }
    }

    /// What was measured of a request: at its first token, at its end, or both. O(1).
    pub fn outcome(&mut self, id: u64, observed: Observed) {
        let (known, at_s) = self.intake.outcome(id, observed);
        if let (Some(ttft_s), Some(at_s), Some(origin_s)) = (known, at_s, self.origin_s) {
            self.ticks.measured(self.ticks.at(at_s - origin_s), ttft_s);
        }
    }

    /// Simulate up to `lag_s` ago; returns how many requests were started.
    ///
    /// # Errors
    /// [`SimError`] when a shadow's router refuses what a router must not refuse; the twin is then of no further use.
    pub fn advance(&mut self, now_s: f64) -> Result<usize, SimError> {
        let Some(origin_s) = self.origin_s else {
            return Ok(0);
        };
        let until_s = now_s - self.config.lag_s;
        let mut started = 0;
        while let Some(waiting) = self.intake.pop_until(until_s) {
            self.start(&waiting, origin_s)?;
            started += 1;
        }
        self.run_to((until_s - origin_s).max(0.0) * 1e3)?;
        self.ticks.close_until(until_s - origin_s);
        Ok(started)
    }

    /// `busy_s` of one core went into the twin since the last call; it rests while that is more than its share.
    pub fn charge(&mut self, busy_s: f64, now_s: f64) {
        let rested = self.budget.resting();
        self.budget.charge(busy_s, now_s);
        match (rested, self.budget.resting()) {
            (false, true) => {
                self.counts.rests += 1;
                self.counts.rested += self.intake.clear() as u64;
                self.ticks.pause();
            }
            (true, false) => {
                let origin_s = self.origin_s.unwrap_or(now_s);
                self.ticks.resume(self.ticks.at(now_s - origin_s));
            }
            _ => {}
        }
    }

    /// All arms' engines of a pool run at this timing from now on: the learned curves, as they sharpen.
    pub fn set_timing(&mut self, pool: usize, timing: &Timing) {
        for arm in &mut self.arms {
            arm.fleet.set_timing(pool, timing);
        }
    }

    fn start(&mut self, waiting: &Waiting, origin_s: f64) -> Result<(), SimError> {
        let at_ms = (waiting.at_s - origin_s).max(0.0) * 1e3;
        self.run_to(at_ms)?;
        let tick = self.ticks.at(waiting.at_s - origin_s);
        if self
            .arms
            .iter()
            .any(|arm| arm.fleet.open() >= self.config.max_open)
        {
            self.counts.dropped += 1;
            self.ticks.spoil(tick);
            return Ok(());
        }
        let row = self.next_row;
        self.next_row += 1;
        for arm in &mut self.arms {
            arm.fleet.push(&LiveRequest {
                id: row,
                at_ms,
                input_tokens: waiting.input_tokens,
                output_tokens: waiting.output_tokens,
                sequence_hashes: &waiting.sequence_hashes,
            })?;
        }
        self.counts.simulated += 1;
        self.open.insert(row, (tick, self.arms.len() as u32));
        self.ticks.started(tick);
        if let Some(ttft_s) = waiting.ttft_s {
            self.ticks.measured(tick, ttft_s);
        } else {
            self.intake.follow(waiting.id, waiting.at_s);
        }
        Ok(())
    }

    fn run_to(&mut self, at_ms: f64) -> Result<(), SimError> {
        for (index, arm) in self.arms.iter_mut().enumerate() {
            arm.fleet.advance(at_ms, &mut self.ended)?;
            for row in self.ended.drain(..) {
                let Some((tick, left)) = self.open.get_mut(&row.id) else {
                    continue;
                };
                let tick = *tick;
                *left -= 1;
                let last = *left == 0;
                if last {
                    self.open.remove(&row.id);
                }
                self.ticks.ended(tick, index, &Row::of(&row), last);
            }
        }
        Ok(())
    }
}

/// An arm's fleet: the common one behind its own routers.
fn fleet(config: &TwinConfig, routers: &[RouterSpec]) -> Result<LiveFleet, SimError> {
    let mut spec = config.fleet.clone();
    spec.queues = routers.iter().map(|router| router.queue).collect();
    let block_size = spec.pools[0].engine.block_size;
    let handoff_s_per_token = spec.handoff_s_per_token();
    let configs = spec
        .pools
        .iter()
        .zip(routers)
        .map(|(pool, router)| {
            router
                .config(pool.role, block_size)
                .map(|made| made.with_handoff_s_per_token(handoff_s_per_token))
                .map_err(|error| SimError::Config {
                    field: "arm.routers",
                    got: error.to_string(),
                    need: "a known policy with parameters in range",
                })
        })
        .collect::<Result<Vec<_>, SimError>>()?;
    LiveFleet::new(spec, &configs, config.max_open)
}
