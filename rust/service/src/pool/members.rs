//! Workers come and go, and what a simulator needs of them: size, life, and how fast they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use wardrop_core::latency::Prior;
use wardrop_core::{Error, WorkerId, WorkerSpec};

use super::cursor::EventCursor;
use super::health::Health;
use super::{Audit, QueueError, Role, State, Worker, WorkerPool};
use crate::ServiceError;

/// Ranks that one instance may have; discovery is believed only so far.
const MAX_RANKS: u32 = 1024;

/// A worker as discovery tells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkerUpsert {
    /// The model that it serves.
    pub model: String,
    /// What it does.
    pub role: Role,
    /// Its instance.
    pub instance: u64,
    /// Its first rank.
    #[serde(default)]
    pub dp_start: u32,
    /// How many ranks it has.
    #[serde(default = "one")]
    pub dp_size: u32,
    /// KV blocks of one rank.
    #[serde(default)]
    pub total_kv_blocks: Option<u64>,
    /// Sequences that one rank runs at once.
    #[serde(default)]
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step of one rank.
    #[serde(default)]
    pub max_num_batched_tokens: Option<u32>,
}

fn one() -> u32 {
    1
}

/// One registered worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Member {
    /// Blocks of its KV cache, where it told.
    pub total_kv_blocks: Option<u64>,
    /// Sequences that it runs at once, where it told.
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step, where it told.
    pub max_num_batched_tokens: Option<u32>,
    /// Lives that its events have shown: each begins with an empty cache.
    pub incarnation: u64,
    /// What its curves have learned.
    pub curves: Prior,
}

impl WorkerPool {
    /// Every registered worker. O(workers).
    pub(crate) fn members(&self) -> BTreeMap<WorkerId, Member> {
        let state = self.state.lock();
        let views = state.router.curves();
        let curves: BTreeMap<WorkerId, Prior> = views
            .into_iter()
            .map(|view| (view.worker, view.coefficients))
            .collect();
        let member = |(id, worker): (&WorkerId, &Worker)| {
            let curves = *curves.get(id)?;
            let member = Member {
                total_kv_blocks: worker.spec.total_kv_blocks,
                max_num_seqs: worker.spec.max_num_seqs,
                max_num_batched_tokens: worker.spec.max_num_batched_tokens,
                incarnation: worker.cursor.incarnations,
                curves,
            };
            Some((*id, member))
        };
        state.workers.iter().filter_map(member).collect()
    }
}

impl WorkerPool {
    /// Workers registered.
    pub(crate) fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// Workers that may be chosen now.
    pub(crate) fn routable(&self) -> usize {
        self.state
            .lock()
            .workers
            .values()
            .filter(|worker| worker.available)
            .count()
    }

    /// Adds an instance with its ranks, or takes over its new figures. A known worker keeps blocks, load and health.
    pub(crate) fn upsert(&self, upsert: &WorkerUpsert) -> Result<(), ServiceError> {
        if upsert.dp_size == 0 || upsert.dp_size > MAX_RANKS || upsert.dp_start > u32::MAX - MAX_RANKS {
            return Err(ServiceError::Config(format!(
                "dp_size must be 1 to {MAX_RANKS}, got {} (dp_start {})",
                upsert.dp_size, upsert.dp_start
            )));
        }
        let mut spec = WorkerSpec::default();
        spec.total_kv_blocks = upsert.total_kv_blocks;
        spec.max_num_seqs = upsert.max_num_seqs;
        spec.max_num_batched_tokens = upsert.max_num_batched_tokens;
        let ranks = upsert.dp_start..upsert.dp_start + upsert.dp_size;
        let mut state = self.state.lock();
        let gone: Vec<WorkerId> = state
            .workers
            .keys()
            .filter(|id| id.instance == upsert.instance && !ranks.contains(&id.dp_rank))
            .copied()
            .collect();
        for id in gone {
            state.remove(id)?;
        }
        for rank in ranks {
            state.add(WorkerId::new(upsert.instance, rank), spec.clone(), upsert.dp_size)?;
        }
        self.size.store(state.workers.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Forgets an instance with its ranks; whether it was known.
    pub(crate) fn remove(&self, instance: u64) -> Result<bool, ServiceError> {
        let mut state = self.state.lock();
        let gone = state.ranks_of(instance);
        for id in &gone {
            state.remove(*id)?;
        }
        self.size.store(state.workers.len(), Ordering::Relaxed);
        if let Some(queue) = state.queue.as_mut().filter(|_| self.size() == 0) {
            queue.end_all(QueueError::NoWorker);
        }
        Ok(!gone.is_empty())
    }
}

impl State {
    /// The registered ranks of an instance.
    pub(super) fn ranks_of(&self, instance: u64) -> Vec<WorkerId> {
        let ids = self.workers.keys().filter(|id| id.instance == instance);
        ids.copied().collect()
    }

    fn add(&mut self, id: WorkerId, spec: WorkerSpec, ranks: u32) -> Result<(), Error> {
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.spec == spec
        {
            worker.ranks = ranks;
            return Ok(());
        }
        if self.workers.contains_key(&id) {
            self.remove(id)?;
        }
        self.router.add_worker(id, spec.clone())?;
        self.workers.insert(
            id,
            Worker {
                spec,
                ranks,
                available: true,
                fault: None,
                health: Health::default(),
                cursor: EventCursor::default(),
                position: Arc::default(),
                forward_pass: None,
                audit: Audit::default(),
            },
        );
        Ok(())
    }

    fn remove(&mut self, id: WorkerId) -> Result<(), Error> {
        if let Some(worker) = self.workers.remove(&id) {
            worker.position.forget();
        }
        self.router.remove_worker(id)
    }
}
