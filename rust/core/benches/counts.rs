//! Fixed cases for instruction counts: `make gate` runs this program under valgrind's callgrind.
//!
//! `counts CASE` prepares the state and then does the work inside [`measured`], the only function that callgrind counts.
//! Without an argument the program lists the cases.

mod fixture;

use std::hint::black_box;

use fixture::{chain, stored};
use wardrop_core::{
    BlockHasher, DynamoConfig, EngineHash, HashKey, HashMode, HashScope, KvEvent, LocalHash, PolicyConfig,
    PredictedConfig, PredictedUse, PromptHashes, RequestId, RouteRequest, Router, RouterConfig, Tier,
    WorkerId, sequence_hashes,
};

const CASES: [&str; 13] = [
    "hash_xxh3",
    "hash_keyed",
    "hash_and_chain",
    "extend_by_one_block",
    "route_one_holder",
    "route_one_holder_with_sequence",
    "route_all_holders",
    "route_4096_workers",
    "route_miss",
    "book_and_release",
    "book_and_release_predicted",
    "store_new",
    "remove_half",
];

/// Callgrind finds this function by its name, so the compiler must not inline it.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn fleet(workers: u64, predicted: PredictedUse) -> Router {
    let config = RouterConfig::new(16)
        .with_policy(PolicyConfig::Dynamo(DynamoConfig::default()))
        .with_predicted(PredictedConfig::new(predicted));
    fixture::fleet(config, workers)
}

fn removed(locals: &[LocalHash]) -> KvEvent {
    let names = sequence_hashes(locals).into_iter().map(|name| EngineHash(name.0));
    KvEvent::Removed {
        blocks: names.collect(),
        tier: Tier::Device,
    }
}

fn request(locals: &[LocalHash]) -> RouteRequest<'_> {
    RouteRequest {
        local_hashes: locals,
        input_tokens: 16 * locals.len() as u32,
        ..RouteRequest::default()
    }
}

fn hashing(case: &str) {
    let tokens: Vec<u32> = (0..16_384).collect();
    let scope = HashScope::default();
    let plain = BlockHasher::new(HashMode::Xxh3, 16);
    let keyed = BlockHasher::new(HashMode::Keyed(HashKey::new([7; 16])), 16);
    let mut prompt = PromptHashes::new(&plain, &scope);
    match case {
        "hash_xxh3" => drop(measured(|| plain.local_hashes(&tokens, &scope))),
        "hash_keyed" => drop(measured(|| keyed.local_hashes(&tokens, &scope))),
        "hash_and_chain" => measured(|| prompt.extend(&tokens)),
        _ => {
            prompt.extend(&tokens);
            measured(|| (0..1000).for_each(|_| prompt.extend(&tokens[..16])));
        }
    }
}

/// Size of a routing case.
struct Shape {
    workers: u64,
    prompt_blocks: usize,
    /// Workers that hold the whole prompt.
    holders: u64,
}

const fn shape(case: &str) -> Shape {
    let (workers, prompt_blocks, holders) = match case.as_bytes() {
        b"route_all_holders" => (64, 1024, 64),
        b"route_4096_workers" => (4096, 128, 4096),
        b"route_miss" => (64, 1024, 0),
        _ => (64, 1024, 1),
    };
    Shape {
        workers,
        prompt_blocks,
        holders,
    }
}

fn routing(case: &str) {
    let predicted = if case.ends_with("predicted") {
        PredictedUse::Beside
    } else {
        PredictedUse::Off
    };
    let Shape {
        workers,
        prompt_blocks,
        holders,
    } = shape(case);
    let router = fleet(workers, predicted);
    for of in 0..64 {
        let event = stored(&chain(1000 + of, 512));
        router
            .apply(WorkerId::new(of % workers, 0), &event)
            .expect("a chain can be stored");
    }
    let locals = chain(1, prompt_blocks);
    for worker in 0..holders {
        router
            .apply(WorkerId::new(worker, 0), &stored(&locals))
            .expect("a chain can be stored");
    }
    let sequence = sequence_hashes(&locals);
    let mut asked = request(&locals);
    if case.ends_with("sequence") {
        asked.sequence_hashes = &sequence;
    }
    let route = |id: Option<u64>| {
        let asked = RouteRequest {
            request_id: id.map(RequestId),
            ..asked
        };
        let decision = router.route(&asked, 0.0).expect("workers are there");
        assert_eq!(decision.overlap_blocks > 0, holders > 0);
    };
    let book = |id: u64| {
        route(Some(id));
        router.prefill_done(RequestId(id), 0.0).expect("it is booked");
        router.release(RequestId(id), 0.0).expect("it is booked");
    };
    if case.starts_with("book") {
        (0..20).for_each(book);
        measured(|| (20..120).for_each(book));
    } else {
        (0..20).for_each(|_| route(None));
        measured(|| (0..100).for_each(|_| route(None)));
    }
}

fn writing(case: &str) {
    let router = fleet(8, PredictedUse::Off);
    let worker = |of: u64| WorkerId::new(of % 8, 0);
    let chains: Vec<Vec<LocalHash>> = (0..64).map(|of| chain(of, 512)).collect();
    let stores: Vec<KvEvent> = chains.iter().map(|locals| stored(locals)).collect();
    let apply = |events: &[KvEvent]| {
        for (of, event) in (0..).zip(events) {
            router.apply(worker(of), event).expect("the events are in order");
        }
    };
    if case == "store_new" {
        measured(|| apply(&stores));
    } else {
        apply(&stores);
        let halves: Vec<KvEvent> = chains
            .iter()
            .map(|locals| {
                let KvEvent::Removed { mut blocks, tier } = removed(locals) else {
                    unreachable!("`removed` returns a removed event")
                };
                blocks.drain(..256);
                KvEvent::Removed { blocks, tier }
            })
            .collect();
        measured(|| apply(&halves));
    }
}

fn main() {
    let case = std::env::args().nth(1).unwrap_or_default();
    match case.as_str() {
        case if !CASES.contains(&case) => println!("{}", CASES.join("\n")),
        case if case.starts_with("hash") || case.starts_with("extend") => hashing(case),
        case if case.starts_with("store") || case.starts_with("remove") => writing(case),
        case => routing(case),
    }
}
