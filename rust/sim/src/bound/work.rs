//! Least work of every request, in the units of each limit.
//!
//! A block is computed by the first request that can name it. A prompt loses one token to the rounding of
//! means. A shared block counts once over all requests that can hold it at the same time.

use super::floors::{PrefillFloor, StepFloor};
use super::share::{ByPrice, PRICES};
use super::sharing::Sharing;
use crate::engine::block_pool::NONE;
use crate::error::SimError;
use crate::spec::{FaultKind, FleetSpec};
use crate::workload::Workload;

pub(super) use super::floors::StepPrice;

/// Curves, speeds and memory of a fleet, at their best.
pub(super) struct Engines {
    prefill: PrefillFloor,
    step: StepFloor,
    /// Planes below the step curve; every entry of [`RequestWork::decode_ms`] has one.
    pub prices: Vec<StepPrice>,
    /// Sum of the speeds of the workers that prefill.
    pub prefill_speed: f64,
    /// Sum of the speeds of the workers that decode.
    pub decode_speed: f64,
    /// KV tokens of the workers that decode.
    pub memory_tokens: f64,
    pub is_split: bool,
    fastest_prefill: f64,
    fastest_decode: f64,
    block_size: u32,
    shares_prefixes: bool,
    /// Milliseconds of a transfer, for no bytes and per token.
    transfer_ms: [f64; 2],
}

impl Engines {
    /// The figures of a valid fleet.
    ///
    /// # Errors
    /// [`SimError::Config`] for a step curve that the proofs do not cover.
    pub fn new(spec: &FleetSpec, workload: &Workload) -> Result<Self, SimError> {
        let first = &spec.pools[0];
        let last = &spec.pools[spec.pools.len() - 1];
        let lengths = workload.input_tokens.iter().zip(&workload.output_tokens);
        let longest = lengths.map(|(input, output)| input + output).max().unwrap_or(1);
        let speeds = best_speeds(spec);
        let (prefill, decode) = if spec.pools.len() == 1 {
            (speeds.as_slice(), speeds.as_slice())
        } else {
            speeds.split_at(first.speeds.len())
        };
        let fastest = |speeds: &[f64]| speeds.iter().copied().fold(0.0, f64::max);
        let step = StepFloor::new(&last.engine, longest)?;
        let per_token_ms = first.engine.kv_bytes_per_token / spec.transfer.bandwidth_bytes_per_s * 1e3;
        let tokens = f64::from(last.engine.num_blocks) * f64::from(last.engine.block_size);
        Ok(Self {
            prefill: PrefillFloor::new(&first.engine, longest)?,
            prices: step.prices.clone(),
            step,
            prefill_speed: prefill.iter().sum(),
            decode_speed: decode.iter().sum(),
            memory_tokens: tokens * last.speeds.len() as f64,
            is_split: spec.pools.len() > 1,
            fastest_prefill: fastest(prefill),
            fastest_decode: fastest(decode),
            block_size: first.engine.block_size,
            shares_prefixes: spec.pools.iter().all(|pool| pool.engine.prefix_caching),
            transfer_ms: [spec.transfer.latency_ms, per_token_ms],
        })
    }
}

/// The highest speed that each worker has at any time.
fn best_speeds(spec: &FleetSpec) -> Vec<f64> {
    let speeds = spec.pools.iter().flat_map(|pool| &pool.speeds);
    let mut best: Vec<f64> = speeds.copied().collect();
    let plain = best.clone();
    for fault in &spec.faults {
        if let FaultKind::Speed { factor } = fault.kind {
            best[fault.worker] = best[fault.worker].max(plain[fault.worker] * factor);
        }
    }
    best
}

/// Least work of one request.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestWork {
    /// Least time to the first token alone.
    pub alone_ttft_ms: f64,
    /// Least time to the last token alone.
    pub alone_e2e_ms: f64,
    /// Prefill work at unit speed.
    pub prefill_ms: f64,
    /// Prefill work and, in an aggregated fleet, the decode step of the first token, at unit speed, one entry per price.
    pub first_token_ms: Vec<f64>,
    /// Decode work at unit speed, one entry per price.
    pub decode_ms: Vec<f64>,
    /// Held KV tokens × milliseconds.
    pub held_token_ms: f64,
    /// KV tokens that the prompt holds.
    pub prompt_held_tokens: f64,
    /// Least latency and worker time up to the first token, without its decode step, at each price of worker time.
    pub priced_prefill_ms: ByPrice,
    /// Least latency and worker time of all decode steps, at each price of worker time.
    pub priced_decode_ms: ByPrice,
}

/// The work of every request of a workload.
pub(super) fn request_works(
    spec: &FleetSpec,
    workload: &Workload,
    sharing: &Sharing,
    engines: &Engines,
) -> Vec<RequestWork> {
    debug_assert!(!spec.pools.is_empty(), "a valid fleet must have a pool");
    (0..workload.len())
        .map(|i| request_work(workload, sharing, engines, i))
        .collect()
}

/// The least work of one request. Every rounding goes in favour of the request, so that the bound stays a
/// bound.
fn request_work(workload: &Workload, sharing: &Sharing, engines: &Engines, i: usize) -> RequestWork {
    let size = engines.block_size;
    let (prompt, output) = (workload.input_tokens[i], workload.output_tokens[i]);
    let whole = prompt / size;
    // At least one token stays to be computed.
    let most_cached = (prompt - 1) / size;
    let (reusable, named, held, private) = if engines.shares_prefixes {
        (
            sharing.reusable_blocks[i],
            sharing.first_named_blocks[i],
            sharing.held_blocks[i],
            sharing.private_blocks[i],
        )
    } else {
        (0, whole, f64::from(whole), whole)
    };
    let mut alone_tokens = prompt - reusable.min(most_cached) * size;
    let unshared_tokens = alone_tokens;
    if engines.shares_prefixes && reusable < whole && sharing.later_sharers[i] > 0 {
        // Requests that compute these blocks in one pass lose a token each to the rounding of means.
        alone_tokens = alone_tokens.saturating_sub(sharing.later_sharers[i] + 1).max(1);
    }
    let last_is_named = whole > most_cached && (sharing.names_last_first[i] || !engines.shares_prefixes);
    let is_root = workload.after[i] == NONE;
    let own_tokens = (named - u32::from(last_is_named)) * size + (prompt - most_cached * size);

    let step = &engines.step;
    let first_step_ms = if step.has_first_step {
        step.step_ms(prompt)
    } else {
        0.0
    };
    let prefill_alone_ms = engines.prefill.at_least_ms(alone_tokens) / engines.fastest_prefill;
    let mut alone_ttft_ms = prefill_alone_ms;
    if engines.is_split {
        // Only the request's own transfer brings the blocks that no other request names.
        let blocks = private + (prompt.div_ceil(size) - whole);
        let [latency_ms, per_token_ms] = engines.transfer_ms;
        alone_ttft_ms += latency_ms + per_token_ms * f64::from(blocks * size);
    }
    let before_step_ms = alone_ttft_ms;
    alone_ttft_ms += first_step_ms / engines.fastest_decode;
    let last = prompt + (output - 1);
    let later_ms = step.steps_ms(prompt + 1, last) / engines.fastest_decode;

    let prefill_ms = engines.prefill.per_token_ms * f64::from(own_tokens.saturating_sub(1));
    let decode = decode_tokens(workload, engines, i, held);
    let price_ms = |price: &StepPrice, tokens: &DecodeTokens| {
        price.sequence_ms * tokens.steps
            + price.context_token_ms * tokens.context
            + price.held_token_ms * tokens.held
    };
    let joins_step = !engines.is_split && step.has_first_step;
    let first = DecodeTokens {
        steps: 1.0,
        context: f64::from(prompt),
        held: decode.first_held,
        ..decode
    };
    let first_token_ms = |price: &StepPrice| {
        let step_ms = if joins_step { price_ms(price, &first) } else { 0.0 };
        prefill_ms + step_ms
    };
    RequestWork {
        alone_ttft_ms,
        alone_e2e_ms: alone_ttft_ms + later_ms,
        prefill_ms,
        first_token_ms: engines.prices.iter().map(first_token_ms).collect(),
        decode_ms: engines
            .prices
            .iter()
            .map(|price| price_ms(price, &decode))
            .collect(),
        held_token_ms: decode.held_ms / engines.fastest_decode,
        prompt_held_tokens: decode.first_held,
        priced_prefill_ms: PRICES.map(|price| {
            let tokens = f64::from(own_tokens.saturating_sub(1));
            // Another request may compute the blocks of a later turn before the turn arrives, at a price and without latency.
            let waited_for = if is_root {
                tokens
            } else {
                tokens.min(f64::from(unshared_tokens - 1))
            };
            let speed = engines.fastest_prefill;
            let company_ms = engines.prefill.priced_ms(price * speed, waited_for) / speed
                + price * engines.prefill.per_token_ms * (tokens - waited_for);
            // The transfer of a split is no work of a worker.
            let moved_ms = before_step_ms - prefill_alone_ms;
            moved_ms + company_ms.max(prefill_alone_ms + price * engines.prefill.per_token_ms * tokens)
        }),
        priced_decode_ms: priced_decode_ms(
            engines,
            &decode,
            first_step_ms / engines.fastest_decode + later_ms,
        ),
    }
}

/// Least latency and worker time of the decode steps of a request at each price. `alone_ms` is their time on an idle worker.
fn priced_decode_ms(engines: &Engines, decode: &DecodeTokens, alone_ms: f64) -> ByPrice {
    let (load, speed) = (&engines.step.load, engines.fastest_decode);
    if decode.steps <= 0.0 {
        return [alone_ms; PRICES.len()];
    }
    let [first, last] = decode.ends.map(|end| load.of(end.context, end.held));
    let mean = load.of(decode.context / decode.steps, decode.held / decode.steps);
    // The least cost is concave in the share, so the line between the first and the last step lies below it.
    let late = if last > first {
        ((mean - first) / (last - first)).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let least_load = load.of(decode.ends[0].context, decode.ends[0].whole_held);
    let per_load_ms = load.curve.per_load_ms();
    PRICES.map(|price| {
        let step_ms = |share: f64| load.curve.least_ms(price * speed, share, least_load) / speed;
        let company_ms = decode.steps * ((1.0 - late) * step_ms(first) + late * step_ms(last));
        company_ms.max(alone_ms + price * per_load_ms * mean * decode.steps)
    })
}

/// Sums over the decode steps of a request.
struct DecodeTokens {
    /// Number of steps.
    steps: f64,
    /// Sum of the contexts, in tokens.
    context: f64,
    /// Sum of the held tokens.
    held: f64,
    /// Sum of the held tokens × least milliseconds of the step.
    held_ms: f64,
    /// Held tokens in the first step.
    first_held: f64,
    /// The first and the last step.
    ends: [StepEnd; 2],
}

/// One decode step of a request.
#[derive(Clone, Copy, Debug, Default)]
struct StepEnd {
    /// Tokens of the context.
    context: f64,
    /// Held tokens, where a shared block counts in part.
    held: f64,
    /// Held tokens, where a shared block counts in full.
    whole_held: f64,
}

/// Sums over the decode steps of a request, each at the least KV memory that it can hold. O(blocks of the
/// answer).
fn decode_tokens(workload: &Workload, engines: &Engines, i: usize, held_blocks: f64) -> DecodeTokens {
    let size = engines.block_size;
    let (prompt, output) = (workload.input_tokens[i], workload.output_tokens[i]);
    let whole = prompt / size;
    let held = |blocks: u32| f64::from(size) * (held_blocks + f64::from(blocks - whole));
    let mut tokens = DecodeTokens {
        steps: 0.0,
        context: 0.0,
        held: 0.0,
        held_ms: 0.0,
        first_held: held(prompt.div_ceil(size)),
        ends: [StepEnd::default(); 2],
    };
    let end = |length: u32| StepEnd {
        context: f64::from(length),
        held: held(length.div_ceil(size)),
        whole_held: f64::from(length.div_ceil(size) * size),
    };
    let mut length = if engines.step.has_first_step {
        prompt
    } else {
        prompt + 1
    };
    let last = prompt + (output - 1);
    tokens.ends = [end(length), end(last.max(length))];
    // One turn of the loop per block.
    while length <= last {
        let blocks = length.div_ceil(size);
        let until = last.min(blocks * size);
        let steps = f64::from(until - length + 1);
        tokens.steps += steps;
        tokens.context += steps * 0.5 * (f64::from(length) + f64::from(until));
        tokens.held += steps * held(blocks);
        tokens.held_ms += steps * held(blocks) * engines.step.step_ms(length);
        length = until + 1;
    }
    tokens
}
