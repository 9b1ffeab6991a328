//! One request through a router: learn two caches, decide, book, report the outcome.
//!
//! `cargo run --release -p wardrop-core --example route`. The tests run this program too.

use wardrop_core::{
    BlockHasher, DynamoConfig, EngineHash, Error, HashMode, HashScope, KvEvent, PolicyConfig, RequestId,
    RouteRequest, Router, RouterConfig, StoredBlock, Tier, WorkerId, WorkerSpec, sequence_hashes,
};

const BLOCK_SIZE: u32 = 16;

/// Routes one request and shows what the router knows before and after.
pub fn main() -> Result<(), Error> {
    let policy = PolicyConfig::Dynamo(DynamoConfig::default());
    let router = Router::new(RouterConfig::new(BLOCK_SIZE).with_policy(policy))?;
    let (first, second) = (WorkerId::new(1, 0), WorkerId::new(2, 0));
    router.add_worker(first, WorkerSpec::default())?;
    router.add_worker(second, WorkerSpec::default())?;

    // A prompt of 64 tokens is four blocks. The router compares hashes of blocks, never tokens.
    let prompt: Vec<u32> = (0..64).collect();
    let hasher = BlockHasher::new(HashMode::Xxh3, BLOCK_SIZE);
    let local_hashes = hasher.local_hashes(&prompt, &HashScope::default());

    // KV event: the second worker stored the first three blocks. The engine names each block by a hash of its own;
    // the sequence hash serves as that name here.
    let names = sequence_hashes(&local_hashes);
    let blocks = names.iter().zip(&local_hashes).take(3);
    router.apply(
        second,
        &KvEvent::Stored {
            parent: None,
            blocks: blocks
                .map(|(name, &local_hash)| StoredBlock {
                    engine_hash: EngineHash(name.0),
                    local_hash,
                })
                .collect(),
            tier: Tier::Device,
        },
    )?;

    // Request: the router matches, prices, picks and books in one step. Time is an argument, in seconds.
    let request = RouteRequest {
        request_id: Some(RequestId(7)),
        local_hashes: &local_hashes,
        input_tokens: prompt.len() as u32,
        explain: true,
        ..RouteRequest::default()
    };
    let decision = router.route(&request, 0.0)?;
    println!(
        "{} holds {} of 4 blocks",
        decision.worker, decision.overlap_blocks
    );
    assert_eq!(
        decision.worker, second,
        "the worker with the cached prefix costs less"
    );
    assert_eq!(decision.overlap_blocks, 3);
    for candidate in &decision.candidates {
        println!("candidate {}: cost {:.2}", candidate.worker, candidate.cost);
    }

    // The booking is load until the caller reports the outcome: 16 tokens of the prompt are not cached.
    let load = &router.snapshot().workers[1];
    assert_eq!((load.prefill_tokens, load.active_requests), (16, 1));

    // Outcome: the first token ends the prefill, the last one releases the booking.
    router.prefill_done(RequestId(7), 0.2)?;
    assert_eq!(router.snapshot().workers[1].prefill_tokens, 0);
    router.release(RequestId(7), 1.5)?;
    assert_eq!(router.snapshot().bookings, 0);
    Ok(())
}
