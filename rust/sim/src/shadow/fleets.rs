//! The shadow fleets themselves: intake, simulation in steps, and changes.

use rustc_hash::FxHashMap;
use wardrop_core::WorkerId;

use super::arm::Arm;
use super::changes::{Change, Changes, TimedChange};
use super::clock_check::ClockCheck;
use super::config::ShadowConfig;
use super::cpu_budget::CpuBudget;
use super::intake::{Arrival, DueArrival, Intake, Observed};
use super::ticks::{ArmResult, Ticks};
use crate::error::SimError;
use crate::live::{EndedRequest, LiveRequest};
use crate::timing::Timing;

/// Number of requests that one [`ShadowFleets::advance`] starts at most, before the caller charges its CPU time.
const STEP: usize = 64;
/// The same bound over all arms, so that more than 16 arms make no step longer.
const STEP_OF_ALL_ARMS: usize = 1024;

/// Counts of requests since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ShadowCounts {
    /// Arrivals pushed.
    pub arrivals: u64,
    /// Arrivals whose simulation started.
    pub simulated: u64,
    /// Arrivals not simulated because too many requests waited or were in flight.
    pub dropped: u64,
    /// Arrivals not taken because the shadow fleets were behind.
    pub passed_over: u64,
    /// Arrivals not simulated because they failed in production.
    pub withdrawn: u64,
    /// Times that the shadow fleets stopped taking requests in.
    pub pauses: u64,
}

/// A request in flight in some arm.
pub(super) struct OpenRequest {
    /// Tick in which the request arrived.
    tick: u64,
    /// Number of arms that have not ended the request.
    arms_left: u32,
}

/// Shadow fleets of one production fleet. The module documentation describes them.
pub struct ShadowFleets {
    pub(super) config: ShadowConfig,
    pub(super) arms: Vec<Arm>,
    pub(super) intake: Intake,
    pub(super) changes: Changes,
    pub(super) ticks: Ticks,
    pub(super) clock_check: ClockCheck,
    pub(super) budget: CpuBudget,
    pub(super) counts: ShadowCounts,
    /// Time of the caller's clock at which the clock of the shadow fleets is 0, seconds. `None` before the
    /// first arrival.
    origin_s: Option<f64>,
    /// Time up to which production is simulated, in seconds of the caller's clock.
    pub(super) reached_s: f64,
    /// Whether arrivals are taken.
    pub(super) taking: bool,
    /// Requests in flight in some arm, by their row.
    pub(super) open: FxHashMap<u64, OpenRequest>,
    /// Row of the next request. Rows count all requests, over all arms alike.
    next_row: u64,
    /// Working memory: requests that ended in the arm that is being advanced.
    ended: Vec<EndedRequest>,
}

impl ShadowFleets {
    /// Idle arms with empty caches.
    ///
    /// # Errors
    /// [`SimError::Config`] when a field is out of range or a policy is unknown.
    pub fn new(config: ShadowConfig) -> Result<Self, SimError> {
        config.validate()?;
        let arms = config
            .arms
            .iter()
            .map(|spec| Arm::new(&config, spec))
            .collect::<Result<Vec<_>, SimError>>()?;
        Ok(Self {
            intake: Intake::new(config.max_waiting, config.max_waiting_blocks),
            changes: Changes::default(),
            ticks: Ticks::new(&config),
            clock_check: ClockCheck::new(config.max_waiting),
            budget: CpuBudget::new(config.cpu_share),
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

    /// Names the workers that the fleet starts with, by pool, so that [`ShadowFleets::change`] can refer to them.
    #[must_use]
    pub fn with_members(mut self, members: &[Vec<WorkerId>]) -> Self {
        self.changes.name_members(members, &self.config.fleet);
        self.arms.iter_mut().for_each(|arm| arm.name_members(members));
        self
    }

    /// Counts of requests since the start.
    pub const fn counts(&self) -> ShadowCounts {
        self.counts
    }

    /// Whether arrivals are taken.
    pub const fn takes(&self) -> bool {
        self.taking
    }

    /// Takes an arrival, to be simulated at least `lag_s` later. O(blocks of the prompt).
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
        let window_s = self.config.lag_s + ticks as f64 * self.config.tick_s;
        let block_size = self.config.fleet.pools[0].engine.block_size;
        let fits = arrival.input_tokens > 0
            && arrival.sequence_hashes.len() >= (arrival.input_tokens / block_size) as usize;
        let behind = arrival.at_s - self.reached_s > window_s;
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

    /// Notes that an arrival at this time was lost before [`ShadowFleets::push`], so that its tick does not count.
    pub fn spoil(&mut self, at_s: f64) {
        if let Some(origin_s) = self.origin_s {
            self.ticks.spoil(self.ticks.at(at_s - origin_s));
        }
    }

    /// Adds what was measured for a request: at its first token, at its end, or both. O(1).
    pub fn outcome(&mut self, id: u64, observed: Observed) {
        if !self.intake.outcome(id, observed)
            && let Some(ttft_s) = observed.ttft_s
            && let Some(pair) = self.clock_check.measured(id, ttft_s)
        {
            self.ticks.paired(&pair);
        }
    }

    /// Notes that a request failed in production. It caused no load there, so it is not simulated if it still waits.
    pub fn withdraw(&mut self, id: u64) {
        self.intake.withdraw(id);
    }

    /// Takes a change of the production fleet at `at_s`, which must not be before an earlier change.
    ///
    /// # Errors
    /// [`SimError::Config`] for a policy or an engine that cannot be built.
    pub fn change(&mut self, at_s: f64, change: Change) -> Result<(), SimError> {
        change.check()?;
        let now = if self.origin_s.is_none() {
            Some(change)
        } else {
            self.changes.push(at_s, change)
        };
        now.map_or(Ok(()), |change| self.apply(at_s, change))
    }

    /// Simulates up to `now_s − lag_s`, at most 64 requests, and 1,024 over all arms, at a time. Returns the number of
    /// requests started.
    ///
    /// Nothing happens while the CPU budget rests. Charge the CPU time with [`ShadowFleets::charge`], and call again
    /// while [`ShadowFleets::is_due`] is true.
    ///
    /// # Errors
    /// [`SimError::Router`] when a router refuses a call that every fleet needs. Build new shadow fleets then.
    pub fn advance(&mut self, now_s: f64) -> Result<usize, SimError> {
        let Some(origin_s) = self.origin_s else {
            return Ok(0);
        };
        if self.budget.resting() {
            return Ok(0);
        }
        let until_s = now_s - self.config.lag_s;
        let step = STEP.min(STEP_OF_ALL_ARMS / self.arms.len()).max(1);
        let mut started = 0;
        while started < step
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
        if started < step {
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

    /// Whether [`ShadowFleets::advance`] has requests to start, and CPU budget to do so.
    pub fn is_due(&self, now_s: f64) -> bool {
        let until_s = now_s - self.config.lag_s;
        !self.budget.resting() && self.intake.next_s().is_some_and(|at_s| at_s <= until_s)
    }

    /// `busy_s` of one core went into the shadow fleets since the last call; it stops while that is more than its share.
    pub fn charge(&mut self, busy_s: f64, now_s: f64) {
        self.budget.charge(busy_s, now_s);
    }

    /// Changes the share of one core; a value outside (0, 1] is ignored.
    pub fn set_cpu_share(&mut self, share: f64) {
        if share > 0.0 && share <= 1.0 {
            self.config.cpu_share = share;
            self.budget.set_share(share);
        }
    }

    /// Changes the limits of goodput, in seconds, and starts the figures again. Values of 0 or below are ignored.
    pub fn set_limits(&mut self, ttft_slo_s: f64, itl_slo_s: f64) {
        if ttft_slo_s > 0.0 && itl_slo_s > 0.0 {
            self.config.ttft_slo_s = ttft_slo_s;
            self.config.itl_slo_s = itl_slo_s;
            self.ticks.set_limits(ttft_slo_s, itl_slo_s);
        }
    }

    /// Changes the timing of one worker in every arm.
    ///
    /// # Errors
    /// [`SimError::Config`] for an additional worker that the simulator refuses.
    pub fn set_worker_timing(
        &mut self,
        pool: usize,
        worker: WorkerId,
        timing: &Timing,
    ) -> Result<(), SimError> {
        self.changes.set_timing(pool, worker, timing, &mut self.arms)
    }

    fn change_until(&mut self, until_s: f64, origin_s: f64) -> Result<(), SimError> {
        while let Some(TimedChange { at_s, change }) = self.changes.pop_until(until_s) {
            self.run_to((at_s - origin_s).max(0.0) * 1e3)?;
            self.apply(at_s, change)?;
        }
        Ok(())
    }

    fn apply(&mut self, at_s: f64, change: Change) -> Result<(), SimError> {
        if self.changes.apply(change, &mut self.arms)? {
            let since_s = self.origin_s.map_or(0.0, |origin_s| at_s - origin_s);
            self.ticks.restart(self.ticks.at(since_s));
        }
        Ok(())
    }

    /// Starts a request in every arm, or drops it if an arm has too many requests in flight.
    fn start(&mut self, waiting: &DueArrival, origin_s: f64) -> Result<(), SimError> {
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
        let arms_left = self.arms.len() as u32;
        self.open.insert(row, OpenRequest { tick, arms_left });
        self.ticks.started(tick);
        self.clock_check.started(row, waiting.id, tick, waiting.ttft_s);
        Ok(())
    }

    /// Runs every arm up to `at_ms`, and adds the requests that ended to their ticks.
    fn run_to(&mut self, at_ms: f64) -> Result<(), SimError> {
        for (index, arm) in self.arms.iter_mut().enumerate() {
            arm.fleet.advance(at_ms, &mut self.ended)?;
            for row in self.ended.drain(..) {
                let Some(request) = self.open.get_mut(&row.id) else {
                    continue;
                };
                let tick = request.tick;
                request.arms_left -= 1;
                let last = request.arms_left == 0;
                if last {
                    self.open.remove(&row.id);
                }
                let result = ArmResult::new(&row);
                self.ticks.ended(tick, index, &result, last);
                if index == 0
                    && let Some(pair) = self.clock_check.simulated(row.id, result.ttft_s())
                {
                    self.ticks.paired(&pair);
                }
            }
        }
        Ok(())
    }
}
