//! The shadows of one model: built when the model has workers, then updated with workers, curves, policy and limits.
//!
//! The shadow thread calls it: events in, one simulated step at a time, a report once a second.
//!
//! Memory: the simulated caches, at most `shadows.max_blocks` blocks over all arms; a larger fleet
//! has no shadows. A failure of the simulation ends only the shadows of its model, and the next
//! update builds them again.

use std::collections::BTreeMap;
use std::sync::Arc;

use wardrop_core::control::Routing;
use wardrop_core::{PolicyConfig, WorkerId};
use wardrop_sim::SimError;
use wardrop_sim::shadow::{Arrival, Figure, Limit, Observed, ShadowCounts};

use super::adoption::does_harm;
use super::events::{Event, LostArrivals};
use super::report::ModelShadowReport;
use super::shadowed::{GoodputLimits, Shadowed, engine};
use crate::config::ShadowOptions;
use crate::models::Model;
use crate::pool::Member;

/// Weight of the newest request in the exponential mean of the prompt size.
const MEAN_WEIGHT: f64 = 0.01;
/// Names of the figures for which a report suggests an arm.
const FIGURES: [&str; 5] = ["ttft", "itl", "e2e", "cached_share", "goodput"];

/// Shadow fleets of one model, with the counts that no report covers yet.
pub(super) struct ModelShadows {
    /// Name of the model.
    pub model: Arc<str>,
    /// The running fleets; `None` while the model has no shadows.
    shadowed: Option<Shadowed>,
    /// Reason why the model has no shadows; `None` while shadows run.
    note: Option<String>,
    /// CPU time that the shadows used since the start, in seconds.
    cpu_s: f64,
    /// CPU time that no report covers yet, in seconds.
    unreported_cpu_s: f64,
    /// Limits of the fleet that no arm relaxes, because their caches take too much memory.
    without_room: Vec<Limit>,
    /// Counts that the previous report already covered.
    reported: ShadowCounts,
    /// Number of arrivals without shadows that no report covers yet.
    unseen: u64,
    /// Exponential mean of the prompt size, in blocks; `None` before the first prompt.
    mean_blocks: Option<f64>,
}

/// Numbers of requests by result, and CPU time, since the last report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NewCounts {
    /// Requests simulated.
    pub fed: u64,
    /// Requests dropped, because the queue or the simulation had no room.
    pub dropped: u64,
    /// Requests not accepted, to keep the share of a core.
    pub passed_over: u64,
    /// CPU seconds spent.
    pub cpu_s: f64,
}

impl ModelShadows {
    /// A model whose shadows start with its first worker.
    pub fn new(model: Arc<str>) -> Self {
        Self {
            model,
            shadowed: None,
            note: Some("no worker yet".into()),
            without_room: Vec::new(),
            cpu_s: 0.0,
            unreported_cpu_s: 0.0,
            reported: ShadowCounts::default(),
            unseen: 0,
            mean_blocks: None,
        }
    }

    /// Whether the shadows accept arrivals.
    pub fn takes(&self) -> bool {
        let shadowed = self.shadowed.as_ref();
        shadowed.is_some_and(|shadowed| shadowed.fleets.takes())
    }

    /// Applies an event; without shadows it only counts arrivals.
    pub fn take(&mut self, event: Event) {
        let Some(shadowed) = &mut self.shadowed else {
            self.unseen += u64::from(matches!(event, Event::Arrived { .. }));
            return;
        };
        let fleets = &mut shadowed.fleets;
        match event {
            Event::Arrived {
                id,
                at_s,
                input_tokens,
                hashes,
                ..
            } => {
                let blocks = f64::from(input_tokens) / f64::from(shadowed.block_size);
                let mean = self.mean_blocks.get_or_insert(blocks);
                *mean += MEAN_WEIGHT * (blocks - *mean);
                fleets.push(&Arrival {
                    id,
                    at_s,
                    input_tokens,
                    sequence_hashes: &hashes,
                });
            }
            Event::FirstToken { id, ttft_s, .. } => fleets.outcome(
                id,
                Observed {
                    ttft_s: Some(ttft_s),
                    output_tokens: None,
                },
            ),
            Event::Ended {
                id, output_tokens, ..
            } => fleets.outcome(
                id,
                Observed {
                    ttft_s: None,
                    output_tokens: Some(output_tokens),
                },
            ),
            Event::Failed { id, .. } => fleets.withdraw(id),
        }
    }

    /// Marks all ticks in the interval of dropped arrivals as incomplete.
    ///
    /// At most 1,024 ticks are marked, which bounds the work of one call.
    pub fn lost(&mut self, lost: LostArrivals, tick_s: f64) {
        let LostArrivals { first_s, last_s } = lost;
        if let Some(shadowed) = &mut self.shadowed {
            let ticks = ((last_s - first_s) / tick_s).ceil().min(1_024.0) as u32;
            (0..=ticks).for_each(|tick| {
                shadowed
                    .fleets
                    .spoil((first_s + f64::from(tick) * tick_s).min(last_s));
            });
        }
    }

    /// Takes over workers, policy, queue and limits. Shadow fleets that fail are built again at the next call.
    pub fn follow(&mut self, model: &Model, routing: &Routing, options: &ShadowOptions, now_s: f64) {
        if let Err(error) = self.try_follow(model, routing, options, now_s) {
            self.broke(&error);
        }
    }

    /// Drops the fleets and keeps the reason for the report.
    fn broke(&mut self, error: &SimError) {
        tracing::error!(model = %self.model, %error, "the shadows failed and restart");
        self.shadowed = None;
        self.note = Some(format!("broke: {error}"));
    }

    /// A change of roles or of the block size needs new fleets, since every hash and every pool
    /// changes with them. So does another choice of limits: a queue comes or goes, or memory runs out.
    ///
    /// # Errors
    /// A fleet, a worker or a routing that the simulator refuses.
    fn try_follow(
        &mut self,
        model: &Model,
        routing: &Routing,
        options: &ShadowOptions,
        now_s: f64,
    ) -> Result<(), SimError> {
        let roles = model.roles();
        let block_size = model.spec.block_size;
        let members: Vec<_> = roles.iter().map(|role| model.pool(*role).members()).collect();
        let mut routings = arm_routings(routing, options);
        if let Some(reason) = unfit(&members, block_size, routings.len(), options) {
            self.shadowed = None;
            self.note = Some(reason);
            return Ok(());
        }
        let (limits, without_room) = limits_of(&members, block_size, routing, routings.len(), options);
        self.without_room = without_room;
        routings.extend(limits.iter().map(|limit| Routing {
            policy: routing.policy.clone(),
            queue: limit.queue(routing.queue),
        }));
        let is_other =
            |now: &Shadowed| now.roles != roles || now.block_size != block_size || now.limits != limits;
        if self.shadowed.as_ref().is_none_or(is_other) {
            self.reported = ShadowCounts::default();
            self.mean_blocks = None;
            self.shadowed = Some(Shadowed::new(
                roles, block_size, members, routings, limits, options,
            )?);
            self.note = None;
        } else if let Some(shadowed) = &mut self.shadowed {
            shadowed.follow_members(members, now_s)?;
            shadowed.follow_routings(routings, now_s)?;
        }
        if let Some(shadowed) = &mut self.shadowed {
            shadowed.set_limits(goodput_limits(routing, options));
        }
        Ok(())
    }

    /// Simulates one step. Returns `false` without shadows or after an error.
    pub fn advance(&mut self, now_s: f64) -> bool {
        let Some(shadowed) = &mut self.shadowed else {
            return false;
        };
        match shadowed.fleets.advance(now_s) {
            Ok(_) => true,
            Err(error) => {
                self.broke(&error);
                false
            }
        }
    }

    /// Whether [`ModelShadows::advance`] has requests left to start, and an account to do so.
    pub fn is_due(&self, now_s: f64) -> bool {
        let shadowed = self.shadowed.as_ref();
        shadowed.is_some_and(|shadowed| shadowed.fleets.is_due(now_s))
    }

    /// Charges `cpu_s` seconds of CPU time against `share` of one core.
    pub fn charge(&mut self, cpu_s: f64, share: f64, now_s: f64) {
        self.cpu_s += cpu_s;
        self.unreported_cpu_s += cpu_s;
        if let Some(shadowed) = &mut self.shadowed {
            shadowed.fleets.set_cpu_share(share);
            shadowed.fleets.charge(cpu_s, now_s);
        }
    }

    /// Returns the counts of requests and the CPU time since the last call, and resets them.
    pub fn take_new_counts(&mut self) -> NewCounts {
        let mut new = NewCounts {
            passed_over: std::mem::take(&mut self.unseen),
            cpu_s: std::mem::take(&mut self.unreported_cpu_s),
            ..NewCounts::default()
        };
        if let Some(shadowed) = &self.shadowed {
            let now = shadowed.fleets.counts();
            let before = std::mem::replace(&mut self.reported, now);
            new.fed = now.simulated - before.simulated;
            new.dropped = now.dropped - before.dropped;
            new.passed_over += now.passed_over - before.passed_over;
        }
        new
    }

    /// Builds the report of this model. O(arms · window).
    pub fn report(&self, options: &ShadowOptions, now_s: f64) -> ModelShadowReport {
        let mut report = ModelShadowReport {
            model: self.model.to_string(),
            roles: Vec::new(),
            workers: 0,
            assumed_capacities: 0,
            note: self.note.clone(),
            age_s: None,
            cpu_s: self.cpu_s,
            has_goodput: false,
            requests_per_cache: None,
            policies: Vec::new(),
            suggested: BTreeMap::new(),
            limits_without_room: self.without_room.clone(),
            fleets: None,
        };
        let Some(shadowed) = &self.shadowed else {
            return report;
        };
        let everyone = || shadowed.members.iter().flat_map(BTreeMap::values);
        report.roles = shadowed.roles.to_vec();
        report.workers = everyone().count();
        report.assumed_capacities = everyone().filter(|m| m.total_kv_blocks.is_none()).count();
        report.has_goodput = shadowed.has_goodput;
        let smallest = everyone()
            .map(|member| engine(member, shadowed.block_size).num_blocks)
            .min();
        report.requests_per_cache = smallest
            .zip(self.mean_blocks.filter(|mean| *mean > 0.0))
            .map(|(blocks, mean)| f64::from(blocks) / mean);
        let fleets = shadowed.fleets.report();
        report.policies = shadowed.arms(options);
        for (policy, arm) in report.policies.iter_mut().zip(&fleets.arms) {
            policy.does_harm = does_harm(arm);
        }
        for name in FIGURES {
            if let Some(figure) = Figure::from_name(name) {
                let may = |arm: usize| report.policies[arm].is_adoptable && !report.policies[arm].does_harm;
                let best = shadowed.fleets.suggest_among(figure, may).map(str::to_owned);
                report.suggested.insert(name, best);
            }
        }
        report.age_s = (fleets.reached_s > 0.0).then_some(now_s - fleets.reached_s);
        report.fleets = Some(fleets);
        report
    }
}

/// Policy and queue of each arm; the first arm runs the routing in force.
fn arm_routings(in_force: &Routing, options: &ShadowOptions) -> Vec<Routing> {
    let shadows = options.policies.iter().map(|arm| {
        // The start checks each arm with the default queue, so a valid queue in force rarely fails here.
        arm.routing(in_force.queue).unwrap_or(Routing {
            policy: arm.policy.clone(),
            queue: None,
        })
    });
    std::iter::once(in_force.clone()).chain(shadows).collect()
}

/// Limits of goodput: the configured limits, else the limits of a `toll` objective with a goodput weight.
///
/// `None` leaves goodput out of the report.
fn goodput_limits(routing: &Routing, options: &ShadowOptions) -> Option<GoodputLimits> {
    if options.ttft_slo_s > 0.0 {
        return Some(GoodputLimits {
            ttft_s: options.ttft_slo_s,
            itl_s: options.itl_slo_s,
        });
    }
    match &routing.policy {
        PolicyConfig::Toll(objective) if objective.goodput > 0.0 => Some(GoodputLimits {
            ttft_s: objective.ttft_slo_s,
            itl_s: objective.itl_slo_s,
        }),
        _ => None,
    }
}

/// Limits that arms relax, in the order of [`Limit::of_fleet`], and limits whose caches have no room.
///
/// The least memory comes first, so that as many limits as possible have an arm. `arms` counts the
/// arms without a limit.
fn limits_of(
    members: &[BTreeMap<WorkerId, Member>],
    block_size: u32,
    routing: &Routing,
    arms: usize,
    options: &ShadowOptions,
) -> (Vec<Limit>, Vec<Limit>) {
    if !options.limits {
        return (Vec::new(), Vec::new());
    }
    let blocks = |member: &Member| u64::from(engine(member, block_size).num_blocks);
    let pools: Vec<Vec<u64>> = members
        .iter()
        .map(|pool| pool.values().map(blocks).collect())
        .collect();
    let in_force: u64 = pools.iter().flatten().sum();
    let mut left = options
        .max_blocks
        .saturating_sub(in_force.saturating_mul(arms as u64));
    let all = Limit::of_fleet(members.len(), routing.queue.is_some());
    let mut by_memory = all.clone();
    by_memory.sort_by_key(|limit| limit.blocks(&pools));
    by_memory.retain(|limit| {
        let rest = left.checked_sub(limit.blocks(&pools));
        left = rest.unwrap_or(left);
        rest.is_some()
    });
    all.into_iter().partition(|limit| by_memory.contains(limit))
}

/// Reason why this fleet can have no shadows; `None` when it can.
///
/// The limit counts every block of every arm without a limit, because each arm has caches of its own.
fn unfit(
    members: &[BTreeMap<WorkerId, Member>],
    block_size: u32,
    arms: usize,
    options: &ShadowOptions,
) -> Option<String> {
    if members.iter().any(BTreeMap::is_empty) {
        return Some("no worker yet".into());
    }
    let everyone = members.iter().flat_map(BTreeMap::values);
    let blocks: u64 = everyone
        .map(|member| u64::from(engine(member, block_size).num_blocks))
        .sum::<u64>()
        * arms as u64;
    (blocks > options.max_blocks).then(|| {
        format!(
            "{blocks} KV blocks in {arms} arms, at most {}: take fewer policies, or raise shadows.max_blocks \
             (about 60 bytes each)",
            options.max_blocks
        )
    })
}

#[cfg(test)]
mod tests;
