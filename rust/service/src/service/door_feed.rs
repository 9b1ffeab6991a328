//! Feeds that a door reads itself: a frontend inside Dynamo's runtime has Dynamo's own subscriber for every event plane.
//!
//! ```text
//! door's subscriber ─▶ DoorFeed::kv_events, forward_pass ─▶ pool (order of events) ─▶ index, curves, health
//! begin_dump ─▶ door's query to a worker ─▶ load_dump ─▶ the worker's blocks, exact again
//! ```
//!
//! Payloads meet the same limits as messages of the service's own feeds. O(blocks in the payload).

use std::sync::Arc;

use wardrop_core::WorkerId;
use wardrop_engines::dynamo::{Malformed, decode_forward_pass, decode_kv_events};

use super::Service;
use crate::ServiceError;
use crate::feed::malformed_reason;
use crate::pool::{EventSource, Role, WorkerPool};

/// Entry for the feeds of one pool.
pub struct DoorFeed {
    /// Service whose pool takes the events.
    service: Arc<Service>,
    /// Name of the model. It is looked up for each message, since a model may be registered anew.
    model: String,
    /// Role of the pool.
    role: Role,
}

impl Service {
    /// An entry for feeds of a pool that the door reads itself. The pool may be registered later, or anew.
    pub fn door_feed(self: &Arc<Self>, model: &str, role: Role) -> DoorFeed {
        DoorFeed {
            service: self.clone(),
            model: model.to_owned(),
            role,
        }
    }
}

impl DoorFeed {
    /// Takes the payload of one `kv-events` message. A refused payload is counted.
    ///
    /// An event that cannot be read may have changed any block, so the blocks of the publisher's workers are suspect then.
    /// Events for a model that is not registered are dropped: its workers have no index yet.
    pub fn kv_events(&self, publisher_id: u64, payload: &[u8]) {
        let Some(pool) = self.pool() else { return };
        let decoded = match decode_kv_events(payload) {
            Ok(decoded) => decoded,
            Err(malformed) => {
                pool.feed_interrupted(None, Some(publisher_id));
                return self.count_malformed(malformed);
            }
        };
        if decoded.unreadable > 0 {
            pool.feed_interrupted(None, Some(publisher_id));
        }
        let source = EventSource {
            publisher: publisher_id,
            owner: None,
        };
        let unreadable = decoded.unreadable as u64;
        let counts = pool.apply(decoded.events, source, self.service.clock.now_s());
        self.service.metrics.feeds.count_events(&counts, unreadable);
    }

    /// Takes the payload of one `forward-pass-metrics` message. A refused payload is counted.
    pub fn forward_pass(&self, payload: &[u8]) {
        let Some(pool) = self.pool() else { return };
        match decode_forward_pass(payload) {
            Ok(step) => {
                pool.forward_pass(step, None, self.service.clock.now_s());
            }
            Err(malformed) => self.count_malformed(malformed),
        }
    }

    /// Records that events may be lost: the blocks of every worker are suspect until a dump replaces them.
    ///
    /// A door reads one event plane for all workers, so a loss may concern any of them.
    pub fn interrupted(&self) {
        if let Some(pool) = self.pool() {
            pool.feed_interrupted(None, None);
        }
    }

    /// Workers whose index a dump has to complete or to confirm. O(workers).
    pub fn needing_dump(&self) -> Vec<WorkerId> {
        self.pool().map_or_else(Vec::new, |pool| pool.needing_dump())
    }

    /// Begins to keep the live events of one worker, before its dump is read. Returns whether the worker needs the dump.
    pub fn begin_dump(&self, worker: WorkerId) -> bool {
        self.pool().is_some_and(|pool| pool.begin_worker_dump(worker))
    }

    /// Replaces the blocks of one worker by a dump, given as `kv-events` payloads in order, and by its live events since
    /// [`DoorFeed::begin_dump`]. Returns whether the blocks are complete; otherwise the worker needs another dump.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for a payload that is no list of events.
    pub fn load_dump(&self, worker: WorkerId, payloads: &[Vec<u8>]) -> Result<bool, ServiceError> {
        let Some(pool) = self.pool() else { return Ok(false) };
        let mut dump = Vec::new();
        for payload in payloads {
            let decoded = decode_kv_events(payload)
                .map_err(|error| ServiceError::Config(format!("a dump of worker {worker}: {error}")))?;
            if decoded.unreadable > 0 {
                return Err(ServiceError::Config(format!(
                    "a dump of worker {worker}: {} events cannot be read, expected every block of the worker",
                    decoded.unreadable
                )));
            }
            dump.extend(decoded.events.into_iter().filter(|event| event.worker == worker));
        }
        let counts = pool.load_worker_dump(worker, dump);
        let applied = counts.as_ref().map_or(0, |counts| counts.applied);
        self.service.metrics.feeds.count_dumped(applied);
        Ok(counts.is_some())
    }

    /// The present pool; `None` while the model is not registered.
    fn pool(&self) -> Option<Arc<WorkerPool>> {
        let (model, _) = self.service.models.find(&self.model)?;
        Some(model.pool(self.role).clone())
    }

    /// Counts a refused payload by its reason.
    fn count_malformed(&self, malformed: Malformed) {
        self.service
            .metrics
            .feeds
            .count_malformed(malformed_reason(malformed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServiceConfig;
    use crate::{PlaceHints, ReadyPrompt};
    use serde_json::json;
    use wardrop_core::{DynamoConfig, PolicyConfig};

    const MODEL: &str = "m";

    fn service() -> Arc<Service> {
        let mut config = ServiceConfig::default();
        config.routing.policy = PolicyConfig::Dynamo(DynamoConfig::default());
        let service = Service::new(config).unwrap();
        let model = json!({"name": MODEL, "block_size": 4});
        service.upsert_model(&model.to_string()).unwrap();
        for instance in [1, 2] {
            let worker = json!({"model": MODEL, "role": "aggregated", "instance": instance});
            service.upsert_worker(&worker.to_string()).unwrap();
        }
        service
    }

    /// A payload of `kv-events`: worker 2 stores the blocks of `tokens`.
    fn stored(event_id: u64, tokens: &[u32]) -> Vec<u8> {
        let hashes = wardrop_core::local_hashes(tokens, 4, &wardrop_core::HashScope::default());
        let blocks: Vec<_> = hashes
            .iter()
            .enumerate()
            .map(|(at, hash)| json!({"block_hash": at + 1, "tokens_hash": hash.0}))
            .collect();
        let event = json!({
            "worker_id": 2,
            "event": {"event_id": event_id, "data": {"stored": {"parent_hash": null, "blocks": blocks}}, "dp_rank": 0},
        });
        rmp_serde::to_vec_named(&[event]).unwrap()
    }

    async fn overlap(service: &Arc<Service>, tokens: &[u32]) -> (u64, u32) {
        let ready = ReadyPrompt {
            tokens,
            ..ReadyPrompt::default()
        };
        let prepared = service.prepare_ready(MODEL, &ready).unwrap();
        let mut active = service.begin(prepared, None, std::time::Instant::now());
        active.place(&PlaceHints::default()).await.unwrap();
        let leg = active.booking().unwrap().legs().next().unwrap();
        (leg.worker.instance, leg.overlap_blocks)
    }

    #[tokio::test]
    async fn prompt_of_the_door_goes_to_the_worker_whose_events_the_door_read() {
        let service = service();
        let tokens: Vec<u32> = (0..32).collect();
        let feed = service.door_feed(MODEL, Role::Aggregated);
        feed.kv_events(7, &stored(1, &tokens));
        assert_eq!(overlap(&service, &tokens).await, (2, 8));
    }

    #[tokio::test]
    async fn adapter_and_tenant_of_the_door_keep_their_blocks_apart() {
        let service = service();
        let tokens: Vec<u32> = (0..32).collect();
        service
            .door_feed(MODEL, Role::Aggregated)
            .kv_events(7, &stored(1, &tokens));
        for (lora, tenant) in [(Some("a"), None), (None, Some("t"))] {
            let ready = ReadyPrompt {
                tokens: &tokens,
                lora,
                tenant,
                ..ReadyPrompt::default()
            };
            let prepared = service.prepare_ready(MODEL, &ready).unwrap();
            let booking = service.place_now(&prepared).unwrap();
            assert_eq!(booking.legs().next().unwrap().overlap_blocks, 0);
        }
    }

    #[tokio::test]
    async fn worker_joined_in_mid_stream_is_recovered_by_its_own_dump_alone() {
        let service = service();
        let tokens: Vec<u32> = (0..32).collect();
        let feed = service.door_feed(MODEL, Role::Aggregated);
        feed.kv_events(7, &stored(9, &tokens[..4]));
        let (other, worker) = (WorkerId::new(1, 0), WorkerId::new(2, 0));
        assert_eq!(feed.needing_dump(), [other, worker]);
        assert!(feed.begin_dump(worker));
        assert!(feed.load_dump(worker, &[stored(0, &tokens)]).unwrap());
        assert_eq!(feed.needing_dump(), [other]);
        assert_eq!(overlap(&service, &tokens).await, (2, 8));
        assert!(!feed.begin_dump(worker), "live events are newer than a dump");
        assert!(!feed.load_dump(worker, &[]).unwrap());
        assert_eq!(overlap(&service, &tokens).await, (2, 8));
    }

    #[tokio::test]
    async fn dump_that_misses_events_is_not_loaded() {
        let service = service();
        let tokens: Vec<u32> = (0..32).collect();
        let feed = service.door_feed(MODEL, Role::Aggregated);
        let worker = WorkerId::new(2, 0);
        feed.kv_events(7, &stored(9, &tokens[..4]));
        assert!(feed.begin_dump(worker));
        feed.interrupted();
        assert!(!feed.load_dump(worker, &[stored(0, &tokens)]).unwrap());
        assert!(feed.needing_dump().contains(&worker));
    }

    #[tokio::test]
    async fn event_between_the_dump_and_its_loading_is_kept() {
        let service = service();
        let tokens: Vec<u32> = (0..32).collect();
        let feed = service.door_feed(MODEL, Role::Aggregated);
        let worker = WorkerId::new(2, 0);
        assert!(feed.begin_dump(worker));
        feed.kv_events(7, &stored(1, &tokens));
        assert!(feed.load_dump(worker, &[]).unwrap());
        assert_eq!(overlap(&service, &tokens).await, (2, 8));
    }

    #[test]
    fn garbage_is_counted_and_makes_the_blocks_suspect() {
        let service = service();
        let feed = service.door_feed(MODEL, Role::Aggregated);
        for worker in feed.needing_dump() {
            assert!(feed.begin_dump(worker));
            assert!(feed.load_dump(worker, &[]).unwrap());
        }
        assert_eq!(feed.needing_dump(), []);
        feed.kv_events(7, b"\xc1 not msgpack");
        assert_eq!(feed.needing_dump(), [WorkerId::new(1, 0), WorkerId::new(2, 0)]);
        feed.forward_pass(b"\xc1");
        let page = service.render_metrics();
        let line = page
            .lines()
            .find(|line| line.contains("feed_malformed_total{") && line.contains("payload"));
        assert!(line.is_some_and(|line| line.ends_with(" 2")), "{line:?}");
        assert!(feed.load_dump(WorkerId::new(2, 0), &[b"\xc1".to_vec()]).is_err());
    }
}
