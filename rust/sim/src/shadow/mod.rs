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
//!   too few measurements, nothing is to be trusted ([`Trust`]), and [`ShadowFleets::suggest`] is silent: curves 1.5 times too slow
//!   were found to do harm.
//! * **Cheap.** The caller says what it spent ([`ShadowFleets::charge`]). Above `cpu_share` of one core all arms stop where they are
//!   until the account is level, and go on with what has come in meanwhile, later than life. When the shadow fleets are behind by more
//!   than a whole window with its warm-up, or has no room, it takes nothing more in until it has worked off what it has, and
//!   goes on with what comes then, after `warm_ticks` that do not count: a busy fleet is sampled by whole stretches of its
//!   traffic, since thinned out it would be another fleet. Arrivals that are passed over are counted, not kept.
//! * **Alive.** Workers that join or leave ([`Change`]), timing that sharpens, another policy in force: each from the moment on
//!   at which it happened.
//! * **Bounded** in waiting requests, their blocks, requests in flight per arm, changes, ticks and arms; what does not fit is
//!   counted, and its tick does not count for any arm.
//!
//! It starts from the price: an arm is only ever suggested instead of what runs, for a significant gain above `min_gain`.
//! `docs/reports/pricing.md` says why not more. Pure: no clock, no I/O.

mod changes;
mod clock_check;
mod config;
mod cpu_budget;
mod estimate;
mod histogram;
mod intake;
mod report;
mod ticks;

#[cfg(test)]
mod tests;

use rustc_hash::FxHashMap;

pub use changes::Change;
use changes::Changes;
use clock_check::Clock;
pub use config::{ArmSpec, ShadowConfig};
use cpu_budget::Budget;
pub use estimate::Estimate;
pub use intake::{Arrival, Observed};
use intake::{Intake, Waiting};
pub use report::{ArmReport, Figure, ShadowReport, Trust};
pub use ticks::Lost;
use ticks::{Row, Ticks};

use crate::live::{EndedRequest, LiveFleet, LiveRequest};
use crate::{RouterSpec, SimError, Timing};
use wardrop_core::WorkerId;

/// Requests started in one [`ShadowFleets::advance`]: what stands between two looks at the account.
const STEP: usize = 64;

/// One shadow.
struct Arm {
    name: String,
    fleet: LiveFleet,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ShadowCounts {
    /// Arrivals told.
    pub arrivals: u64,
    /// … of which simulated.
    pub simulated: u64,
    /// … not taken because too much waited or was in flight.
    pub dropped: u64,
    /// … not taken because the shadow fleets was behind.
    pub passed_over: u64,
    /// … not simulated because they failed in production.
    pub withdrawn: u64,
    /// Times that the shadow fleets stopped taking requests in.
    pub pauses: u64,
}

/// See the module.
pub struct ShadowFleets {
    config: ShadowConfig,
    arms: Vec<Arm>,
    intake: Intake,
    changes: Changes,
    ticks: Ticks,
    clock: Clock,
    budget: Budget,
    counts: ShadowCounts,
    /// Time of the shadow fleets' clock zero, s.
    origin_s: Option<f64>,
    /// Simulated up to here, on the caller's clock.
    reached_s: f64,
    /// Arrivals are taken in.
    taking: bool,
    /// Rows in flight in some arm: which tick they belong to, and in how many arms they are still open.
    open: FxHashMap<u64, (u64, u32)>,
    next_row: u64,
    ended: Vec<EndedRequest>,
}

impl ShadowFleets {
    /// All arms idle, with empty caches.
    pub fn new(config: ShadowConfig) -> Result<Self, SimError> {
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
            changes: Changes::default(),
            ticks: Ticks::new(&config),
            clock: Clock::new(config.max_waiting),
            budget: Budget::new(config.cpu_share),
            counts: ShadowCounts::default(),
            origin_s: None,
            reached_s: 0.0,
            taking: true,
            open: FxHashMap::default(),
            next_row: 0,
            ended: Vec::new(),
            arms,
            config,
        })
    }

    /// What it was made of.
    pub const fn config(&self) -> &ShadowConfig {
        &self.config
    }

    /// Names for the workers that the fleet begins with, by pool, so that [`ShadowFleets::change`] can speak of them.
    #[must_use]
    pub fn with_members(mut self, members: &[Vec<WorkerId>]) -> Self {
        self.changes.name(members);
        self
    }

    /// Counts since the start.
    pub const fn counts(&self) -> ShadowCounts {
        self.counts
    }

    /// Whether arrivals are taken in.
    pub const fn takes(&self) -> bool {
        self.taking
    }

    /// A request came. It is simulated `lag_s` after this, or later. O(its blocks).
    pub fn push(&mut self, arrival: &Arrival<'_>) {
        self.counts.arrivals += 1;
        if self.origin_s.is_none() {
            self.origin_s = Some(arrival.at_s);
            self.reached_s = arrival.at_s;
        }
        if !self.taking {
            self.counts.passed_over += 1;
            return;
        }
        let ticks = self.config.warm_ticks + self.config.window_ticks;
        let stretch_s = self.config.lag_s + ticks as f64 * self.config.tick_s;
        let block_size = self.config.fleet.pools[0].engine.block_size;
        let fits = arrival.input_tokens > 0
            && arrival.sequence_hashes.len() >= (arrival.input_tokens / block_size) as usize;
        let behind = arrival.at_s - self.reached_s > stretch_s;
        if behind || self.intake.is_full(arrival.sequence_hashes.len()) {
            self.counts.passed_over += 1;
            self.counts.pauses += 1;
            self.taking = false;
            self.spoil(arrival.at_s);
        } else if !fits || !self.intake.push(arrival) {
            self.counts.dropped += 1;
            self.spoil(arrival.at_s);
        }
    }

    /// An arrival of this time never got here: its tick says nothing.
    pub fn spoil(&mut self, at_s: f64) {
        if let Some(origin_s) = self.origin_s {
            self.ticks.spoil(self.ticks.at(at_s - origin_s));
        }
    }

    /// What was measured of a request: at its first token, at its end, or both. O(1).
    pub fn outcome(&mut self, id: u64, observed: Observed) {
        if !self.intake.outcome(id, observed)
            && let Some(ttft_s) = observed.ttft_s
            && let Some(pair) = self.clock.measured(id, ttft_s)
        {
            self.ticks.paired(&pair);
        }
    }

    /// A request failed in production, and was no load there: it is not simulated, if it has not been yet.
    pub fn withdraw(&mut self, id: u64) {
        self.intake.withdraw(id);
    }

    /// Something about the fleet changed at `at_s`; not before an earlier change.
    ///
    /// # Errors
    /// [`SimError`] for a policy or an engine that can not be.
    pub fn change(&mut self, at_s: f64, change: Change) -> Result<(), SimError> {
        change.check()?;
        let now = if self.origin_s.is_none() {
            Some(change)
        } else {
            self.changes.push(at_s, change)
        };
        now.map_or(Ok(()), |change| self.make(at_s, change))
    }

    /// Simulate up to `lag_s` ago, at most 64 requests at once; returns how many requests were started. Nothing happens while
    /// the account is overdrawn. Charge what it took, and call again while [`ShadowFleets::is_due`].
    ///
    /// # Errors
    /// [`SimError`] when a shadow's router refuses what a router must not refuse; the shadow fleets are then of no further use.
    pub fn advance(&mut self, now_s: f64) -> Result<usize, SimError> {
        let Some(origin_s) = self.origin_s else {
            return Ok(0);
        };
        if self.budget.resting() {
            return Ok(0);
        }
        let until_s = now_s - self.config.lag_s;
        let mut started = 0;
        while started < STEP
            && let Some(waiting) = self.intake.pop_until(until_s)
        {
            self.reached_s = waiting.at_s;
            if waiting.withdrawn {
                self.counts.withdrawn += 1;
                continue;
            }
            self.change_until(waiting.at_s, origin_s)?;
            self.start(&waiting, origin_s)?;
            started += 1;
        }
        if started < STEP {
            self.change_until(until_s, origin_s)?;
            self.run_to((until_s - origin_s).max(0.0) * 1e3)?;
            self.reached_s = self.reached_s.max(until_s);
            if !self.taking && self.intake.len() == 0 {
                self.taking = true;
                self.spoil(now_s);
                self.ticks.resume(self.ticks.at(now_s - origin_s));
            }
        }
        self.ticks.close_until(self.reached_s - origin_s);
        Ok(started)
    }

    /// Whether [`ShadowFleets::advance`] has requests left to start, and an account to do so.
    pub fn is_due(&self, now_s: f64) -> bool {
        let until_s = now_s - self.config.lag_s;
        !self.budget.resting() && self.intake.next_s().is_some_and(|at_s| at_s <= until_s)
    }

    /// `busy_s` of one core went into the shadow fleets since the last call; it stops while that is more than its share.
    pub fn charge(&mut self, busy_s: f64, now_s: f64) {
        self.budget.charge(busy_s, now_s);
    }

    /// Another share of one core, in (0, 1].
    pub fn set_cpu_share(&mut self, share: f64) {
        if share > 0.0 && share <= 1.0 {
            self.config.cpu_share = share;
            self.budget.set_share(share);
        }
    }

    /// Other limits of goodput, s; figures start over.
    pub fn set_limits(&mut self, ttft_slo_s: f64, itl_slo_s: f64) {
        if ttft_slo_s > 0.0 && itl_slo_s > 0.0 {
            self.config.ttft_slo_s = ttft_slo_s;
            self.config.itl_slo_s = itl_slo_s;
            self.ticks.set_limits(ttft_slo_s, itl_slo_s);
        }
    }

    /// One worker's engine runs at this timing from now on, in every arm.
    pub fn set_worker_timing(&mut self, pool: usize, worker: WorkerId, timing: &Timing) {
        self.changes.set_timing(pool, worker, timing, &mut self.arms);
    }

    fn change_until(&mut self, until_s: f64, origin_s: f64) -> Result<(), SimError> {
        while let Some((at_s, change)) = self.changes.pop_until(until_s) {
            self.run_to((at_s - origin_s).max(0.0) * 1e3)?;
            self.make(at_s, change)?;
        }
        Ok(())
    }

    fn make(&mut self, at_s: f64, change: Change) -> Result<(), SimError> {
        if self.changes.make(change, &mut self.arms)? {
            let since_s = self.origin_s.map_or(0.0, |origin_s| at_s - origin_s);
            self.ticks.restart(self.ticks.at(since_s));
        }
        Ok(())
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
        self.clock.started(row, waiting.id, tick, waiting.ttft_s);
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
                let made = Row::of(&row);
                self.ticks.ended(tick, index, &made, last);
                if index == 0
                    && let Some(pair) = self.clock.simulated(row.id, made.ttft_s())
                {
                    self.ticks.paired(&pair);
                }
            }
        }
        Ok(())
    }
}

/// An arm's fleet: the common one behind its own routers.
fn fleet(config: &ShadowConfig, routers: &[RouterSpec]) -> Result<LiveFleet, SimError> {
    let mut spec = config.fleet.clone();
    spec.queues = routers.iter().map(|router| router.queue).collect();
    let block_size = spec.pools[0].engine.block_size;
    let handoff_s_per_token = spec.handoff_s_per_token();
    let configs = spec
        .pools
        .iter()
        .zip(routers)
        .map(|(pool, router)| {
            let made = router.config(pool.role, block_size).map(|made| {
                let made = made.with_handoff_s_per_token(handoff_s_per_token);
                // What production has learned its shadows need not learn again.
                match &pool.engine.timing {
                    Timing::Learned(curves) => made.with_curves(*curves),
                    _ => made,
                }
            });
            made.map_err(|error| SimError::Config {
                field: "arm.routers",
                got: error.to_string(),
                need: "a known policy with parameters in range",
            })
        })
        .collect::<Result<Vec<_>, SimError>>()?;
    LiveFleet::new(spec, &configs, config.max_open)
}
