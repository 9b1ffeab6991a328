//! The figures of one model's meter, for metrics, status and live page.

use serde::Serialize;
use wardrop_sim::bound::{PriceEstimate, WindowPrice};

use super::evidence::CurveEvidence;

/// Why a model has no figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Missing {
    /// No window has ended.
    NoWindow,
    /// The windows hold too few finished requests.
    FewRequests,
    /// The latency curves have too few samples.
    NoCurves,
    /// A role has no worker.
    NoWorker,
    /// The bound does not cover the fleet, or the fleet changed its roles within the window.
    NotCovered,
}

impl Missing {
    /// Name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoWindow => "no_window",
            Self::FewRequests => "few_requests",
            Self::NoCurves => "no_curves",
            Self::NoWorker => "no_worker",
            Self::NotCovered => "not_covered",
        }
    }
}

/// Paid over lower bound: the price of anarchy is at most `value`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct BoundFigure {
    pub value: f64,
    /// Bounds of the 95 % interval over windows; `None` with fewer than 4 windows.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Requests in the figure.
    pub requests: usize,
}

impl From<PriceEstimate> for BoundFigure {
    fn from(estimate: PriceEstimate) -> Self {
        Self {
            value: estimate.value,
            low: estimate.interval.map(|(low, _)| low),
            high: estimate.interval.map(|(_, high)| high),
            requests: estimate.requests,
        }
    }
}

/// Upper ends of the price of anarchy of one model, and what they rest on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BoundReport {
    /// By the time to the first token.
    pub ttft: Option<BoundFigure>,
    /// By the time to the last token.
    pub e2e: Option<BoundFigure>,
    /// Why both figures are missing; `None` while there is one.
    pub missing: Option<Missing>,
    /// What the bound refused, in words.
    pub detail: Option<String>,
    /// Windows behind the figures.
    pub windows: usize,
    /// Seconds since the newest window was computed.
    pub age_s: Option<f64>,
    /// Curves behind the newest window.
    pub curves: CurveEvidence,
    /// Requests that no window took, to keep the share of a core or the limits of memory, since the start.
    pub passed_over: u64,
    /// Times that the history of blocks began again after such requests, since the start.
    pub history_restarts: u64,
    /// Blocks in the history.
    pub history_blocks: usize,
    /// CPU time since the start, in seconds.
    pub cpu_s: f64,
}

/// One window with its bound.
pub(super) struct PricedWindow {
    pub at_s: f64,
    pub price: WindowPrice,
}
