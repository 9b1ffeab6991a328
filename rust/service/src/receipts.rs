//! Receipts of routing decisions, found by request id.
//!
//! A receipt lists the candidates with their costs, the margin of the chosen worker, the regime, the wait and the outcome.
//! The service keeps a configured number of recent receipts in memory; the default 0 turns receipts off.
//! A receipt holds no text and no token of a prompt. With receipts off, a request pays one branch.
//! With receipts on, a request pays the copy of its candidates and one lock; the test `cost_of_a_receipt` measures it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use wardrop_core::control::Routing;
use wardrop_core::{Candidate, Misfit, WorkerId};

use crate::pool::{Explanation, Leg, Role};

/// Maximum number of candidates in one leg: the cheapest workers, always including the chosen worker.
const MAX_CANDIDATES: usize = 32;
/// Maximum number of legs in one receipt: prefill and decode, and both again after a retry.
const MAX_LEGS: usize = 4;
/// Maximum length of a request id, in bytes; a request with a longer id has no receipt.
const MAX_ID_BYTES: usize = 128;
/// Names of the regimes by the number that the control plane reports.
const REGIMES: [&str; 3] = ["below", "transition", "saturated"];
/// Number for a fleet without a reported regime. It lies beyond [`REGIMES`].
const NO_REGIME: u8 = u8::MAX;

/// Placement of one request on one worker of one pool.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LegReceipt {
    /// Role of the pool that placed the request.
    pub role: Role,
    /// The chosen worker.
    pub worker: WorkerId,
    /// Cost of the chosen worker, in the unit of the policy.
    pub cost: f64,
    /// Cost of the cheapest other candidate minus the cost of the chosen worker; `None` without another candidate.
    pub margin: Option<f64>,
    /// Leading blocks of the prompt that the index lists for the chosen worker.
    pub overlap_blocks: u32,
    /// Time in the router's queue, in seconds.
    pub waited_s: f64,
    /// Why the request was placed when it was: at once, room, full window, or the end of its wait.
    pub cause: &'static str,
    /// Why a static rule decided in place of the policy; `None` where the policy decided.
    pub misfit: Option<Misfit>,
    /// What the request would have got at its arrival; `None` for a request that did not wait.
    pub at_once: Option<AtOnce>,
    /// Cheapest first, at most [`MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
    /// Number of candidates before the list was shortened.
    pub candidates_in_all: usize,
}

/// The placement that a request would have had at its arrival, and what its wait gained.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct AtOnce {
    /// The cheapest worker at the arrival.
    pub worker: WorkerId,
    /// Cost of this worker at the arrival, in the unit of the policy.
    pub cost: f64,
    /// `cost` minus the cost of the late placement minus the wait, in seconds; negative when the wait lost time. `None` for a
    /// policy whose costs are no seconds.
    pub gained_s: Option<f64>,
}

/// Outcome of a request.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct ReceiptOutcome {
    /// `finished`, `broken`, `client_left`, `error` (the upstream's), or `refused` (ours).
    pub how: &'static str,
    /// Status of the answer to the client, in the protocol of the door; 0 when the client left before the answer.
    pub status: u16,
    /// Time from the receipt of the whole request to the first byte of the answer, in seconds.
    pub ttft_s: Option<f64>,
    /// Time from the receipt of the whole request to the last byte of the answer, in seconds.
    pub e2e_s: Option<f64>,
    /// Prompt tokens, as the engine reported them.
    pub input_tokens: Option<u64>,
    /// Tokens of the answer; of an answer that broke off, the tokens that had arrived.
    pub output_tokens: Option<u32>,
    /// Cached prompt tokens, as the engine reported them.
    pub cached_tokens: Option<u64>,
    /// Cached prompt tokens that the router predicted.
    pub predicted_cached_tokens: u64,
}

impl ReceiptOutcome {
    /// Outcome of a request that the gateway refused without an upstream.
    pub fn refused(status: u16) -> Self {
        Self {
            how: "refused",
            status,
            ..Self::default()
        }
    }

    /// Outcome of a request that the upstream answered with an error.
    pub fn error(status: u16, after: Duration) -> Self {
        Self {
            how: "error",
            status,
            e2e_s: Some(after.as_secs_f64()),
            ..Self::default()
        }
    }
}

/// One receipt, in the form of its JSON.
#[derive(Clone, Debug, Serialize)]
struct Receipt {
    /// Id of the request as the client or the door gave it; at most [`MAX_ID_BYTES`] bytes.
    request_id: String,
    /// Time of the decision, in seconds since the Unix epoch.
    at_s: f64,
    /// Name of the model.
    model: String,
    /// Tokens of the prompt, by the service's own count.
    input_tokens: u32,
    /// Full blocks of the prompt.
    blocks: usize,
    /// Regime of the fleet at the decision; `None` when the control plane reports no regime.
    regime: Option<&'static str>,
    /// Policy and queue in force at the decision.
    routing: Routing,
    /// Seconds in the queue, over all legs.
    queued_s: f64,
    /// Reason of the abstention; `None` when the router placed the request.
    abstained: Option<&'static str>,
    /// Placements in the order in which they were made; at most [`MAX_LEGS`]. Later ones are left
    /// out.
    legs: Vec<LegReceipt>,
    /// Outcome of the request; `None` while the request is in flight.
    outcome: Option<ReceiptOutcome>,
}

/// Facts about a request that its receipt begins with.
#[derive(Clone, Copy)]
pub(crate) struct ReceiptRequest<'a> {
    /// Name of the model.
    pub model: &'a str,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Full blocks of the prompt.
    pub blocks: usize,
}

/// A receipt that is being written.
pub(crate) struct OpenReceipt(Mutex<Receipt>);

impl OpenReceipt {
    /// Adds a placement to the receipt.
    pub fn placed(&self, leg: LegReceipt) {
        let receipt = &mut *self.0.lock();
        if receipt.legs.len() < MAX_LEGS {
            receipt.queued_s += leg.waited_s;
            receipt.legs.push(leg);
        }
    }

    /// Records that the service left the choice to Dynamo, and the reason.
    pub fn abstained(&self, reason: &'static str) {
        self.0.lock().abstained = Some(reason);
    }

    /// Records the outcome of the request.
    pub fn ended(&self, ending: ReceiptOutcome) {
        self.0.lock().outcome = Some(ending);
    }
}

/// The receipt of one placement: its candidates sorted and shortened, and its distance from the next worker.
///
/// A gain in seconds is given only where the policy's parts carry seconds in their names: blocks
/// and seconds cannot be subtracted. O(n log n) for n candidates.
pub(crate) fn leg_receipt(leg: &Leg, explanation: Explanation) -> LegReceipt {
    let candidates_in_all = explanation.candidates.len();
    let mut candidates = explanation.candidates;
    candidates.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    let others = candidates.iter().filter(|other| other.worker != leg.worker);
    let margin = others
        .map(|other| other.cost)
        .next()
        .map(|next| next - explanation.cost);
    let chosen = candidates.iter().position(|other| other.worker == leg.worker);
    let is_in_seconds =
        chosen.is_some_and(|at| candidates[at].parts.iter().any(|(name, _)| name.ends_with("_s")));
    let at_once = explanation.at_once.map(|choice| AtOnce {
        worker: choice.worker,
        cost: choice.cost,
        gained_s: is_in_seconds.then_some(choice.cost - explanation.cost - explanation.waited_s),
    });
    // The chosen worker takes the last place of the list when it is not among the cheapest.
    if let Some(at) = chosen.filter(|&at| at >= MAX_CANDIDATES) {
        candidates.swap(at, MAX_CANDIDATES - 1);
    }
    candidates.truncate(MAX_CANDIDATES);
    LegReceipt {
        role: leg.pool.role,
        worker: leg.worker,
        cost: explanation.cost,
        margin,
        overlap_blocks: leg.overlap_blocks,
        waited_s: explanation.waited_s,
        cause: explanation.cause,
        misfit: explanation.misfit,
        at_once,
        candidates,
        candidates_in_all,
    }
}

/// The recent receipts, at most `limit` of them.
pub(crate) struct Receipts {
    /// Number of receipts at most; 0 turns receipts off.
    limit: usize,
    /// Index into [`REGIMES`], or [`NO_REGIME`].
    regime: AtomicU8,
    /// The receipts themselves. The lock is taken once when a receipt opens and once when one is
    /// looked up.
    kept: Mutex<Kept>,
}

/// Receipts by id and by age.
#[derive(Default)]
struct Kept {
    /// Newest receipt of each id.
    by_id: HashMap<String, Arc<OpenReceipt>>,
    /// Receipts in the order of their opening, oldest first.
    ids: VecDeque<(String, Arc<OpenReceipt>)>,
}

impl Receipts {
    /// Creates a store of the most recent `limit` receipts; 0 turns receipts off.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            regime: AtomicU8::new(NO_REGIME),
            kept: Mutex::default(),
        }
    }

    /// Whether decisions are to be explained.
    pub fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// Sets the regime of the fleet, as the control plane reports it: 0 below, 1 transition, 2 saturated.
    pub fn set_regime(&self, regime: f64) {
        self.regime.store(regime as u8, Ordering::Relaxed);
    }

    /// Regime of the fleet; `None` when the control plane reports none.
    pub fn regime(&self) -> Option<&'static str> {
        let regime = self.regime.load(Ordering::Relaxed);
        REGIMES.get(usize::from(regime)).copied()
    }

    /// Opens a receipt and replaces an earlier receipt of the same id.
    ///
    /// Returns `None` when receipts are off or the request id is too long.
    pub fn open(
        &self,
        request_id: &str,
        request: &ReceiptRequest<'_>,
        routing: impl FnOnce() -> Routing,
    ) -> Option<Arc<OpenReceipt>> {
        if !self.is_on() || request_id.len() > MAX_ID_BYTES {
            return None;
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let receipt = Receipt {
            request_id: request_id.to_owned(),
            at_s: since_1970.as_secs_f64(),
            model: request.model.to_owned(),
            input_tokens: request.input_tokens,
            blocks: request.blocks,
            regime: self.regime(),
            routing: routing(),
            queued_s: 0.0,
            abstained: None,
            legs: Vec::new(),
            outcome: None,
        };
        Some(self.put(receipt))
    }

    /// Adds a receipt, and removes the oldest ones beyond the limit.
    ///
    /// An id that was used twice has two entries in the list by age and one in the table. The older
    /// entry must not remove the newer receipt, hence the comparison of pointers.
    fn put(&self, receipt: Receipt) -> Arc<OpenReceipt> {
        let id = receipt.request_id.clone();
        let open = Arc::new(OpenReceipt(Mutex::new(receipt)));
        let kept = &mut *self.kept.lock();
        while kept.ids.len() >= self.limit
            && let Some((oldest, its)) = kept.ids.pop_front()
        {
            if kept.by_id.get(&oldest).is_some_and(|now| Arc::ptr_eq(now, &its)) {
                kept.by_id.remove(&oldest);
            }
        }
        kept.ids.push_back((id.clone(), open.clone()));
        kept.by_id.insert(id, open.clone());
        open
    }

    /// Returns the receipt of a request as JSON; `None` when the store holds no receipt with this id.
    pub fn find(&self, request_id: &str) -> Option<String> {
        let open = self.kept.lock().by_id.get(request_id)?.clone();
        let receipt = open.0.lock().clone();
        serde_json::to_string(&receipt).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RoutingOptions;

    fn receipt(id: &str) -> Receipt {
        Receipt {
            request_id: id.into(),
            at_s: 0.0,
            model: "m".into(),
            input_tokens: 1,
            blocks: 0,
            regime: None,
            routing: RoutingOptions::default().start(),
            queued_s: 0.0,
            abstained: None,
            legs: Vec::new(),
            outcome: None,
        }
    }

    #[test]
    fn the_last_receipts_are_kept_and_an_id_has_one() {
        let receipts = Receipts::new(3);
        for id in ["a", "b", "a", "c"] {
            let open = receipts.put(receipt(id));
            open.ended(ReceiptOutcome {
                how: "finished",
                ..ReceiptOutcome::default()
            });
        }
        assert!(receipts.find("a").is_some(), "the later one of its id");
        receipts.put(receipt("d"));
        receipts.put(receipt("e"));
        let there: Vec<bool> = ["a", "b", "c", "d", "e"]
            .map(|id| receipts.find(id).is_some())
            .into();
        assert_eq!(there, [false, false, true, true, true]);
        let kept = receipts.kept.lock();
        assert_eq!((kept.ids.len(), kept.by_id.len()), (3, 3));
    }

    /// What a receipt of eight candidates adds to a request, beside pricing them: `--ignored --nocapture` prints it.
    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_receipt() {
        let receipts = Receipts::new(4096);
        let candidates: Vec<Candidate> = (0..8)
            .map(|n| Candidate {
                worker: WorkerId::new(n, 0),
                cost: (n * 7 % 5) as f64,
                ..Candidate::default()
            })
            .collect();
        let routing = RoutingOptions::default().start();
        let rounds = 200_000;
        // CPU time, because a busy machine distorts wall time.
        let spent_ns = || -> f64 {
            let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        let started_ns = spent_ns();
        for n in 0..rounds {
            let mut receipt = receipt(&format!("{n:016x}-{n:x}"));
            receipt.routing = routing.clone();
            let open = receipts.put(receipt);
            let mut sorted = candidates.clone();
            sorted.sort_by(|a, b| a.cost.total_cmp(&b.cost));
            open.0.lock().legs.push(LegReceipt {
                role: Role::Aggregated,
                worker: sorted[0].worker,
                cost: sorted[0].cost,
                margin: None,
                overlap_blocks: 0,
                waited_s: 0.0,
                cause: "at_once",
                misfit: None,
                at_once: None,
                candidates: sorted,
                candidates_in_all: 8,
            });
            open.ended(ReceiptOutcome::default());
        }
        let each_us = (spent_ns() - started_ns) / 1e3 / f64::from(rounds);
        println!("{each_us:.2} us of CPU per receipt of 8 candidates");
    }
}
