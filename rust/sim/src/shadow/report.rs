//! What the shadows say, and whether to believe them.

use serde::Serialize;

use super::estimate::{Estimate, Pair, jackknife, mean, ratio};
use super::histogram::{Tail, bin_error};
use super::ticks::{Lost, Sums, Tick};
use super::{ShadowCounts, ShadowFleets};

/// A figure that arms are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Mean time to first token, s.
    Ttft,
    /// Mean time between tokens, s.
    Itl,
    /// Mean time to last token, s.
    E2e,
    /// Share of prompt tokens found in caches.
    CachedShare,
    /// Share of requests within both limits.
    Goodput,
}

impl Figure {
    /// By its name in reports.
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

    const fn pair(self, sums: &Sums) -> Pair {
        match self {
            Self::Ttft => (sums.ttft_s, sums.complete),
            Self::Itl => (sums.decode_s, sums.gaps),
            Self::E2e => (sums.e2e_s, sums.complete),
            Self::CachedShare => (sums.cached_tokens, sums.input_tokens),
            Self::Goodput => (sums.good, sums.complete + sums.refused),
        }
    }

    const fn higher_is_better(self) -> bool {
        matches!(self, Self::CachedShare | Self::Goodput)
    }
}

/// One arm over the window. A figure without data, or with fewer than four batches, is `None`.
#[derive(Clone, Debug, Serialize)]
pub struct ArmReport {
    /// As configured.
    pub name: String,
    /// Requests of the window that it completed.
    pub completed: u64,
    /// … that it refused.
    pub refused: u64,
    /// In flight now.
    pub open: usize,
    /// Mean time to first token, s.
    pub ttft_s: Option<Estimate>,
    /// 99 % point of the time to first token, s, to 1 %; of at least 100 requests.
    pub ttft_p99_s: Option<Estimate>,
    /// Mean time between tokens, s.
    pub itl_s: Option<Estimate>,
    /// Mean time to last token, s.
    pub e2e_s: Option<Estimate>,
    /// Share of prompt tokens found in caches.
    pub cached_share: Option<Estimate>,
    /// Share of requests within both limits.
    pub goodput: Option<Estimate>,
    /// Mean TTFT ÷ the first arm's, paired.
    pub ttft_ratio: Option<Estimate>,
    /// 99 % point of TTFT ÷ the first arm's, paired.
    pub ttft_p99_ratio: Option<Estimate>,
    /// Mean time between tokens ÷ the first arm's, paired.
    pub itl_ratio: Option<Estimate>,
    /// Mean E2E ÷ the first arm's, paired.
    pub e2e_ratio: Option<Estimate>,
    /// Share of prompt tokens found in caches ÷ the first arm's, paired.
    pub cached_share_ratio: Option<Estimate>,
    /// Goodput ÷ the first arm's, paired.
    pub goodput_ratio: Option<Estimate>,
}

/// Whether the shadows may be believed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trust {
    /// They may.
    pub trusted: bool,
    /// Mean simulated TTFT of the first arm ÷ mean measured one, of the requests of the window that were measured.
    pub clock_ratio: Option<f64>,
    /// How far it, or its inverse, may be above 1.
    pub clock_bound: f64,
    /// Measured requests in the window.
    pub measured: u64,
    /// Why not.
    pub reason: Option<&'static str>,
}

/// Everything at once.
#[derive(Clone, Debug, Serialize)]
pub struct ShadowReport {
    /// In the order of the configuration: the first is what runs.
    pub arms: Vec<ArmReport>,
    /// Whether to believe it.
    pub trust: Trust,
    /// Ticks behind the figures.
    pub ticks: usize,
    /// … of so many at most.
    pub window_ticks: usize,
    /// Ticks that do not count.
    pub lost_ticks: Lost,
    /// Since the start.
    pub counts: ShadowCounts,
    /// Requests that wait for their time.
    pub waiting: usize,
    /// Share of one core used of late.
    pub busy_share: f64,
    /// What it may use.
    pub cpu_share: f64,
    /// Stopped for now, because it used more.
    pub resting: bool,
    /// Requests are taken in; else it works off what it has, and passes them over.
    pub taking: bool,
    /// Simulated up to here, s of the caller's clock; 0 before the first request.
    pub reached_s: f64,
    /// Goodput: time to first token at most, s.
    pub ttft_slo_s: f64,
    /// Goodput: mean time between a request's tokens at most, s.
    pub itl_slo_s: f64,
}

impl ShadowFleets {
    /// What each arm would have given over the window. O(arms · window).
    pub fn report(&self) -> ShadowReport {
        ShadowReport {
            arms: (0..self.arms.len()).map(|arm| self.arm_report(arm)).collect(),
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

    /// The arm to run instead of the first: the best in `figure` among those whose gain is trusted, above `min_gain` and
    /// significant at 5 % over all arms together (Bonferroni). None: stay.
    pub fn suggest(&self, figure: Figure) -> Option<&str> {
        self.suggest_among(figure, |_| true)
    }

    /// The same among the arms, by their index, that `may` be adopted. The test is over all of them all the same.
    pub fn suggest_among(&self, figure: Figure, may: impl Fn(usize) -> bool) -> Option<&str> {
        if !self.trust().trusted {
            return None;
        }
        let rivals = self.arms.len() - 1;
        let mut best: Option<(f64, usize)> = None;
        for arm in (1..self.arms.len()).filter(|arm| may(*arm)) {
            let Some(found) = self.ratio(arm, figure) else {
                continue;
            };
            let cost = if figure.higher_is_better() {
                1.0 / found.value
            } else {
                found.value
            };
            let sure = found.p < 0.05 / rivals as f64;
            if sure && cost < 1.0 - self.config.min_gain && best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, arm));
            }
        }
        best.map(|(_, arm)| self.arms[arm].name.as_str())
    }

    fn batches(&self, arm: usize, figure: Figure) -> Vec<Pair> {
        let ticks: Vec<&Tick> = self.ticks.window.iter().collect();
        // The oldest ticks are left out when they do not fill a batch.
        ticks
            .rchunks_exact(self.config.batch_ticks)
            .map(|batch| {
                let mut sums = Sums::default();
                for tick in batch {
                    sums.merge(&tick.arms[arm]);
                }
                figure.pair(&sums)
            })
            .collect()
    }

    fn ratio(&self, arm: usize, figure: Figure) -> Option<Estimate> {
        ratio(&self.batches(arm, figure), &self.batches(0, figure))
    }

    /// The window without one of its batches, or whole.
    fn p99_s(&self, arm: usize, without: Option<usize>) -> Option<f64> {
        let ticks: Vec<&Tick> = self.ticks.window.iter().collect();
        let batches = ticks.rchunks_exact(self.config.batch_ticks).enumerate();
        let kept = batches.filter(|(batch, _)| Some(*batch) != without);
        Tail::p99_s(kept.flat_map(|(_, batch)| batch).map(|tick| &tick.tails[arm]))
    }

    /// An arm's 99 % point of TTFT, over another arm's where that is given.
    fn p99(&self, arm: usize, over: Option<usize>) -> Option<Estimate> {
        let log = |without| {
            let base_s = over.map_or(Some(1.0), |over| self.p99_s(over, without))?;
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
            Some("too few whole ticks yet")
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
