//! Requests by the tick in which they arrived, and what each arm made of them.

use std::collections::VecDeque;

use super::clock_check::Pair;
use super::config::ShadowConfig;
use super::histogram::Tail;
use crate::live::EndedRequest;

/// Limits of goodput.
#[derive(Clone, Copy, Debug)]
struct Limits {
    ttft_s: f64,
    itl_s: f64,
}

/// One request under one arm, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    complete: bool,
    ttft_s: f64,
    e2e_s: f64,
    decode_s: f64,
    gaps: u32,
    input_tokens: u32,
    cached_tokens: u32,
}

impl Row {
    /// Time to first token, s, of a request that was served.
    pub fn ttft_s(&self) -> Option<f64> {
        self.complete.then_some(self.ttft_s)
    }

    pub fn of(row: &EndedRequest) -> Self {
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

/// One arm's sums over a tick.
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
    pub good: f64,
}

impl Sums {
    fn add(&mut self, row: &Row, limits: Limits) {
        if !row.complete {
            self.refused += 1.0;
            return;
        }
        let gaps = f64::from(row.gaps);
        let paced = row.gaps == 0 || row.decode_s / gaps <= limits.itl_s;
        self.complete += 1.0;
        self.ttft_s += row.ttft_s;
        self.e2e_s += row.e2e_s;
        self.decode_s += row.decode_s;
        self.gaps += gaps;
        self.input_tokens += f64::from(row.input_tokens);
        self.cached_tokens += f64::from(row.cached_tokens);
        self.good += f64::from(u8::from(paced && row.ttft_s <= limits.ttft_s));
    }

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

/// Requests that arrived within one tick.
#[derive(Clone, Debug)]
pub(super) struct Tick {
    index: u64,
    open: u64,
    started: u64,
    spoiled: bool,
    pub arms: Vec<Sums>,
    /// Times to first token per arm.
    pub tails: Vec<Tail>,
    /// Requests whose time to first token was both measured and simulated in the first arm, and the sums of both.
    pub measured: u64,
    pub measured_ttft_s: f64,
    pub simulated_ttft_s: f64,
}

/// Ticks that do not count, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Lost {
    /// An arrival could not be taken, or what is compared has changed.
    pub spoiled: u64,
    /// Something was still open after `settle_s`.
    pub unsettled: u64,
    /// Caches were still filling.
    pub warming: u64,
}

#[derive(Debug)]
pub(super) struct Ticks {
    arms: usize,
    tick_s: f64,
    /// Ticks until one is given up.
    settle: u64,
    /// Ticks that may lie between two that are under way: arrivals are heard of before they are simulated.
    far: usize,
    /// Ticks in the window.
    most: usize,
    /// Ticks that do not count after a start.
    warm: u64,
    limits: Limits,
    /// Ticks before this do not count.
    warm_until: u64,
    /// Ticks that are not over, or not ended in all arms; without holes.
    pending: VecDeque<Tick>,
    /// The last whole ones.
    pub window: VecDeque<Tick>,
    pub lost: Lost,
}

impl Ticks {
    pub fn new(config: &ShadowConfig) -> Self {
        Self {
            arms: config.arms.len(),
            tick_s: config.tick_s,
            settle: (config.settle_s / config.tick_s).ceil() as u64,
            far: ((config.settle_s + config.lag_s) / config.tick_s).ceil() as usize
                + 2 * (config.warm_ticks + config.window_ticks),
            most: config.window_ticks,
            warm: config.warm_ticks as u64,
            limits: Limits {
                ttft_s: config.ttft_slo_s,
                itl_s: config.itl_slo_s,
            },
            warm_until: config.warm_ticks as u64,
            pending: VecDeque::new(),
            window: VecDeque::new(),
            lost: Lost::default(),
        }
    }

    /// The tick of a time since the start.
    pub fn at(&self, since_s: f64) -> u64 {
        (since_s.max(0.0) / self.tick_s) as u64
    }

    /// A tick that is not over; made when it is the newest. None when it is over.
    fn pending(&mut self, index: u64) -> Option<&mut Tick> {
        let first = self.pending.front().map_or(index, |tick| tick.index);
        let place = usize::try_from(index.checked_sub(first)?).ok()?;
        // After a long silence the ticks between are not made one by one.
        if place > self.pending.len() + self.far {
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
                tails: vec![Tail::default(); self.arms],
                measured: 0,
                measured_ttft_s: 0.0,
                simulated_ttft_s: 0.0,
            });
        }
        self.pending.get_mut(place)
    }

    pub fn started(&mut self, index: u64) {
        if let Some(tick) = self.pending(index) {
            tick.open += 1;
            tick.started += 1;
        }
    }

    /// A request of tick `index` ended in an arm; `last`: in all of them.
    pub fn ended(&mut self, index: u64, arm: usize, row: &Row, last: bool) {
        let limits = self.limits;
        let first = self.pending.front().map_or(u64::MAX, |tick| tick.index);
        // A tick that was given up on is gone.
        if index >= first
            && let Some(tick) = self.pending(index)
        {
            tick.arms[arm].add(row, limits);
            if let Some(ttft_s) = row.ttft_s() {
                tick.tails[arm].add(ttft_s);
            }
            tick.open = tick.open.saturating_sub(u64::from(last));
        }
    }

    /// What production and the first arm took for a request.
    pub fn paired(&mut self, pair: &Pair) {
        let index = pair.tick;
        let over = self.window.iter_mut().find(|tick| tick.index == index);
        let tick = if over.is_some() {
            over
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

    /// A request of this tick was not simulated: the tick says nothing.
    pub fn spoil(&mut self, index: u64) {
        let over = self.window.back().map_or(0, |tick| tick.index + 1);
        if index >= over
            && let Some(tick) = self.pending(index)
        {
            tick.spoiled = true;
        }
    }

    /// Move the ticks before `until_s` that are over to the window.
    pub fn close_until(&mut self, until_s: f64) {
        let now = self.at(until_s);
        while let Some(front) = self.pending.front() {
            let old = now > front.index + self.settle;
            let whole = front.index < now && front.open == 0;
            if !(whole || old) {
                return;
            }
            let Some(tick) = self.pending.pop_front() else {
                return;
            };
            self.retire(tick, whole);
        }
    }

    fn retire(&mut self, tick: Tick, whole: bool) {
        if tick.index < self.warm_until {
            self.lost.warming += 1;
        } else if tick.spoiled {
            self.lost.spoiled += 1;
        } else if !whole {
            self.lost.unsettled += 1;
        } else if tick.started > 0 {
            self.window.push_back(tick);
            if self.window.len() > self.most {
                self.window.pop_front();
            }
        }
    }

    /// From this tick on something else is compared: what was seen before does not count, nor the first ticks after.
    pub fn restart(&mut self, index: u64) {
        self.pending.iter_mut().for_each(|tick| tick.spoiled = true);
        self.window.clear();
        self.resume(index);
    }

    /// Other limits of goodput: shares under the old ones do not count.
    pub fn set_limits(&mut self, ttft_s: f64, itl_s: f64) {
        self.limits = Limits { ttft_s, itl_s };
        self.pending.iter_mut().for_each(|tick| tick.spoiled = true);
        self.window.clear();
    }

    /// The shadow fleets goes on at this tick, its caches out of date.
    pub fn resume(&mut self, index: u64) {
        self.warm_until = self.warm_until.max(index + self.warm);
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.pending.len() + self.window.len()
    }
}
