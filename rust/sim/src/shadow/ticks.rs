//! Results of every arm, summed over the ticks in which the requests arrived.

use std::collections::VecDeque;

use super::clock_check::TtftPair;
use super::config::ShadowConfig;
use super::histogram::Histogram;
use crate::live::EndedRequest;

/// Limits of a request that counts as good, seconds.
#[derive(Clone, Copy, Debug)]
struct Limits {
    ttft_s: f64,
    itl_s: f64,
}

/// Result of one request in one arm.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArmResult {
    /// Whether all tokens were delivered.
    complete: bool,
    ttft_s: f64,
    e2e_s: f64,
    /// Seconds from the first to the last token.
    decode_s: f64,
    /// Number of gaps between tokens.
    gaps: u32,
    input_tokens: u32,
    cached_tokens: u32,
}

impl ArmResult {
    /// Time to first token in seconds, if the request was served.
    pub fn ttft_s(&self) -> Option<f64> {
        self.complete.then_some(self.ttft_s)
    }

    /// The result of a request that ended.
    pub fn new(row: &EndedRequest) -> Self {
        Self {
            complete: row.complete,
            ttft_s: (row.first_token_ms - row.arrival_ms) * 1e-3,
            e2e_s: (row.end_ms - row.arrival_ms) * 1e-3,
            decode_s: (row.end_ms - row.first_token_ms) * 1e-3,
            gaps: row.output_tokens - 1,
            input_tokens: row.input_tokens,
            cached_tokens: row.cached_tokens.min(row.input_tokens),
        }
    }
}

/// Sums over the requests of one arm in a tick. All fields but `refused` cover completed requests only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub complete: f64,
    pub refused: f64,
    pub ttft_s: f64,
    pub e2e_s: f64,
    pub decode_s: f64,
    pub gaps: f64,
    pub input_tokens: f64,
    pub cached_tokens: f64,
    /// Number of requests within both limits of goodput.
    pub good: f64,
}

impl Sums {
    /// Adds one result. A request that was not served counts as refused, and its times count nowhere.
    fn add(&mut self, result: &ArmResult, limits: Limits) {
        if !result.complete {
            self.refused += 1.0;
            return;
        }
        let gaps = f64::from(result.gaps);
        let meets_itl = result.gaps == 0 || result.decode_s / gaps <= limits.itl_s;
        self.complete += 1.0;
        self.ttft_s += result.ttft_s;
        self.e2e_s += result.e2e_s;
        self.decode_s += result.decode_s;
        self.gaps += gaps;
        self.input_tokens += f64::from(result.input_tokens);
        self.cached_tokens += f64::from(result.cached_tokens);
        self.good += f64::from(u8::from(meets_itl && result.ttft_s <= limits.ttft_s));
    }

    /// Adds the sums of another tick.
    pub fn merge(&mut self, other: &Self) {
        self.complete += other.complete;
        self.refused += other.refused;
        self.ttft_s += other.ttft_s;
        self.e2e_s += other.e2e_s;
        self.decode_s += other.decode_s;
        self.gaps += other.gaps;
        self.input_tokens += other.input_tokens;
        self.cached_tokens += other.cached_tokens;
        self.good += other.good;
    }
}

/// Results of the requests that arrived within one tick.
#[derive(Clone, Debug)]
pub(super) struct Tick {
    index: u64,
    /// Number of requests that some arm has not ended.
    open: u64,
    /// Number of requests that were simulated.
    started: u64,
    /// Whether a request of the tick is missing, or what is compared has changed.
    spoiled: bool,
    /// Sums per arm.
    pub arms: Vec<Sums>,
    /// Times to first token per arm.
    pub ttft: Vec<Histogram>,
    /// Number of requests whose TTFT was both measured in production and simulated in the first arm.
    pub measured: u64,
    /// Sum of the measured times of those requests, in seconds.
    pub measured_ttft_s: f64,
    /// Sum of the simulated times of those requests, in seconds.
    pub simulated_ttft_s: f64,
}

/// Number of ticks that do not count, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LostTicks {
    /// An arrival was not simulated, or what is compared changed.
    pub spoiled: u64,
    /// Some arm had not ended all requests after `settle_s`.
    pub unsettled: u64,
    /// Caches were still filling.
    pub warming: u64,
}

/// Ticks in progress, and the window of complete ticks.
#[allow(clippy::struct_field_names, reason = "the unit of these fields is a tick")]
#[derive(Debug)]
pub(super) struct Ticks {
    arms: usize,
    tick_s: f64,
    /// Age, in ticks, at which a tick that is not complete is dropped.
    settle_ticks: u64,
    /// Largest distance, in ticks, between the newest tick in progress and a new one. Beyond it all ticks in progress
    /// are dropped, so that a long silence does not create one tick after another.
    max_gap_ticks: usize,
    /// Largest number of ticks in the window.
    window_ticks: usize,
    /// Number of ticks after a start that do not count.
    warm_ticks: u64,
    limits: Limits,
    /// Index of the first tick that counts.
    warm_until: u64,
    /// Ticks that are still running or that some arm has not ended. Their indices are consecutive.
    pending: VecDeque<Tick>,
    /// The last complete ticks, oldest first.
    pub window: VecDeque<Tick>,
    pub lost: LostTicks,
}

impl Ticks {
    pub fn new(config: &ShadowConfig) -> Self {
        Self {
            arms: config.arms.len(),
            tick_s: config.tick_s,
            settle_ticks: (config.settle_s / config.tick_s).ceil() as u64,
            max_gap_ticks: ((config.settle_s + config.lag_s) / config.tick_s).ceil() as usize
                + 2 * (config.warm_ticks + config.window_ticks),
            window_ticks: config.window_ticks,
            warm_ticks: config.warm_ticks as u64,
            limits: Limits {
                ttft_s: config.ttft_slo_s,
                itl_s: config.itl_slo_s,
            },
            warm_until: config.warm_ticks as u64,
            pending: VecDeque::new(),
            window: VecDeque::new(),
            lost: LostTicks::default(),
        }
    }

    /// Index of the tick at `since_s` seconds after the start.
    pub fn at(&self, since_s: f64) -> u64 {
        (since_s.max(0.0) / self.tick_s) as u64
    }

    /// The tick with this index, created if it is newer than all others. `None` if the tick is no longer in progress.
    fn pending(&mut self, index: u64) -> Option<&mut Tick> {
        let first = self.pending.front().map_or(index, |tick| tick.index);
        let place = usize::try_from(index.checked_sub(first)?).ok()?;
        if place > self.pending.len() + self.max_gap_ticks {
            self.pending.clear();
            return self.pending(index);
        }
        while self.pending.len() <= place {
            self.pending.push_back(Tick {
                index: first + self.pending.len() as u64,
                open: 0,
                started: 0,
                spoiled: false,
                arms: vec![Sums::default(); self.arms],
                ttft: vec![Histogram::default(); self.arms],
                measured: 0,
                measured_ttft_s: 0.0,
                simulated_ttft_s: 0.0,
            });
        }
        self.pending.get_mut(place)
    }

    /// Counts a request of tick `index` whose simulation starts.
    pub fn started(&mut self, index: u64) {
        if let Some(tick) = self.pending(index) {
            tick.open += 1;
            tick.started += 1;
        }
    }

    /// Adds the result of a request of tick `index` in one arm. `last` is true if every arm has now ended the request.
    pub fn ended(&mut self, index: u64, arm: usize, result: &ArmResult, last: bool) {
        let limits = self.limits;
        let first = self.pending.front().map_or(u64::MAX, |tick| tick.index);
        // A dropped tick takes no results.
        if index >= first
            && let Some(tick) = self.pending(index)
        {
            tick.arms[arm].add(result, limits);
            if let Some(ttft_s) = result.ttft_s() {
                tick.ttft[arm].add(ttft_s);
            }
            tick.open = tick.open.saturating_sub(u64::from(last));
        }
    }

    /// Adds the measured and the simulated time to first token of a request.
    pub fn paired(&mut self, pair: &TtftPair) {
        let index = pair.tick;
        let complete = self.window.iter_mut().find(|tick| tick.index == index);
        let tick = if complete.is_some() {
            complete
        } else {
            let first = self.pending.front().map_or(u64::MAX, |tick| tick.index);
            if index < first { None } else { self.pending(index) }
        };
        if let Some(tick) = tick
            && pair.measured_s.is_finite()
            && pair.measured_s >= 0.0
        {
            tick.measured += 1;
            tick.measured_ttft_s += pair.measured_s;
            tick.simulated_ttft_s += pair.simulated_s;
        }
    }

    /// Marks a tick of which a request was not simulated, so that the tick does not count.
    pub fn spoil(&mut self, index: u64) {
        let first_incomplete = self.window.back().map_or(0, |tick| tick.index + 1);
        if index >= first_incomplete
            && let Some(tick) = self.pending(index)
        {
            tick.spoiled = true;
        }
    }

    /// Moves the complete ticks before `until_s` to the window, in order, and drops the ones that are too old.
    pub fn close_until(&mut self, until_s: f64) {
        let now = self.at(until_s);
        while let Some(front) = self.pending.front() {
            let is_too_old = now > front.index + self.settle_ticks;
            let is_complete = front.index < now && front.open == 0;
            if !(is_complete || is_too_old) {
                return;
            }
            let Some(tick) = self.pending.pop_front() else {
                return;
            };
            self.close(tick, is_complete);
        }
    }

    fn close(&mut self, tick: Tick, is_complete: bool) {
        if tick.index < self.warm_until {
            self.lost.warming += 1;
        } else if tick.spoiled {
            self.lost.spoiled += 1;
        } else if !is_complete {
            self.lost.unsettled += 1;
        } else if tick.started > 0 {
            self.window.push_back(tick);
            if self.window.len() > self.window_ticks {
                self.window.pop_front();
            }
        }
    }

    /// Starts the comparison again at this tick. Earlier ticks do not count, nor do the warm ticks after it.
    pub fn restart(&mut self, index: u64) {
        self.pending.iter_mut().for_each(|tick| tick.spoiled = true);
        self.window.clear();
        self.resume(index);
    }

    /// Changes the limits of goodput, and drops all ticks under the former limits.
    pub fn set_limits(&mut self, ttft_s: f64, itl_s: f64) {
        self.limits = Limits { ttft_s, itl_s };
        self.pending.iter_mut().for_each(|tick| tick.spoiled = true);
        self.window.clear();
    }

    /// Resumes at this tick after a pause. The warm ticks after it do not count, because the caches are out of date.
    pub fn resume(&mut self, index: u64) {
        self.warm_until = self.warm_until.max(index + self.warm_ticks);
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.pending.len() + self.window.len()
    }
}
