//! The live price of anarchy of one pool: it records decisions and reports gauges, at a bounded share of a core.
//!
//! Recording is O(workers) per decision. Solving happens on a thread of its own, one window after another. Both are charged to one
//! account of CPU time, which [`BUDGET_SHARE`] of a core pays off. While the account is overdrawn, no decision is recorded and the open
//! window is closed. A busy gateway thus samples whole stretches of decisions, because a window with missing decisions is wrong.
//!
//! It stands beside the path of a request: [`WorkerPool`](super::WorkerPool) hands over the
//! decisions that the router kept, and the metrics page reads the report. Memory: 3·m² numbers for
//! a window of m arrivals, two closed windows, and [`MAX_OPEN`] predictions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wardrop_core::RequestId;
use wardrop_core::anarchy::{Calibration, Meter, MeterConfig, MeterReport, ModelError, RecordedDecision};

/// Share of one core that recording and solving may take.
pub const BUDGET_SHARE: f64 = 0.01;
/// Debt at which recording stops, seconds of CPU; it begins again at 0.
const CREDIT_S: f64 = 0.02;
/// CPU time that recording a decision costs under the router's lock, per candidate. It is above the 40 to 50 ns that
/// `cost_of_keeping_a_decision` (`rust/core/tests/toll.rs`) measures.
const KEEP_PER_WORKER: Duration = Duration::from_nanos(60);
/// CPU time that recording a decision costs under the router's lock, regardless of the number of
/// candidates.
const KEEP_ONCE: Duration = Duration::from_nanos(400);
/// Most predictions that wait for their outcome.
const MAX_OPEN: usize = 4096;
/// Age at which a prediction without an outcome is dropped, in seconds.
const OPEN_S: f64 = 900.0;
/// Most workers of a pool that is measured: a window of m arrivals holds 3·m² numbers.
const MAX_WORKERS: usize = 512;
/// Most closed windows that wait for the solver.
const MAX_PENDING: usize = 2;

/// Recorder and solver of one pool's windows.
pub(super) struct AnarchyMeter {
    /// Whether the account allows recording. Read without the lock by every decision.
    wanted: AtomicBool,
    /// CPU time charged since the start, in nanoseconds; an upper bound, because a preempted thread
    /// is charged for its pause.
    spent_ns: AtomicU64,
    /// Decisions taken into a window since the start.
    recorded: AtomicU64,
    /// Windows and account. Held while decisions are recorded, never while a window is solved.
    state: Mutex<State>,
}

/// Windows, open predictions and the account of CPU time.
struct State {
    /// Windows of decisions, and the estimators over the solved ones.
    meter: Meter,
    /// Predicted against observed times between tokens.
    itl: Calibration,
    /// Generation of the fleet in the last decision. A window never spans two generations, because
    /// its costs have one column per worker.
    generation: u64,
    /// Predictions by request; at most [`MAX_OPEN`]. A request beyond them is recorded without its
    /// prediction.
    open: HashMap<RequestId, Open>,
    /// CPU time charged and not yet paid off, in seconds; 0 or above.
    debt_s: f64,
    /// Time up to which the account is paid off.
    settled: Instant,
}

/// A prediction of a request's times that waits for the observed times.
#[allow(clippy::struct_field_names, reason = "all of them are seconds")]
struct Open {
    /// Time of the decision, in seconds of the service's clock.
    sent_s: f64,
    /// Predicted seconds from the decision to the first token: wait and prefill on the chosen
    /// worker.
    first_token_s: f64,
    /// Predicted seconds between two tokens; 0 without a prediction.
    step_s: f64,
    /// Time of the first token; `None` before it.
    first_s: Option<f64>,
}

/// The figures of one pool.
#[derive(Clone, Debug)]
pub(crate) struct AnarchyReport {
    /// The estimators and the error of predicted times to first token.
    pub meter: MeterReport,
    /// Error of the predicted time between tokens.
    pub itl_error: ModelError,
    /// Decisions taken into a window, since the start.
    pub recorded: u64,
    /// CPU seconds spent on recording and solving, since the start.
    pub spent_s: f64,
}

impl AnarchyMeter {
    /// A meter without decisions, ready to record.
    pub fn new() -> Self {
        let config = MeterConfig {
            max_pending: MAX_PENDING,
            ..MeterConfig::default()
        };
        Self {
            wanted: AtomicBool::new(true),
            spent_ns: AtomicU64::new(0),
            recorded: AtomicU64::new(0),
            state: Mutex::new(State {
                meter: Meter::new(config),
                itl: Calibration::default(),
                generation: 0,
                open: HashMap::new(),
                debt_s: 0.0,
                settled: Instant::now(),
            }),
        }
    }

    /// Whether a decision of a pool with this number of workers is recorded now.
    pub fn wants(&self, workers: usize) -> bool {
        workers <= MAX_WORKERS && self.wanted.load(Ordering::Relaxed)
    }

    /// Records decisions, oldest first.
    ///
    /// The charge counts what recording cost under the router's lock as well, by [`KEEP_ONCE`] and
    /// [`KEEP_PER_WORKER`]. A decision that the meter refuses, for example with a cost that is not
    /// finite, is passed over.
    pub fn record(&self, decisions: &[RecordedDecision]) {
        if decisions.is_empty() {
            return;
        }
        let started = Instant::now();
        let mut state = self.state.lock();
        let mut kept = Duration::ZERO;
        for one in decisions {
            let workers = one.costs.prefill_s.len();
            kept += KEEP_ONCE + KEEP_PER_WORKER * u32::try_from(workers).unwrap_or(u32::MAX);
            if one.generation != state.generation {
                state.meter.cut();
                state.generation = one.generation;
            }
            if state.meter.record(&one.costs, &one.peer_decode_s).is_err() {
                continue;
            }
            self.recorded.fetch_add(1, Ordering::Relaxed);
            if state.open.len() < MAX_OPEN {
                let chosen = one.costs.chosen;
                let open = Open {
                    sent_s: one.costs.at_s,
                    first_token_s: one.costs.wait_s[chosen] + one.costs.prefill_s[chosen],
                    step_s: one.step_s,
                    first_s: None,
                };
                state.open.insert(one.request, open);
            }
        }
        self.charge(&mut state, kept + started.elapsed());
        if state.debt_s > CREDIT_S {
            self.wanted.store(false, Ordering::Relaxed);
            // The next decisions are not recorded, and no window may span the hole.
            state.meter.cut();
        }
    }

    /// Compares the time of a request's first token with its prediction.
    ///
    /// Only the first call for a request counts. A request without an open prediction is ignored.
    pub fn first_token(&self, request: RequestId, now_s: f64) {
        let state = &mut *self.state.lock();
        if let Some(open) = state.open.get_mut(&request).filter(|open| open.first_s.is_none()) {
            open.first_s = Some(now_s);
            state
                .meter
                .record_outcome(open.first_token_s, now_s - open.sent_s);
        }
    }

    /// Compares the end of a request with its prediction; `output_tokens` is `None` when it is unknown.
    ///
    /// The observed time between tokens is the mean over the answer after its first token, so an
    /// answer of one token has none.
    pub fn finish(&self, request: RequestId, output_tokens: Option<u32>, now_s: f64) {
        let state = &mut *self.state.lock();
        let Some(open) = state.open.remove(&request) else {
            return;
        };
        if let (Some(first_s), Some(tokens @ 2..)) = (open.first_s, output_tokens)
            && open.step_s > 0.0
        {
            state
                .itl
                .record(open.step_s, (now_s - first_s) / f64::from(tokens - 1));
        }
    }

    /// Pays the account off, and solves closed windows while the account is not overdrawn. The caller is a thread that may be busy for
    /// as long as one window takes (10 ms at 512 workers).
    pub fn solve(&self, now_s: f64) {
        loop {
            let mut state = self.state.lock();
            let since = state.settled.elapsed();
            state.settled = Instant::now();
            state.debt_s = (state.debt_s - BUDGET_SHARE * since.as_secs_f64()).max(0.0);
            if state.open.len() == MAX_OPEN {
                state.open.retain(|_, open| now_s - open.sent_s < OPEN_S);
            }
            if state.debt_s <= 0.0 {
                self.wanted.store(true, Ordering::Relaxed);
            }
            if state.debt_s > CREDIT_S {
                return;
            }
            // The lock is released while a window is solved, so recording does not wait for it.
            let Some(task) = state.meter.next_task() else {
                return;
            };
            drop(state);
            let started = Instant::now();
            let solved = task.solve();
            let spent = started.elapsed();
            let mut state = self.state.lock();
            self.charge(&mut state, spent);
            if let Ok(solved) = solved {
                state.meter.accept(&solved);
            }
        }
    }

    /// The figures; `None` before the first solved window.
    pub fn report(&self) -> Option<AnarchyReport> {
        let state = self.state.lock();
        Some(AnarchyReport {
            meter: state.meter.report()?,
            itl_error: state.itl.error(),
            recorded: self.recorded.load(Ordering::Relaxed),
            spent_s: self.spent_ns.load(Ordering::Relaxed) as f64 / 1e9,
        })
    }

    /// Adds CPU time to the debt and to the total.
    fn charge(&self, state: &mut State, spent: Duration) {
        state.debt_s += spent.as_secs_f64();
        self.spent_ns.fetch_add(
            u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardrop_core::anarchy::DecisionCosts;

    fn decision(number: u64, workers: usize, generation: u64) -> RecordedDecision {
        RecordedDecision {
            request: RequestId(number),
            costs: DecisionCosts {
                at_s: number as f64 * 1e-3,
                chosen: number as usize % workers,
                prefill_s: vec![0.1; workers],
                decode_s: vec![0.5; workers],
                wait_s: vec![0.0; workers],
            },
            peer_decode_s: vec![0.01; workers],
            step_s: 0.01,
            generation,
        }
    }

    #[test]
    fn overdrawn_account_stops_the_recording_until_it_is_paid_off() {
        let index = AnarchyMeter::new();
        let mut number = 0;
        while index.wants(64) {
            index.record(&[decision(number, 64, 0)]);
            number += 1;
            assert!(number < 1_000_000, "recording must be charged for");
        }
        let spent_s = index.spent_ns.load(Ordering::Relaxed) as f64 / 1e9;
        assert!(spent_s >= CREDIT_S, "{spent_s}");
        index.solve(0.0);
        assert!(!index.wants(64), "the debt is 2 s of time at 1 % of a core");
        index.state.lock().settled = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        index.solve(60.0);
        assert!(index.wants(64));
        assert!(index.report().is_some_and(|report| report.meter.poa >= 1.0));
    }

    #[test]
    fn other_candidates_are_not_mixed_into_a_window() {
        let index = AnarchyMeter::new();
        for number in 0..20 {
            index.record(&[decision(number, 4, number / 10)]);
        }
        index.solve(0.0);
        let report = index.report().unwrap();
        assert_eq!((report.meter.windows, report.meter.requests), (1, 10));
    }

    #[test]
    fn predictions_are_compared_with_what_came() {
        let index = AnarchyMeter::new();
        for number in 0..64 {
            index.record(&[decision(number, 2, 0)]);
            let sent_s = number as f64 * 1e-3;
            index.first_token(RequestId(number), sent_s + 0.2);
            index.finish(RequestId(number), Some(11), sent_s + 0.2 + 0.2);
        }
        index.solve(1.0);
        let report = index.report().unwrap();
        assert_eq!(report.meter.model_error.samples, 64);
        assert!((report.meter.model_error.mean_absolute_share - 0.5).abs() < 1e-9);
        assert_eq!(report.itl_error.samples, 64);
        assert!((report.itl_error.bias - 0.5).abs() < 1e-9);
        assert!(index.state.lock().open.is_empty());
    }

    #[test]
    fn pool_too_large_for_square_windows_is_not_measured() {
        assert!(!AnarchyMeter::new().wants(MAX_WORKERS + 1));
    }
}
