//! The workers that callers registered, and the routing service's models, workers and feeds behind them.
//!
//! A worker becomes schedulable when its record is complete. The pool of a model and a routing group is one model of the routing
//! service; it is registered with its first schedulable worker and forgotten with its last. O(workers) per change.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use wardrop_core::WorkerId;
use wardrop_service::{Service, ServiceError};

use super::error::SelectError;
use super::workers::WorkerRecord;

/// Most workers.
const MAX_WORKERS: usize = 16_384;

/// All registered workers.
pub(crate) struct Fleet {
    service: Arc<Service>,
    /// Records by instance. The lock is held over a change of the routing service, so that two changes of a worker do not mix.
    workers: Mutex<BTreeMap<u64, WorkerRecord>>,
}

impl Fleet {
    /// A fleet without workers.
    pub fn new(service: Arc<Service>) -> Self {
        Self {
            service,
            workers: Mutex::default(),
        }
    }

    /// Registers a worker, or changes a registered one.
    ///
    /// # Errors
    /// A record that the routing service refuses.
    pub fn upsert(&self, record: WorkerRecord) -> Result<Value, SelectError> {
        self.upsert_among(&mut self.workers.lock(), record)
    }

    /// Registers or changes a worker among the records that the caller has locked.
    ///
    /// # Errors
    /// As [`Fleet::upsert`].
    fn upsert_among(
        &self,
        workers: &mut BTreeMap<u64, WorkerRecord>,
        record: WorkerRecord,
    ) -> Result<Value, SelectError> {
        let old = workers.get(&record.worker_id).cloned();
        if old.is_none() && workers.len() >= MAX_WORKERS {
            return Err(SelectError::Full(format!(
                "{MAX_WORKERS} workers are registered, the limit"
            )));
        }
        let others = workers
            .values()
            .filter(|other| other.worker_id != record.worker_id && other.pool() == record.pool());
        let mut sizes = others.filter_map(|other| other.block_size);
        let other = sizes.find(|size| record.block_size.is_some_and(|own| own != *size));
        if let Some(size) = other {
            return Err(SelectError::Invalid(format!(
                "block_size: got {}, expected {size} as the other workers of model={} routing_group={}",
                record.block_size.unwrap_or(0),
                record.model_name,
                record.routing_group
            )));
        }
        if let Some(old) = old.filter(|old| old.pool() != record.pool() || !record.reasons().is_empty()) {
            let _ = self
                .service
                .remove_worker(&old.pool(), "aggregated", old.worker_id);
        }
        if record.reasons().is_empty() {
            let model = serde_json::json!({"name": record.pool(), "block_size": record.block_size});
            self.service
                .upsert_model(&model.to_string())
                .map_err(|error| invalid(&error))?;
            self.service
                .upsert_worker(&record.worker_json())
                .map_err(|error| invalid(&error))?;
        }
        let shown = record.to_json(false);
        let feeds = if record.reasons().is_empty() {
            record.feeds()
        } else {
            Vec::new()
        };
        if let Some(old) = workers.insert(record.worker_id, record) {
            self.leave_feeds(&old, &feeds);
        }
        for (_, feed) in &feeds {
            self.service.subscribe(feed).map_err(|error| invalid(&error))?;
        }
        Ok(shown)
    }

    /// Changes fields of a registered worker.
    ///
    /// # Errors
    /// An unknown worker, or a field that cannot be changed so.
    pub fn patch(&self, worker_id: u64, patch: Value) -> Result<Value, SelectError> {
        // One lock from the reading to the writing: a change of another caller in between would be lost.
        let mut workers = self.workers.lock();
        let record = workers.get(&worker_id).ok_or_else(|| unknown_worker(worker_id))?;
        let patched = record.patched(patch)?;
        self.upsert_among(&mut workers, patched)
    }

    /// Forgets a worker. The caller ends the reservations on it.
    ///
    /// # Errors
    /// An unknown worker.
    pub fn delete(&self, worker_id: u64) -> Result<Value, SelectError> {
        let mut workers = self.workers.lock();
        let record = workers
            .remove(&worker_id)
            .ok_or_else(|| unknown_worker(worker_id))?;
        let is_last = !workers.values().any(|other| other.pool() == record.pool());
        self.leave_feeds(&record, &[]);
        let _ = self
            .service
            .remove_worker(&record.pool(), "aggregated", worker_id);
        if is_last {
            self.service.remove_model(&record.pool());
        }
        Ok(record.to_json(true))
    }

    /// Registered workers as callers see them.
    pub fn list(&self, model: Option<&str>, group: Option<&str>) -> Vec<Value> {
        self.records(model, group)
            .iter()
            .map(|record| record.to_json(false))
            .collect()
    }

    /// Registered workers.
    pub fn records(&self, model: Option<&str>, group: Option<&str>) -> Vec<WorkerRecord> {
        let workers = self.workers.lock();
        let wanted = workers.values().filter(|record| {
            model.is_none_or(|name| name == record.model_name)
                && group.is_none_or(|name| name == record.routing_group)
        });
        wanted.cloned().collect()
    }

    /// Address of a worker, where its record has one.
    pub fn endpoint(&self, worker_id: u64) -> Option<String> {
        self.workers.lock().get(&worker_id)?.endpoint.clone()
    }

    /// All ranks of the given workers; an unknown worker has none.
    pub fn ranks(&self, worker_ids: &[u64]) -> Vec<WorkerId> {
        let workers = self.workers.lock();
        let records = worker_ids.iter().filter_map(|id| workers.get(id));
        let ranks = records.flat_map(|record| {
            let start = record.data_parallel_start_rank.unwrap_or(0);
            let end = start.saturating_add(record.data_parallel_size.unwrap_or(1));
            (start..end).map(|rank| WorkerId::new(record.worker_id, rank))
        });
        ranks.collect()
    }

    /// Leaves the feeds of a worker that are not among `kept`.
    ///
    /// A feed that is kept stays connected, so a changed record loses no event of it.
    fn leave_feeds(&self, worker: &WorkerRecord, kept: &[(u64, String)]) {
        for feed in worker.feeds().iter().filter(|feed| !kept.contains(feed)) {
            self.service.unsubscribe(feed.0);
        }
    }
}

/// A refusal of the routing service, as the caller's fault.
fn invalid(error: &ServiceError) -> SelectError {
    SelectError::Invalid(error.to_string())
}

fn unknown_worker(worker_id: u64) -> SelectError {
    SelectError::NotFound(format!("worker {worker_id} not found"))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use serde_json::json;
    use wardrop_service::config::ServiceConfig;

    use super::*;

    const ROUNDS: u64 = 300;

    #[test]
    fn two_changes_of_one_worker_at_the_same_time_are_both_kept() {
        let service = Service::new(ServiceConfig::default()).expect("the defaults must be a configuration");
        let fleet = Fleet::new(service);
        let record = json!({"worker_id": 1, "endpoint": "http://a:1", "block_size": 16});
        let record = WorkerRecord::from_json(record).expect("the record is complete");
        fleet.upsert(record).expect("the worker fits");
        let start = Barrier::new(2);
        let change = |field: &str, value: u64| {
            start.wait();
            fleet
                .patch(1, json!({field: value}))
                .expect("the worker is known");
            start.wait();
        };
        let mut lost = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=ROUNDS).for_each(|round| change("total_kv_blocks", round)));
            for round in 1..=ROUNDS {
                change("max_num_batched_tokens", round);
                let shown = fleet.records(None, None).remove(0);
                let both = (shown.total_kv_blocks, shown.max_num_batched_tokens);
                // An assertion here would leave the other thread at the barrier.
                lost += usize::from(both != (Some(round), Some(round)));
            }
        });
        assert_eq!(lost, 0, "of {ROUNDS} pairs of changes, this many lost one");
    }
}
