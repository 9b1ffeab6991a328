//! The simulated fleets of one model, kept equal to the live fleet in workers, curves, policy and limits.
//!
//! Every change is an event in simulated time, so that arrivals before it still meet the former
//! fleet.

use std::collections::BTreeMap;

use wardrop_core::WorkerId;
use wardrop_core::control::Routing;
use wardrop_sim::shadow::{Change, Limit, ShadowFleets};
use wardrop_sim::{EngineSpec, FleetSpec, PoolSpec, Role as SimRole, SimError, Timing};

use super::adoption::is_adoptable;
use super::report::ShadowArm;
use crate::config::{IN_FORCE, ShadowOptions, routers};
use crate::pool::{Member, Role};

/// The running shadow fleets of one model, one per arm, with the state that they were last given.
pub(super) struct Shadowed {
    /// Simulation of all arms.
    pub fleets: ShadowFleets,
    /// Roles of the shadowed pools, in the order of booking.
    pub roles: &'static [Role],
    /// Tokens per KV block, at least 1.
    pub block_size: u32,
    /// Workers of each pool in `roles`.
    pub members: Vec<BTreeMap<WorkerId, Member>>,
    /// Limits that arms relax. Their arms come after those of the policies.
    pub limits: Vec<Limit>,
    /// Policy and queue of each arm; the first arm runs the routing in force.
    routings: Vec<Routing>,
    /// Whether limits of goodput are set.
    pub has_goodput: bool,
    /// Limits of goodput that the fleets have.
    goodput: Option<GoodputLimits>,
}

/// Limits of goodput, in seconds; a request counts when it meets both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct GoodputLimits {
    /// Highest TTFT.
    pub ttft_s: f64,
    /// Highest mean ITL.
    pub itl_s: f64,
}

/// Engine of a worker from its reported values; unreported values are the simulator's defaults.
///
/// The number of blocks stays below half of the range, which the simulator's own arithmetic needs.
pub(super) fn engine(member: &Member, block_size: u32) -> EngineSpec {
    let known = EngineSpec::default();
    let blocks = member.total_kv_blocks.filter(|blocks| *blocks > 0);
    EngineSpec {
        block_size,
        num_blocks: blocks.map_or(known.num_blocks, |blocks| {
            u32::try_from(blocks).unwrap_or(u32::MAX).min(u32::MAX / 2 - 1)
        }),
        max_num_seqs: member.max_num_seqs.unwrap_or(known.max_num_seqs).max(1),
        max_num_batched_tokens: member
            .max_num_batched_tokens
            .unwrap_or(known.max_num_batched_tokens)
            .max(1),
        timing: Timing::Learned(member.curves),
        ..known
    }
}

/// Whether two members are the same worker, regardless of their learned curves.
///
/// Learned curves change all the time and need no new worker.
fn is_same(now: &Member, before: &Member) -> bool {
    let curves = now.curves;
    Member { curves, ..*before } == *now
}

impl Shadowed {
    /// Builds fleets with the given workers and one arm per routing; the last arms relax `limits`.
    ///
    /// It starts with the first worker of each pool, because a specification needs one, and lets
    /// the others join.
    ///
    /// # Errors
    /// A fleet or a routing that the simulator refuses.
    pub fn new(
        roles: &'static [Role],
        block_size: u32,
        members: Vec<BTreeMap<WorkerId, Member>>,
        routings: Vec<Routing>,
        limits: Vec<Limit>,
        options: &ShadowOptions,
    ) -> Result<Self, SimError> {
        let mut first = Vec::new();
        let mut pools = Vec::new();
        for (role, pool) in roles.iter().zip(&members) {
            if let Some((id, member)) = pool.first_key_value() {
                first.push(vec![*id]);
                pools.push(PoolSpec {
                    role: match role {
                        Role::Aggregated => SimRole::Aggregated,
                        Role::Prefill => SimRole::Prefill,
                        Role::Decode => SimRole::Decode,
                    },
                    speeds: vec![1.0],
                    engine: engine(member, block_size),
                });
            }
        }
        let fleet = FleetSpec {
            pools,
            ..FleetSpec::default()
        };
        let arms = options.arms(&routings, &limits, roles.len());
        let fleets = ShadowFleets::new(options.config(fleet, arms))?.with_members(&first);
        let mut shadowed = Self {
            fleets,
            roles,
            block_size,
            members: vec![BTreeMap::new(); roles.len()],
            limits,
            routings,
            has_goodput: false,
            goodput: None,
        };
        for (pool, ids) in first.iter().enumerate() {
            let known = ids.iter().filter_map(|id| Some((*id, *members[pool].get(id)?)));
            shadowed.members[pool] = known.collect();
        }
        shadowed.follow_members(members, 0.0)?;
        Ok(shadowed)
    }

    /// Lets workers that left leave, workers that are new join, and takes over the curves of the others.
    ///
    /// # Errors
    /// A worker that the simulator refuses.
    pub fn follow_members(
        &mut self,
        members: Vec<BTreeMap<WorkerId, Member>>,
        now_s: f64,
    ) -> Result<(), SimError> {
        for (pool, now) in members.iter().enumerate() {
            let before = &self.members[pool];
            let stays = |id: &WorkerId, member: &Member| before.get(id).is_some_and(|b| is_same(member, b));
            for id in before
                .keys()
                .filter(|id| !now.get(id).is_some_and(|m| stays(id, m)))
            {
                self.fleets.change(now_s, Change::Leave { pool, worker: *id })?;
            }
            for (id, member) in now {
                if stays(id, member) {
                    let timing = Timing::Learned(member.curves);
                    self.fleets.set_worker_timing(pool, *id, &timing)?;
                } else {
                    let engine = Box::new(engine(member, self.block_size));
                    let join = Change::Join {
                        pool,
                        worker: *id,
                        engine,
                    };
                    self.fleets.change(now_s, join)?;
                }
            }
        }
        self.members = members;
        Ok(())
    }

    /// Gives each arm whose routing changed new routers.
    ///
    /// # Errors
    /// A routing that the simulator refuses.
    pub fn follow_routings(&mut self, routings: Vec<Routing>, now_s: f64) -> Result<(), SimError> {
        let policies = routings.len() - self.limits.len();
        for (arm, (now, before)) in routings.iter().zip(&self.routings).enumerate() {
            if now != before {
                let seeds = if arm < policies { arm } else { 0 };
                let routers = routers(now, seeds, self.roles.len());
                self.fleets.change(now_s, Change::Routers { arm, routers })?;
            }
        }
        self.routings = routings;
        Ok(())
    }

    /// Sets the limits of goodput; `None` for no limits.
    pub fn set_limits(&mut self, limits: Option<GoodputLimits>) {
        self.has_goodput = limits.is_some();
        if self.goodput != limits {
            self.goodput = limits;
            if let Some(limits) = limits {
                self.fleets.set_limits(limits.ttft_s, limits.itl_s);
            }
        }
    }

    /// Policy and queue of each arm without a limit, for a report. The caller sets `does_harm` from the figures.
    pub fn arms(&self, options: &ShadowOptions) -> Vec<ShadowArm> {
        let names = std::iter::once(IN_FORCE).chain(options.policies.iter().map(|arm| arm.name.as_str()));
        let arm = |(name, routing): (&str, &Routing)| ShadowArm {
            name: name.to_owned(),
            policy: routing.policy.clone(),
            queue: routing.queue,
            is_adoptable: is_adoptable(routing, &self.routings[0]),
            does_harm: false,
        };
        names.zip(&self.routings).map(arm).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_has_the_reported_values_of_its_worker_and_else_the_simulators_defaults() {
        let mut member = Member {
            total_kv_blocks: Some(77),
            max_num_seqs: Some(3),
            max_num_batched_tokens: Some(5),
            incarnation: 0,
            curves: wardrop_core::latency::Prior::default(),
        };
        let spec = engine(&member, 16);
        assert_eq!(
            (
                spec.block_size,
                spec.num_blocks,
                spec.max_num_seqs,
                spec.max_num_batched_tokens
            ),
            (16, 77, 3, 5)
        );
        member.total_kv_blocks = None;
        assert_eq!(engine(&member, 16).num_blocks, 16_384);
        member.total_kv_blocks = Some(u64::MAX);
        assert!(engine(&member, 16).num_blocks < u32::MAX / 2);
    }
}
