//! Figures as outside data contains them: the ends of every range, undefined numbers, and ordinary ones.

use proptest::prelude::*;
use wardrop_core::latency::Pass;
use wardrop_core::ledger::EngineQueue;
use wardrop_core::price::DynamoConfig;
use wardrop_core::{PolicyConfig, WorkerSpec};

use super::WORKERS;

/// Every policy, with a temperature where the policy has one.
pub fn policies() -> Vec<PolicyConfig> {
    let mut all: Vec<PolicyConfig> = PolicyConfig::NAMES
        .iter()
        .map(|name| PolicyConfig::from_name(name, &serde_json::Map::new()).unwrap())
        .collect();
    all.push(PolicyConfig::Dynamo(DynamoConfig {
        router_temperature: 0.7,
        overlap_score_credit_decay: 1e9,
        ..DynamoConfig::default()
    }));
    all
}

/// Counts that outside data contains: the ends of every range, and ordinary ones.
pub fn count() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(1 << 31),
        Just(u64::from(u32::MAX)),
        Just(1 << 52),
        Just(u64::MAX),
        1u64..100_000,
    ]
}

/// As [`count`], in 32 bits.
pub fn small_count() -> impl Strategy<Value = u32> {
    count().prop_map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

/// Seconds that outside data, or a broken clock, contains.
pub fn seconds() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(f64::MAX),
        Just(-1e300),
        Just(1e120),
        Just(5e-324),
        Just(0.0),
        0.0..1e4_f64,
        0.0..10.0_f64,
    ]
}

/// Sizes that a worker may report.
pub fn spec() -> impl Strategy<Value = WorkerSpec> {
    let size = || proptest::option::of(count());
    (size(), size(), size()).prop_map(|(blocks, sequences, tokens)| {
        let u32_of = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let mut spec = WorkerSpec::default();
        spec.total_kv_blocks = blocks;
        spec.max_num_seqs = sequences.map(u32_of);
        spec.max_num_batched_tokens = tokens.map(u32_of);
        spec
    })
}

/// One call with figures from outside.
#[derive(Clone, Debug)]
pub enum Step {
    Route {
        input_tokens: u32,
        output_tokens: Option<u32>,
        blocks: usize,
    },
    Offer {
        input_tokens: u32,
        weight: f64,
        priority: i32,
        deadline_s: Option<f64>,
    },
    FirstToken {
        at: usize,
    },
    Finish {
        at: usize,
        output_tokens: Option<u32>,
    },
    Pass(Pass),
    Queue(EngineQueue),
    Rejoin(WorkerSpec),
    Availability {
        at: u64,
        available: bool,
    },
    Observe(f64),
    Expire,
}

/// A report of an engine pass.
pub fn pass() -> impl Strategy<Value = Pass> {
    (0u64..3, count(), count(), 0u64..3, count(), seconds()).prop_map(
        |(prefills, prefill_tokens, prefill_kv_tokens, decodes, decode_kv_tokens, seconds)| Pass {
            prefills,
            prefill_tokens,
            prefill_kv_tokens,
            decodes,
            decode_kv_tokens,
            seconds,
        },
    )
}

/// Any call, the frequent kinds more often.
pub fn step() -> impl Strategy<Value = Step> {
    let output = || proptest::option::of(small_count());
    prop_oneof![
        3 => (small_count(), output(), 0usize..80).prop_map(|(input_tokens, output_tokens, blocks)| Step::Route {
            input_tokens,
            output_tokens,
            blocks,
        }),
        3 => (small_count(), seconds(), any::<i32>(), proptest::option::of(seconds())).prop_map(
            |(input_tokens, weight, priority, deadline_s)| Step::Offer { input_tokens, weight, priority, deadline_s }
        ),
        2 => (0usize..8).prop_map(|at| Step::FirstToken { at }),
        2 => (0usize..8, output()).prop_map(|(at, output_tokens)| Step::Finish { at, output_tokens }),
        2 => pass().prop_map(Step::Pass),
        2 => (small_count(), count(), small_count()).prop_map(|(waiting_prompts, waiting_tokens, computed_prompts)| {
            Step::Queue(EngineQueue { waiting_prompts, waiting_tokens, computed_prompts })
        }),
        1 => spec().prop_map(Step::Rejoin),
        1 => (0..WORKERS, any::<bool>()).prop_map(|(at, available)| Step::Availability { at, available }),
        1 => seconds().prop_map(Step::Observe),
        1 => Just(Step::Expire),
    ]
}
