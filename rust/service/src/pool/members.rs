//! Workers that join, change their sizes and leave, and the view of them that a simulator needs.
//!
//! Discovery reports the sizes. This module validates each size once: a size out of bounds is unknown.
//!
//! Changes of membership are rare and may be long: they take a lock of their own, and the pool's
//! lock only for short steps. A decision never waits for the removal of blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use wardrop_core::latency::Prior;
use wardrop_core::{Error, KvEvent, WorkerId, WorkerSpec};

use super::cursor::EventCursor;
use super::health::Health;
use super::{FeedTrust, QueueError, Role, State, Worker, WorkerPool};
use crate::ServiceError;

/// Highest number of ranks of one instance. The router limits the ranks of all instances.
const MAX_RANKS: u32 = 1024;
/// Highest number of KV blocks of one rank that is believed: 2⁴⁰ blocks of 16 tokens exceed any memory.
const MAX_KV_BLOCKS: u64 = 1 << 40;

/// A reported size within its bounds; `None` for a size that is missing, 0 or absurd, because it is unknown then.
fn known_size(reported: Option<u64>, most: u64) -> Option<u64> {
    reported.filter(|size| (1..=most).contains(size))
}

/// A worker as discovery reports it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkerUpsert {
    /// Name of the model that the worker serves.
    pub model: String,
    /// Role of the worker.
    pub role: Role,
    /// Id of the instance.
    pub instance: u64,
    /// First rank of the instance.
    #[serde(default)]
    pub dp_start: u32,
    /// Number of ranks, 1 to [`MAX_RANKS`].
    #[serde(default = "one")]
    pub dp_size: u32,
    /// KV blocks of one rank; `None` where unknown.
    #[serde(default)]
    pub total_kv_blocks: Option<u64>,
    /// Sequences that one rank runs at once; `None` where unknown.
    #[serde(default)]
    pub max_num_seqs: Option<u64>,
    /// Tokens of one step of one rank; `None` where unknown.
    #[serde(default)]
    pub max_num_batched_tokens: Option<u64>,
}

impl WorkerUpsert {
    /// The sizes of one rank. A size outside its bounds is unknown, never 0 or infinite.
    ///
    /// A price divides by these sizes, so a wrong size must not reach the router.
    fn spec(&self) -> WorkerSpec {
        let size_u32 = |size| {
            let known = known_size(size, u64::from(u32::MAX - 1))?;
            u32::try_from(known).ok()
        };
        let mut spec = WorkerSpec::default();
        spec.total_kv_blocks = known_size(self.total_kv_blocks, MAX_KV_BLOCKS);
        spec.max_num_seqs = size_u32(self.max_num_seqs);
        spec.max_num_batched_tokens = size_u32(self.max_num_batched_tokens);
        spec
    }
}

/// Default number of ranks of an instance that reports none.
fn one() -> u32 {
    1
}

/// One registered worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Member {
    /// Blocks of the KV cache; `None` where unknown.
    pub total_kv_blocks: Option<u64>,
    /// Sequences that the worker runs at once; `None` where unknown.
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step; `None` where unknown.
    pub max_num_batched_tokens: Option<u32>,
    /// Restarts that the worker's events showed. Each incarnation begins with an empty cache.
    pub incarnation: u64,
    /// Learned latency curves of the worker.
    pub curves: Prior,
}

impl WorkerPool {
    /// Every registered worker. O(workers).
    ///
    /// Shadow fleets rebuild their simulated workers from it.
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
    /// Number of registered workers.
    pub(crate) fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// Workers of every instance but one, in id order. O(workers).
    pub(crate) fn others(&self, instance: u64) -> Vec<WorkerId> {
        self.workers_on(|other| other != instance)
    }

    /// Workers of the instances that `is_wanted` names, in id order. O(workers).
    pub(crate) fn workers_on(&self, is_wanted: impl Fn(u64) -> bool) -> Vec<WorkerId> {
        let state = self.state.lock();
        let ids = state.workers.keys().filter(|id| is_wanted(id.instance));
        ids.copied().collect()
    }

    /// Number of workers that the router may choose now.
    ///
    /// O(workers) under the pool's lock.
    pub(crate) fn routable(&self) -> usize {
        self.state
            .lock()
            .workers
            .values()
            .filter(|worker| worker.available)
            .count()
    }

    /// Adds an instance with its ranks, or updates its sizes. A known worker keeps its blocks, load and health.
    ///
    /// Ranks that the instance no longer has are removed with their blocks.
    ///
    /// # Errors
    /// The number of ranks is out of range, or the router has no room for all of them. Nothing has changed then.
    pub(crate) fn upsert(&self, upsert: &WorkerUpsert) -> Result<(), ServiceError> {
        if upsert.dp_size == 0 || upsert.dp_size > MAX_RANKS || upsert.dp_start > u32::MAX - MAX_RANKS {
            return Err(ServiceError::Config(format!(
                "dp_size must be 1 to {MAX_RANKS}, got {} (dp_start {})",
                upsert.dp_size, upsert.dp_start
            )));
        }
        let spec = upsert.spec();
        let ranks = upsert.dp_start..upsert.dp_start + upsert.dp_size;
        let _change = self.changes.lock();
        let gone: Vec<WorkerId> = {
            let state = self.state.lock();
            let known = state.ranks_of(upsert.instance);
            // The check comes before any change, so a fleet at its limit keeps the ranks that it
            // has.
            let others = state.workers.len() - known.len();
            let limit = self.router.config().max_workers;
            if others + upsert.dp_size as usize > limit {
                return Err(Error::TooManyWorkers { limit }.into());
            }
            known
                .into_iter()
                .filter(|id| !ranks.contains(&id.dp_rank))
                .collect()
        };
        self.drop_workers(&gone)?;
        let state = &mut *self.state.lock();
        for rank in ranks {
            state.add(WorkerId::new(upsert.instance, rank), &spec, upsert.dp_size)?;
        }
        self.size.store(state.workers.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Removes an instance with its ranks. Returns whether the instance was registered.
    ///
    /// Waiting requests of a pool that is left without workers end at once, because no later pump
    /// could place them.
    ///
    /// # Errors
    /// The router does not know a worker that the pool knows.
    pub(crate) fn remove(&self, instance: u64) -> Result<bool, ServiceError> {
        let _change = self.changes.lock();
        let gone = self.state.lock().ranks_of(instance);
        self.drop_workers(&gone)?;
        let state = &mut *self.state.lock();
        self.size.store(state.workers.len(), Ordering::Relaxed);
        if let Some(queue) = state.queue.as_mut().filter(|_| self.size() == 0) {
            queue.end_all(QueueError::NoWorker);
        }
        Ok(!gone.is_empty())
    }

    /// Removes workers. Their blocks, which may be a million, are removed without the pool's lock, so that no decision waits.
    fn drop_workers(&self, gone: &[WorkerId]) -> Result<(), Error> {
        for id in gone {
            // From here on the worker is not chosen, and its events count as those of an unknown worker.
            self.state.lock().forget(*id)?;
            let _ = self.router.apply(*id, &KvEvent::Cleared);
            self.state.lock().router.remove_worker(*id)?;
        }
        Ok(())
    }
}

impl State {
    /// The registered ranks of an instance.
    pub(super) fn ranks_of(&self, instance: u64) -> Vec<WorkerId> {
        let ids = self.workers.keys().filter(|id| id.instance == instance);
        ids.copied().collect()
    }

    /// Adds a worker, or updates the sizes of a known worker, which keeps everything else.
    fn add(&mut self, id: WorkerId, spec: &WorkerSpec, ranks: u32) -> Result<(), Error> {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ranks = ranks;
            if worker.spec != *spec {
                self.router.set_spec(id, spec.clone())?;
                worker.spec = spec.clone();
            }
            return Ok(());
        }
        self.router.add_worker(id, spec.clone())?;
        self.workers.insert(
            id,
            Worker {
                spec: spec.clone(),
                ranks,
                available: true,
                fault: None,
                health: Health::default(),
                cursor: EventCursor::default(),
                position: Arc::default(),
                forward_pass: None,
                engine_load: None,
                tail_event_s: None,
                trust: FeedTrust::default(),
            },
        );
        Ok(())
    }

    /// Ends a worker's part in decisions and its feed. The router still has its blocks and its load.
    fn forget(&mut self, id: WorkerId) -> Result<(), Error> {
        if let Some(mut worker) = self.workers.remove(&id) {
            worker.position.forget();
            worker.cursor.drop_kept(&mut self.kept);
        }
        self.router.set_available(id, false)
    }
}
