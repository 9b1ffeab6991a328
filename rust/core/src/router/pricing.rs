//! The policy in force, and the controller that chooses its parameters where the policy has regimes.
//!
//! Policies are pure: they read a view and write costs. What learns from outcomes is the controller. On a change of
//! regime the policy of the new regime replaces the previous one as a whole.
//!
//! While the price guard ([`crate::price_guard`]) finds that predictions do not fit, a static rule stands in for a policy that
//! prices seconds.

use crate::error::Error;
use crate::price::{Dynamo, DynamoConfig, Policy, PolicyConfig};
use crate::price_guard::{Misfit, PriceGuard};
use crate::regime::{RegimeChange, RegimeController};

/// A policy with its controller.
pub(super) struct Pricing {
    /// The policy's configuration, from which the policy of another regime is built.
    config: PolicyConfig,
    /// The policy in force, for the regime of the controller.
    policy: Box<dyn Policy>,
    /// Chooses the regime. `None` for a policy without regimes.
    controller: Option<RegimeController>,
    /// Dynamo's cost, which stands in for a policy that prices seconds.
    stand_in: Box<dyn Policy>,
    /// Whether the stand-in decides.
    stands_in: bool,
}

impl Pricing {
    /// The policy of `config`, with a controller that has seen nothing. `tracks_prefill` chooses the stand-in: without
    /// prefill it gives no credit for cached blocks, as on Dynamo's decode leg.
    ///
    /// # Errors
    /// [`Error::Parameter`] names a value that is out of range.
    pub fn new(config: PolicyConfig, tracks_prefill: bool) -> Result<Self, Error> {
        let stand_in = if tracks_prefill {
            DynamoConfig::default()
        } else {
            DynamoConfig::decode_leg()
        };
        Ok(Self {
            policy: config.build()?,
            controller: config.controller(),
            stand_in: Box::new(Dynamo::new(stand_in)?),
            stands_in: false,
            config,
        })
    }

    /// A policy of a test.
    #[cfg(test)]
    pub fn of(policy: Box<dyn Policy>) -> Self {
        Self {
            policy,
            ..Self::new(PolicyConfig::default(), true).expect("the default policy is valid")
        }
    }

    /// The policy in force: the configured policy, or its stand-in.
    pub fn policy(&self) -> &dyn Policy {
        if self.stands_in {
            &*self.stand_in
        } else {
            &*self.policy
        }
    }

    /// The configured policy, for the present regime.
    pub fn configured(&self) -> &dyn Policy {
        &*self.policy
    }

    /// Why the stand-in decides; `None` while the configured policy decides.
    pub fn misfit(&self, guard: &PriceGuard) -> Option<Misfit> {
        guard.misfit().filter(|_| self.stands_in)
    }

    /// Lets the stand-in decide, or the configured policy again. A policy that prices no seconds has no stand-in.
    pub fn stand_in(&mut self, stands_in: bool) {
        self.stands_in = stands_in && self.policy.needs_latency();
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
