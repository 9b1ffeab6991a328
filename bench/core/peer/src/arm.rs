//! The indexes under measurement, with one face.

use std::collections::BTreeMap;
use std::sync::Arc;

use dynamo_kv_router::indexer::{SyncIndexer, WorkerTask};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent,
};
use dynamo_kv_router::{ConcurrentRadixTreeCompressed, RadixTree};
use wardrop_core::{
    DynamoConfig, EngineHash, KvEvent, LocalHash, PolicyConfig, RouteRequest, Router, RouterConfig,
    SequenceHash, StoredBlock, Tier, WorkerId, WorkerSpec,
};

/// Leading blocks by worker; workers that hold none are left out.
pub type Answer = BTreeMap<u64, u32>;

/// A prompt in every form that an arm wants.
pub struct Prompt {
    pub locals: Vec<LocalHash>,
    pub sequence: Vec<SequenceHash>,
    pub theirs: Vec<LocalBlockHash>,
}

impl Prompt {
    pub fn new(locals: Vec<LocalHash>) -> Self {
        let sequence = wardrop_core::sequence_hashes(&locals);
        let theirs = locals.iter().map(|local| LocalBlockHash(local.0)).collect();
        Self {
            locals,
            sequence,
            theirs,
        }
    }

    pub fn request(&self, with_sequence: bool) -> RouteRequest<'_> {
        RouteRequest {
            local_hashes: &self.locals,
            sequence_hashes: if with_sequence { &self.sequence } else { &[] },
            input_tokens: 16 * self.locals.len() as u32,
            ..RouteRequest::default()
        }
    }
}

/// A change of a worker's cache, for all.
pub enum Change<'a> {
    Stored(&'a Prompt, usize),
    Removed(&'a Prompt, &'a [usize]),
}

pub fn wardrop(workers: u64) -> Router {
    let config = RouterConfig::new(16).with_policy(PolicyConfig::Dynamo(DynamoConfig::default()));
    let router = Router::new(config).expect("the defaults are valid");
    for worker in 0..workers {
        let added = router.add_worker(WorkerId::new(worker, 0), WorkerSpec::default());
        added.expect("ids are distinct");
    }
    router
}

/// The event for Wardrop.
pub fn ours(change: &Change<'_>) -> KvEvent {
    match change {
        Change::Stored(prompt, blocks) => {
            let pairs = prompt.locals.iter().zip(&prompt.sequence).take(*blocks);
            KvEvent::Stored {
                parent: None,
                blocks: pairs
                    .map(|(&local_hash, name)| StoredBlock {
                        engine_hash: EngineHash(name.0),
                        local_hash,
                    })
                    .collect(),
                tier: Tier::Device,
            }
        }
        Change::Removed(prompt, places) => KvEvent::Removed {
            blocks: places
                .iter()
                .map(|&at| EngineHash(prompt.sequence[at].0))
                .collect(),
            tier: Tier::Device,
        },
    }
}

/// The event for Dynamo.
pub fn theirs(worker: u64, change: &Change<'_>) -> RouterEvent {
    let name = |at: usize, prompt: &Prompt| ExternalSequenceBlockHash(prompt.sequence[at].0);
    let data = match change {
        Change::Stored(prompt, blocks) => KvCacheEventData::Stored(KvCacheStoreData {
            parent_hash: None,
            start_position: None,
            blocks: (0..*blocks)
                .map(|at| KvCacheStoredBlockData {
                    block_hash: name(at, prompt),
                    tokens_hash: prompt.theirs[at],
                    mm_extra_info: None,
                })
                .collect(),
        }),
        Change::Removed(prompt, places) => KvCacheEventData::Removed(KvCacheRemoveData {
            block_hashes: places.iter().map(|&at| name(at, prompt)).collect(),
        }),
    };
    let event = KvCacheEvent {
        event_id: 0,
        data,
        dp_rank: 0,
    };
    RouterEvent::new(worker, event)
}

pub fn answer_of(router: &Router, prompt: &Prompt) -> Answer {
    let found = router.find_matches(&prompt.locals);
    found
        .into_iter()
        .map(|overlap| (overlap.worker.instance, overlap.device))
        .collect()
}

pub fn answer_in(scores: &OverlapScores) -> Answer {
    let held = scores.scores.iter().filter(|(_, blocks)| **blocks > 0);
    held.map(|(worker, &blocks)| (worker.worker_id, blocks)).collect()
}

/// Dynamo's index behind its thread: reads on the caller's thread, writes through a channel.
pub struct Concurrent {
    pub tree: Arc<ConcurrentRadixTreeCompressed>,
    writer: flume::Sender<WorkerTask>,
}

impl Concurrent {
    pub fn new() -> Self {
        let tree = Arc::new(ConcurrentRadixTreeCompressed::new());
        let (writer, reader) = flume::unbounded();
        let behind = Arc::clone(&tree);
        std::thread::spawn(move || behind.worker(reader, None));
        Self { tree, writer }
    }

    pub fn apply(&self, event: RouterEvent) {
        self.writer
            .send(WorkerTask::Event(event))
            .expect("its thread runs");
    }

    /// Waits until what was sent is applied: until `prompt` is answered as `expected`, or a while is over.
    pub fn settle(&self, prompt: &Prompt, expected: &Answer) -> bool {
        for _ in 0..2_000 {
            if self.writer.is_empty()
                && answer_in(&self.tree.find_matches(&prompt.theirs, false)) == *expected
            {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        false
    }
}

pub fn radix() -> RadixTree {
    RadixTree::new()
}
