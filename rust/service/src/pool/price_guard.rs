//! The price guard of a pool: when it is on, and the line in the log for each change.
//!
//! The router judges, see [`wardrop_core::price_guard`]. The guard matters where predicted seconds decide: under a policy that
//! prices seconds, and in a queue. Elsewhere it is off. O(1) per outcome.

use wardrop_core::{Misfit, PriceGuardReport};

use super::{State, WorkerPool};

impl WorkerPool {
    /// State and evidence of the price guard.
    pub(crate) fn price_guard(&self) -> PriceGuardReport {
        self.router.price_guard()
    }

    /// Decisions that a static rule made in place of the policy.
    pub(crate) fn decided_statically(&self) -> u64 {
        self.router.counters().decided_statically
    }

    /// Turns the guard on where predicted seconds decide, and off elsewhere. Called after a change of policy or queue.
    pub(super) fn turn_price_guard(&self, state: &mut State) {
        let matters = self.router.prices_seconds() || state.queue.is_some();
        self.router
            .set_price_guard(self.router.config().guards_price && matters);
        self.review_price_guard(state);
    }

    /// Writes one line to the log when the guard changed since the last look.
    pub(super) fn review_price_guard(&self, state: &mut State) {
        let misfit = self.router.misfit();
        if misfit == state.misfit {
            return;
        }
        state.misfit = misfit;
        let report = self.router.price_guard();
        let (first, step) = (report.first_tokens, report.steps);
        let (model, worker_type) = (&*self.model, self.role.name());
        let misfit = misfit.map(Misfit::name);
        if let Some(misfit) = misfit {
            tracing::warn!(
                model,
                worker_type,
                misfit,
                first_token_error_factor = first.error_factor,
                first_token_reference_factor = first.reference_factor,
                first_token_bias_factor = first.bias_factor,
                step_error_factor = step.error_factor,
                step_reference_factor = step.reference_factor,
                reported_share = report.reported_share,
                "the price does not fit this fleet: a static rule decides, and the queue lets every request through"
            );
        } else {
            tracing::info!(
                model,
                worker_type,
                first_token_error_factor = first.error_factor,
                step_error_factor = step.error_factor,
                reported_share = report.reported_share,
                "the price decides again: it fits this fleet"
            );
        }
    }
}
