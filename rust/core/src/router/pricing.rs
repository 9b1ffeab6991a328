//! The policy in force, and the controller that chooses its parameters where the policy has regimes.
//!
//! Policies are pure: they read a view and write costs. What learns from outcomes is the controller. On a change of
//! regime the policy of the new regime replaces the previous one as a whole.

use crate::error::Error;
use crate::price::{Policy, PolicyConfig};
use crate::regime::{RegimeChange, RegimeController};

/// A policy with its controller.
pub(super) struct Pricing {
    /// The policy's configuration, from which the policy of another regime is built.
    config: PolicyConfig,
    /// The policy in force, for the regime of the controller.
    policy: Box<dyn Policy>,
    /// Chooses the regime. `None` for a policy without regimes.
    controller: Option<RegimeController>,
}

impl Pricing {
    /// The policy of `config`, with a controller that has seen nothing.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn new(config: PolicyConfig) -> Result<Self, Error> {
        Ok(Self {
            policy: config.build()?,
            controller: config.controller(),
            config,
        })
    }

    /// A policy of a test.
    #[cfg(test)]
    pub fn of(policy: Box<dyn Policy>) -> Self {
        Self {
            config: PolicyConfig::default(),
            policy,
            controller: None,
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> &dyn Policy {
        &*self.policy
    }

    /// A first token came at `now_s`, `ttft_s` after its request was booked.
    pub fn first_token(&mut self, ttft_s: f64, now_s: f64) {
        self.control(|controller| controller.first_token(ttft_s, now_s));
    }

    /// The time is `now_s`. Called before each price, so that a poll that is due comes before it.
    pub fn advance(&mut self, now_s: f64) {
        self.control(|controller| controller.advance(now_s));
    }

    /// Changes of regime so far, oldest first. Empty for a policy without regimes.
    pub fn regime_changes(&self) -> Vec<RegimeChange> {
        let changes = self.controller.iter().flat_map(RegimeController::changes);
        changes.collect()
    }

    /// Lets the controller take a step, and builds the policy of the new regime when the step changed it.
    fn control(&mut self, step: impl FnOnce(&mut RegimeController)) {
        let Some(controller) = &mut self.controller else {
            return;
        };
        let before = controller.regime();
        step(controller);
        let regime = controller.regime();
        // A configuration that was built once is valid in every regime. If it were not, the previous policy would stay.
        if regime != before
            && let Ok(policy) = self.config.build_in(regime)
        {
            self.policy = policy;
        }
    }
}
