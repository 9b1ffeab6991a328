//! Workers and their events: Dynamo's discovery and event plane feed the routing service.
//!
//! Dynamo's runtime joins instances with their cards, finds the publishers of events and reconnects to them, for every backend. One task
//! follows the workers of an endpoint, one task each topic of events, one task recovers the index. All of them end with the process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use dynamo_llm::discovery::ModelManager;
use dynamo_llm::local_model::runtime_config::ModelRuntimeConfig;
use dynamo_runtime::component::{Client, Endpoint};
use parking_lot::RwLock;
use serde_json::json;
use wardrop_core::WorkerId;
use wardrop_service::{Role, Service};

use crate::events::{Events, Topic};
use crate::recovery;

/// Most endpoints that are followed, regardless of how many discovery lists.
const MAX_ENDPOINTS: usize = 1024;
/// Pause before a failed or ended watch of workers is made again.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// Endpoints whose workers and events are followed.
pub struct Fleet {
    service: Arc<Service>,
    manager: Arc<ModelManager>,
    /// One client for each role, by the model's name in the routing service.
    clients: RwLock<HashMap<String, [Option<Client>; Role::ALL.len()]>>,
}

/// A pool in the routing service.
struct PoolName {
    model: String,
    role: Role,
}

impl Fleet {
    /// A fleet that follows nothing yet.
    pub fn new(service: Arc<Service>, manager: Arc<ModelManager>) -> Self {
        Self {
            service,
            manager,
            clients: RwLock::default(),
        }
    }

    /// Whether Dynamo knows the worker. Dynamo answers a pin to an unknown worker with an error.
    pub fn is_discovered(&self, model: &str, role: Role, worker: WorkerId) -> bool {
        let clients = self.clients.read();
        let client = clients.get(model).and_then(|roles| roles[role as usize].as_ref());
        client.is_some_and(|client| client.is_instance_discovered(worker.instance))
    }

    /// Follows the workers and events of an endpoint for one pool. A pool that is followed stays with its endpoint.
    ///
    /// # Errors
    /// Dynamo's runtime gives no client, or there are too many endpoints.
    pub async fn follow(self: &Arc<Self>, model: &str, role: Role, endpoint: Endpoint) -> anyhow::Result<()> {
        let is_followed = |clients: &HashMap<String, [Option<Client>; Role::ALL.len()]>| {
            clients
                .get(model)
                .is_some_and(|roles| roles[role as usize].is_some())
        };
        if is_followed(&self.clients.read()) {
            return Ok(());
        }
        let client = endpoint.client().await?;
        {
            let mut clients = self.clients.write();
            if is_followed(&clients) {
                return Ok(());
            }
            if clients.values().flatten().flatten().count() >= MAX_ENDPOINTS {
                bail!(
                    "got the endpoint {}, at most {MAX_ENDPOINTS} are followed",
                    endpoint.id()
                );
            }
            clients.entry(model.to_owned()).or_default()[role as usize] = Some(client);
        }
        let pool = PoolName {
            model: model.to_owned(),
            role,
        };
        let feed = Arc::new(self.service.door_feed(model, role));
        for topic in [Topic::KvEvents, Topic::EngineSteps] {
            let events = Events {
                topic,
                service: self.service.clone(),
                model: model.to_owned(),
                role,
                endpoint: endpoint.clone(),
                feed: feed.clone(),
            };
            tokio::spawn(events.follow());
        }
        tokio::spawn(recovery::run(endpoint.clone(), feed));
        tokio::spawn(self.clone().follow_workers(pool, endpoint));
        Ok(())
    }

    async fn follow_workers(self: Arc<Self>, pool: PoolName, endpoint: Endpoint) {
        let mut workers = loop {
            match self.manager.get_or_create_runtime_config_watcher(&endpoint).await {
                Ok(workers) => break workers,
                Err(error) => {
                    tracing::warn!(endpoint = %endpoint.id(), %error, "workers cannot be watched, trying again")
                }
            }
            tokio::time::sleep(WATCH_PAUSE).await;
        };
        let mut known: HashMap<u64, ModelRuntimeConfig> = HashMap::new();
        loop {
            let present = workers.borrow_and_update().clone();
            for instance in known.keys().filter(|instance| !present.contains_key(*instance)) {
                if let Err(error) = self
                    .service
                    .remove_worker(&pool.model, pool.role.name(), *instance)
                {
                    tracing::warn!(instance, %error, "a worker that left cannot be forgotten");
                }
            }
            for (instance, config) in &present {
                self.upsert(&pool, *instance, config);
            }
            known = present;
            if workers.changed().await.is_err() {
                return;
            }
        }
    }

    fn upsert(&self, pool: &PoolName, instance: u64, config: &ModelRuntimeConfig) {
        // A worker reports 0 for a figure that it does not know.
        let known = |figure: Option<u64>| figure.filter(|&figure| figure > 0);
        let narrow = |figure: Option<u64>| known(figure).and_then(|figure| u32::try_from(figure).ok());
        let worker = json!({
            "model": pool.model,
            "role": pool.role.name(),
            "instance": instance,
            "dp_start": config.data_parallel_start_rank,
            "dp_size": config.data_parallel_size.max(1),
            "total_kv_blocks": known(config.total_kv_blocks),
            "max_num_seqs": narrow(config.max_num_seqs),
            "max_num_batched_tokens": narrow(config.max_num_batched_tokens),
        });
        if let Err(error) = self.service.upsert_worker(&worker.to_string()) {
            tracing::warn!(instance, %error, "a worker is not routed by Wardrop");
        }
    }
}
