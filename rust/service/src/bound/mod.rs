//! The live price of anarchy of one model: what recent requests paid over what no routing could have gone below.
//!
//! ```text
//! arrival ─▶ BoundMeter::arrive ─▶ open window ─ closed by time, requests or blocks ─▶ waits for its last request
//! end     ─▶ BoundTicket::end   ─▶ its window ─▶ BoundMeter::solve ─▶ wardrop_sim::bound::price_window ─▶ BoundReport
//! ```
//!
//! A request pays a copy of its block hashes and two short locks. A thread of its own computes the bound, one window at a
//! time. All meters of a service share one account of CPU time ([`Account`]). A busy router thus samples whole windows. Where it
//! left requests out, the history of blocks begins again.
//!
//! A window keeps lengths, hashes and times, and nothing of a text. `docs/explanation/price-of-anarchy.md` defines the figure.

mod account;
mod evidence;
mod report;
mod window;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use wardrop_sim::bound::{
    BoundFleet, History, PaidTimes, StreamRequest, WindowPrice, note_window, price_estimate, price_window,
};

pub(crate) use self::account::Account;
use self::evidence::CurveEvidence;
use self::report::PricedWindow;
pub(crate) use self::report::{BoundFigure, BoundReport, Missing};
use self::window::{SeenFleet, Window};
use crate::models::Model;
use crate::prompt::Prompt;
use crate::receipts::ReceiptOutcome;
use crate::records::{Recorder, WindowFacts};

/// Windows that a figure covers.
const KEEP_WINDOWS: usize = 10;
/// Age in window lengths at which a window leaves the figure, for a router without traffic.
const KEEP_LENGTHS: f64 = 30.0;
/// Most closed windows that wait for their last request.
const MAX_CLOSED: usize = 4;
/// Time after which a closed window no longer waits for its last request, in seconds.
const WAIT_S: f64 = 900.0;
/// Fewest requests of a figure.
const LEAST_REQUESTS: usize = 32;
/// Time between two looks at the workers, in seconds.
const LOOK_EVERY_S: f64 = 1.0;
/// CPU time of recording a request, once and per block: above what `cost_of_recording_a_request` measures.
const RECORD_ONCE: Duration = Duration::from_micros(1);
const RECORD_PER_BLOCK_NS: u64 = 6;

/// Recorder of one model's windows.
pub(crate) struct BoundMeter {
    window_s: f64,
    account: Arc<Account>,
    state: Mutex<State>,
    /// Used by the solving thread alone.
    history: Mutex<History>,
}

#[derive(Default)]
struct State {
    open: Option<Window>,
    /// Windows that wait for their last request, oldest first.
    closed: VecDeque<Window>,
    /// Number of the next window.
    next: u64,
    /// Whether requests since the last window were left out.
    has_hole: bool,
    priced: VecDeque<PricedWindow>,
    /// What stopped the newest window from having a figure.
    missing: Option<(Missing, Option<String>)>,
    curves: CurveEvidence,
    looked_s: f64,
    passed_over: u64,
    history_restarts: u64,
    history_blocks: usize,
    spent: Duration,
}

/// A request that a window waits for.
pub(crate) struct BoundTicket {
    meter: Arc<BoundMeter>,
    window: u64,
    block_size: u32,
    is_streamed: bool,
    request: StreamRequest,
}

impl BoundTicket {
    /// Number of the window.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Notes leading blocks that the router expects in the cache of a chosen worker.
    pub fn placed(&mut self, overlap_blocks: u32) {
        self.request.found_blocks = self.request.found_blocks.max(overlap_blocks);
    }

    /// Hands the request to its window.
    pub fn end(mut self, outcome: &ReceiptOutcome) {
        let cached = outcome.cached_tokens.unwrap_or(0) / u64::from(self.block_size.max(1));
        self.placed(u32::try_from(cached).unwrap_or(u32::MAX));
        let finished = outcome.how == "finished";
        self.request.paid =
            outcome
                .output_tokens
                .zip(outcome.e2e_s)
                .filter(|_| finished)
                .map(|(output_tokens, e2e_s)| PaidTimes {
                    output_tokens,
                    ttft_s: outcome.ttft_s.filter(|_| self.is_streamed),
                    e2e_s,
                });
        self.meter.end(self.window, self.request);
    }
}

impl BoundMeter {
    /// A meter whose windows last `window_s` seconds.
    pub fn new(window_s: f64, account: Arc<Account>) -> Arc<Self> {
        // Windows take longer than a millisecond, so the numbers of a later start are higher, and never follow these.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let next = u64::try_from(since_1970.as_millis()).unwrap_or(0);
        Arc::new(Self {
            window_s,
            account,
            state: Mutex::new(State {
                next,
                ..State::default()
            }),
            history: Mutex::default(),
        })
    }

    /// Records an arrival. `None` for a prompt that is not known, and while no window may open.
    pub fn arrive(self: &Arc<Self>, arrived_s: f64, prompt: &Prompt, block_size: u32) -> Option<BoundTicket> {
        if prompt.is_estimated {
            return None;
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let is_over = |window: &mut Window| window.is_full() || arrived_s - window.opened_s >= self.window_s;
        if let Some(window) = state.open.take_if(is_over) {
            state.closed.push_back(window);
        }
        if state.open.is_none() {
            if state.closed.len() >= MAX_CLOSED || !self.account.allows() {
                state.passed_over += 1;
                state.has_hole = true;
                return None;
            }
            let number = state.next + u64::from(state.has_hole);
            state.open = Some(Window::new(number, state.has_hole, arrived_s));
            state.has_hole = false;
            state.next = number + 1;
        }
        let window = state.open.as_mut()?;
        window.arrived += 1;
        window.in_flight += 1;
        window.blocks += prompt.sequence.len();
        let number = window.number;
        drop(guard);
        Some(BoundTicket {
            meter: self.clone(),
            window: number,
            block_size,
            is_streamed: prompt.is_streamed,
            request: StreamRequest {
                arrived_s,
                input_tokens: prompt.input_tokens,
                blocks: prompt.sequence.iter().map(|hash| hash.0).collect(),
                found_blocks: 0,
                paid: None,
            },
        })
    }

    /// Hands an ended request to its window. A window that no longer waits takes none.
    fn end(&self, number: u64, request: StreamRequest) {
        let spent = RECORD_ONCE + Duration::from_nanos(RECORD_PER_BLOCK_NS * request.blocks.len() as u64);
        self.account.charge(spent);
        let mut state = self.state.lock();
        state.spent += spent;
        let State { open, closed, .. } = &mut *state;
        let mut windows = open.iter_mut().chain(closed);
        if let Some(window) = windows.find(|window| window.number == number) {
            window.in_flight -= 1;
            window.ended.push(request);
        }
    }

    /// Looks at the workers, and computes the bound of the oldest window whose requests have all ended.
    ///
    /// The caller is a thread that may be busy for as long as one window takes, which is some tens of milliseconds.
    pub fn solve(&self, model: &Model, now_s: f64, records: Option<&Recorder>) {
        let started = Instant::now();
        let Some(window) = self.next_window(model, now_s) else {
            return;
        };
        let number = window.number;
        let curves = CurveEvidence::of(model);
        let (fleet, priced) = self.price(window, &curves);
        if let (Ok(price), Some(records)) = (&priced, records) {
            records.put_window(WindowFacts {
                model: model.spec.name.clone(),
                number,
                fleet,
                price: *price,
            });
        }
        let history_blocks = self.history.lock().len();
        let spent = started.elapsed();
        self.account.charge(spent);
        let mut state = self.state.lock();
        state.spent += spent;
        state.curves = curves;
        state.history_blocks = history_blocks;
        match priced {
            Ok(price) => {
                state.missing = None;
                state.priced.push_back(PricedWindow { at_s: now_s, price });
                if state.priced.len() > KEEP_WINDOWS {
                    state.priced.pop_front();
                }
            }
            Err(missing) => {
                // An older figure would be of another fleet or of other curves.
                state.priced.clear();
                state.missing = Some(missing);
            }
        }
    }

    /// Brings the windows up to date, and takes the oldest closed window out when it waits for nothing more.
    fn next_window(&self, model: &Model, now_s: f64) -> Option<Window> {
        let mut state = self.state.lock();
        let is_over = |window: &mut Window| now_s - window.opened_s >= self.window_s;
        if let Some(window) = state.open.take_if(is_over) {
            state.closed.push_back(window);
        }
        let wait_s = self.window_s + WAIT_S;
        let is_ready = |window: &Window| window.in_flight == 0 || now_s - window.opened_s >= wait_s;
        let ready = state.closed.front().is_some_and(is_ready);
        let has_windows = state.open.is_some() || !state.closed.is_empty();
        if ready || (has_windows && now_s - state.looked_s >= LOOK_EVERY_S) {
            state.looked_s = now_s;
            drop(state);
            // Requests must not wait for this lock while the workers are read.
            let seen = SeenFleet::of(model);
            state = self.state.lock();
            let State { open, closed, .. } = &mut *state;
            for window in open.iter_mut().chain(closed) {
                window.fleet.follow(&seen);
            }
        }
        // This thread alone takes windows out, so the oldest one is still the one that was ready.
        let window = if ready { state.closed.pop_front() } else { None };
        if let Some(window) = &window {
            state.history_restarts += u64::from(window.is_after_hole);
        }
        window
    }

    /// The bound of a window. Its prompts become part of the history in any case.
    fn price(
        &self,
        mut window: Window,
        curves: &CurveEvidence,
    ) -> (BoundFleet, Result<WindowPrice, (Missing, Option<String>)>) {
        let mut history = self.history.lock();
        if window.is_after_hole {
            history.clear();
        }
        let fleet = window.fleet.bound_fleet();
        let missing = if window.fleet.lacks_workers() {
            Some((Missing::NoWorker, None))
        } else if window.fleet.is_mixed {
            let detail = "the fleet changed between aggregated and split workers".to_owned();
            Some((Missing::NotCovered, Some(detail)))
        } else if !curves.suffices() {
            Some((Missing::NoCurves, None))
        } else {
            None
        };
        let priced = match missing {
            Some(missing) => {
                note_window(&mut history, &mut window.ended);
                Err(missing)
            }
            None => price_window(&fleet, &mut history, &mut window.ended)
                .map_err(|error| (Missing::NotCovered, Some(error.to_string()))),
        };
        (fleet, priced)
    }

    /// The figures.
    pub fn report(&self, now_s: f64) -> BoundReport {
        let state = self.state.lock();
        let recent = || {
            let keep_s = KEEP_LENGTHS * self.window_s;
            let windows = state.priced.iter();
            windows.filter(move |window| now_s - window.at_s <= keep_s)
        };
        let enough = |figure: &BoundFigure| figure.requests >= LEAST_REQUESTS;
        let ttft = price_estimate(recent().map(|window| &window.price.ttft)).map(BoundFigure::from);
        let e2e = price_estimate(recent().map(|window| &window.price.e2e)).map(BoundFigure::from);
        let (ttft, e2e) = (ttft.filter(enough), e2e.filter(enough));
        let windows = recent().count();
        let (missing, detail) = match &state.missing {
            _ if ttft.is_some() || e2e.is_some() => (None, None),
            Some((missing, detail)) => (Some(*missing), detail.clone()),
            None if windows > 0 => (Some(Missing::FewRequests), None),
            None => (Some(Missing::NoWindow), None),
        };
        BoundReport {
            ttft,
            e2e,
            missing,
            detail,
            windows,
            age_s: recent().next_back().map(|window| now_s - window.at_s),
            curves: state.curves,
            passed_over: state.passed_over,
            history_restarts: state.history_restarts,
            history_blocks: state.history_blocks,
            cpu_s: state.spent.as_secs_f64(),
        }
    }
}
