//! Report of shadow fleets: figures per arm, ratios to the first arm, trust, and the arm to adopt.

use serde::Serialize;

use super::arm::Arm;
use super::fleets::{ShadowCounts, ShadowFleets};
use super::histogram::{Histogram, bin_error};
use super::limit::Limit;
use super::ticks::{LostTicks, Sums, Tick};
use crate::estimate::{BatchSums, Estimate, jackknife, mean, ratio};

/// Level of a suggestion over all arms together.
const SUGGESTION_LEVEL: f64 = 0.05;

/// A figure by which arms are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Mean time to first token, in seconds.
    Ttft,
    /// Mean time between tokens, in seconds.
    Itl,
    /// Mean time to last token, in seconds.
    E2e,
    /// Share of prompt tokens found in caches.
    CachedShare,
    /// Share of requests within both limits of goodput.
    Goodput,
}

impl Figure {
    /// The figure with this name in reports.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "ttft" => Self::Ttft,
            "itl" => Self::Itl,
            "e2e" => Self::E2e,
            "cached_share" => Self::CachedShare,
            "goodput" => Self::Goodput,
            _ => return None,
        })
    }

    const fn sums(self, sums: &Sums) -> BatchSums {
        let (numerator, denominator) = match self {
            Self::Ttft => (sums.ttft_s, sums.complete),
            Self::Itl => (sums.decode_s, sums.gaps),
            Self::E2e => (sums.e2e_s, sums.complete),
            Self::CachedShare => (sums.cached_tokens, sums.input_tokens),
            Self::Goodput => (sums.good, sums.complete + sums.refused),
        };
        BatchSums {
            numerator,
            denominator,
        }
    }

    const fn higher_is_better(self) -> bool {
        matches!(self, Self::CachedShare | Self::Goodput)
    }
}

/// Figures of one arm over the window. A figure without data, or with fewer than four batches, is `None`.
///
/// A ratio is the arm's figure divided by the first arm's figure, paired by batch. The first arm has no ratios.
#[derive(Clone, Debug, Serialize)]
pub struct ArmReport {
    /// Name of the arm.
    pub name: String,
    /// Number of requests of the window that the arm completed.
    pub completed: u64,
    /// Number of requests of the window that the arm refused.
    pub refused: u64,
    /// Number of requests in flight now.
    pub open: usize,
    /// Mean time to first token, in seconds.
    pub ttft_s: Option<Estimate>,
    /// 99 % quantile of the time to first token, in seconds, exact to 1 %. It needs at least 100 requests.
    pub ttft_p99_s: Option<Estimate>,
    /// Mean time between tokens, in seconds.
    pub itl_s: Option<Estimate>,
    /// Mean time to last token, in seconds.
    pub e2e_s: Option<Estimate>,
    /// Share of prompt tokens found in caches.
    pub cached_share: Option<Estimate>,
    /// Share of requests within both limits of goodput.
    pub goodput: Option<Estimate>,
    /// Ratio of the mean times to first token.
    pub ttft_ratio: Option<Estimate>,
    /// Ratio of the 99 % quantiles of the time to first token.
    pub ttft_p99_ratio: Option<Estimate>,
    /// Ratio of the mean times between tokens.
    pub itl_ratio: Option<Estimate>,
    /// Ratio of the mean times to last token.
    pub e2e_ratio: Option<Estimate>,
    /// Ratio of the shares of prompt tokens found in caches.
    pub cached_share_ratio: Option<Estimate>,
    /// Ratio of the goodputs.
    pub goodput_ratio: Option<Estimate>,
}

/// What relaxing one limit of the fleet saves, over the window. A figure with fewer than four batches is `None`.
///
/// A saving is a share of the first arm's mean time, paired by batch: 0.2 is 20 % less, and a negative share is a loss.
#[derive(Clone, Debug, Serialize)]
pub struct LimitReport {
    /// The limit.
    pub limit: Limit,
    /// Number of requests of the window that the arm completed.
    pub completed: u64,
    /// Number of requests of the window that the first arm completed.
    pub completed_in_force: u64,
    /// Share of the mean time to first token.
    pub ttft_saving: Option<Estimate>,
    /// Share of the mean time to last token.
    pub e2e_saving: Option<Estimate>,
}

/// The share of the first arm's time that an arm with this ratio of times saves.
fn saving(ratio: Estimate) -> Estimate {
    Estimate {
        value: 1.0 - ratio.value,
        low: 1.0 - ratio.high,
        high: 1.0 - ratio.low,
        p: ratio.p,
    }
}

/// Whether the figures can be trusted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trust {
    /// Whether the figures can be trusted.
    pub trusted: bool,
    /// Mean simulated TTFT of the first arm divided by the mean measured TTFT of the same requests.
    pub clock_ratio: Option<f64>,
    /// Largest trusted value of `clock_ratio` and of its inverse.
    pub clock_bound: f64,
    /// Number of measured requests in the window.
    pub measured: u64,
    /// Why the figures cannot be trusted; `None` if they can.
    pub reason: Option<&'static str>,
}

/// Report of all arms.
#[derive(Clone, Debug, Serialize)]
pub struct ShadowReport {
    /// Reports of the arms without a limit, in the order of the configuration. The first arm runs what production runs.
    pub arms: Vec<ArmReport>,
    /// What relaxing one limit of the fleet saves, in the order of the configuration.
    pub limits: Vec<LimitReport>,
    /// Whether the figures can be trusted.
    pub trust: Trust,
    /// Number of ticks that the figures cover.
    pub ticks: usize,
    /// Largest number of ticks that the figures can cover.
    pub window_ticks: usize,
    /// Number of ticks that do not count, by cause.
    pub lost_ticks: LostTicks,
    /// Counts of requests since the start.
    pub counts: ShadowCounts,
    /// Number of requests that wait to be simulated.
    pub waiting: usize,
    /// Share of one core used recently.
    pub busy_share: f64,
    /// Share of one core that the simulation may use.
    pub cpu_share: f64,
    /// Whether the simulation rests because it used more than its share.
    pub resting: bool,
    /// Whether arrivals are taken. Otherwise the simulation is behind and passes arrivals over.
    pub taking: bool,
    /// Time up to which production is simulated, in seconds of the caller's clock; 0 before the first request.
    pub reached_s: f64,
    /// Largest time to first token of a request that counts as good, in seconds.
    pub ttft_slo_s: f64,
    /// Largest mean time between tokens of a request that counts as good, in seconds.
    pub itl_slo_s: f64,
}

impl ShadowFleets {
    /// The report over the window. O(arms · window).
    pub fn report(&self) -> ShadowReport {
        ShadowReport {
            arms: (0..self.routed_arms()).map(|arm| self.arm_report(arm)).collect(),
            limits: self.limit_reports(),
            trust: self.trust(),
            ticks: self.ticks.window.len(),
            window_ticks: self.config.window_ticks,
            lost_ticks: self.ticks.lost,
            counts: self.counts,
            waiting: self.intake.len(),
            busy_share: self.budget.recent(),
            cpu_share: self.config.cpu_share,
            resting: self.budget.resting(),
            taking: self.taking,
            reached_s: self.reached_s,
            ttft_slo_s: self.config.ttft_slo_s,
            itl_slo_s: self.config.itl_slo_s,
        }
    }

    /// The arm to run instead of the first one: the best in `figure` among the arms that `may_adopt` accepts.
    ///
    /// The report must be trusted, and the arm's gain must exceed `min_gain` and be significant at 5 % over all arms
    /// together (Bonferroni). The correction counts every arm without a limit, also one that `may_adopt` rejects. `None`
    /// means to stay.
    pub fn suggest_among(&self, figure: Figure, may_adopt: impl Fn(usize) -> bool) -> Option<&str> {
        if !self.trust().trusted {
            return None;
        }
        let rivals = self.routed_arms() - 1;
        let mut best: Option<(f64, usize)> = None;
        for arm in (1..self.routed_arms()).filter(|arm| may_adopt(*arm)) {
            let Some(found) = self.ratio(arm, figure) else {
                continue;
            };
            let cost = if figure.higher_is_better() {
                1.0 / found.value
            } else {
                found.value
            };
            let is_significant = found.p < SUGGESTION_LEVEL / rivals as f64;
            if is_significant
                && cost < 1.0 - self.config.min_gain
                && best.is_none_or(|(least, _)| cost < least)
            {
                best = Some((cost, arm));
            }
        }
        best.map(|(_, arm)| self.arms[arm].name.as_str())
    }

    /// Number of arms that relax no limit. They come first.
    fn routed_arms(&self) -> usize {
        self.arms.iter().take_while(|arm| arm.limit.is_none()).count()
    }

    fn limit_reports(&self) -> Vec<LimitReport> {
        let report = |(index, arm): (usize, &Arm)| {
            let completed = |arm: usize| {
                let ticks = self.ticks.window.iter();
                ticks.map(|tick| tick.arms[arm].complete).sum::<f64>() as u64
            };
            Some(LimitReport {
                limit: arm.limit?,
                completed: completed(index),
                completed_in_force: completed(0),
                ttft_saving: self.ratio(index, Figure::Ttft).map(saving),
                e2e_saving: self.ratio(index, Figure::E2e).map(saving),
            })
        };
        self.arms.iter().enumerate().filter_map(report).collect()
    }

    /// Sums of the figure over each batch of the window. The oldest ticks are left out if they do not fill a batch.
    fn batches(&self, arm: usize, figure: Figure) -> Vec<BatchSums> {
        let ticks: Vec<&Tick> = self.ticks.window.iter().collect();
        ticks
            .rchunks_exact(self.config.batch_ticks)
            .map(|batch| {
                let mut sums = Sums::default();
                for tick in batch {
                    sums.merge(&tick.arms[arm]);
                }
                figure.sums(&sums)
            })
            .collect()
    }

    fn ratio(&self, arm: usize, figure: Figure) -> Option<Estimate> {
        ratio(&self.batches(arm, figure), &self.batches(0, figure))
    }

    /// 99 % quantile of the TTFT over the window, in seconds, without the batch `without` if it is given.
    fn p99_s(&self, arm: usize, without: Option<usize>) -> Option<f64> {
        let ticks: Vec<&Tick> = self.ticks.window.iter().collect();
        let batches = ticks.rchunks_exact(self.config.batch_ticks).enumerate();
        let kept = batches.filter(|(batch, _)| Some(*batch) != without);
        Histogram::p99_s(kept.flat_map(|(_, batch)| batch).map(|tick| &tick.ttft[arm]))
    }

    /// 99 % quantile of an arm's TTFT, divided by the quantile of the arm `base` if it is given.
    fn p99(&self, arm: usize, base: Option<usize>) -> Option<Estimate> {
        let log = |without| {
            let base_s = base.map_or(Some(1.0), |base| self.p99_s(base, without))?;
            Some((self.p99_s(arm, without)? / base_s).ln())
        };
        let batches = self.ticks.window.len() / self.config.batch_ticks;
        let without = (0..batches)
            .map(|batch| log(Some(batch)))
            .collect::<Option<Vec<_>>>()?;
        jackknife(log(None)?, &without, bin_error())
    }

    fn arm_report(&self, arm: usize) -> ArmReport {
        let of = |figure| mean(&self.batches(arm, figure));
        let versus = |figure| (arm > 0).then(|| self.ratio(arm, figure)).flatten();
        let sum = |get: fn(&Sums) -> f64| {
            self.ticks
                .window
                .iter()
                .map(|tick| get(&tick.arms[arm]))
                .sum::<f64>() as u64
        };
        ArmReport {
            name: self.arms[arm].name.clone(),
            completed: sum(|sums| sums.complete),
            refused: sum(|sums| sums.refused),
            open: self.arms[arm].fleet.open(),
            ttft_s: of(Figure::Ttft),
            ttft_p99_s: self.p99(arm, None).map(|p99| Estimate { p: f64::NAN, ..p99 }),
            itl_s: of(Figure::Itl),
            e2e_s: of(Figure::E2e),
            cached_share: of(Figure::CachedShare),
            goodput: of(Figure::Goodput),
            ttft_ratio: versus(Figure::Ttft),
            ttft_p99_ratio: (arm > 0).then(|| self.p99(arm, Some(0))).flatten(),
            itl_ratio: versus(Figure::Itl),
            e2e_ratio: versus(Figure::E2e),
            cached_share_ratio: versus(Figure::CachedShare),
            goodput_ratio: versus(Figure::Goodput),
        }
    }

    fn trust(&self) -> Trust {
        let window = &self.ticks.window;
        let measured: u64 = window.iter().map(|tick| tick.measured).sum();
        let measured_s: f64 = window.iter().map(|tick| tick.measured_ttft_s).sum();
        let simulated_s: f64 = window.iter().map(|tick| tick.simulated_ttft_s).sum();
        let clock_ratio = (measured > 0 && measured_s > 0.0).then(|| simulated_s / measured_s);
        let bound = self.config.clock_bound;
        let least_ticks = 4 * self.config.batch_ticks;
        let reason = if window.len() < least_ticks {
            Some("too few complete ticks yet")
        } else if measured < self.config.clock_least {
            Some("too few measured requests to check the clock")
        } else if clock_ratio.is_none_or(|ratio| ratio > bound || ratio < 1.0 / bound) {
            Some("simulated and measured time to first token differ too much")
        } else {
            None
        };
        Trust {
            trusted: reason.is_none(),
            clock_ratio,
            clock_bound: bound,
            measured,
            reason,
        }
    }
}
