//! Names of the routing service's models, one for each worker set of Dynamo.
//!
//! A worker set is one endpoint that serves a model. The first worker set of a model has the model's name in the routing service, a further
//! one has its endpoint in the name. Workers that only prefill join every worker set of their model and namespace, in any order of arrival.

use std::sync::Arc;

use dynamo_llm::model_card::ModelDeploymentCard;
use dynamo_llm::worker_type::WorkerType;
use dynamo_runtime::DistributedRuntime;
use dynamo_runtime::component::Endpoint;
use dynamo_runtime::discovery::ModelCardInstanceId;
use parking_lot::Mutex;
use serde_json::json;
use wardrop_service::{Role, Service};

use crate::fleet::Fleet;

/// Most worker sets and prefill endpoints that are remembered.
const MAX_WORKER_SETS: usize = 1024;

/// Worker sets of all models.
pub struct Models {
    runtime: DistributedRuntime,
    service: Arc<Service>,
    fleet: Arc<Fleet>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    worker_sets: Vec<WorkerSet>,
    prefills: Vec<Served>,
}

/// An endpoint with the model that it serves.
#[derive(Clone, PartialEq, Eq)]
struct Served {
    model: String,
    namespace: String,
    component: String,
    endpoint: String,
}

#[derive(Clone)]
struct WorkerSet {
    served: Served,
    /// Name of the model in the routing service.
    service_name: String,
}

impl Models {
    /// No worker sets yet.
    pub fn new(runtime: DistributedRuntime, service: Arc<Service>, fleet: Arc<Fleet>) -> Self {
        Self {
            runtime,
            service,
            fleet,
            known: Mutex::default(),
        }
    }

    /// Registers the worker set behind an endpoint and follows its workers. Returns the model's name in the routing service.
    ///
    /// # Errors
    /// The routing service or Dynamo's runtime refuses, or there are too many worker sets.
    pub async fn attach(
        &self,
        id: &ModelCardInstanceId,
        card: &ModelDeploymentCard,
    ) -> anyhow::Result<String> {
        let served = Served::new(id, card);
        let (service_name, prefills) = {
            let mut known = self.known.lock();
            let service_name = known.name(&served)?;
            let prefills = known
                .prefills
                .iter()
                .filter(|prefill| prefill.feeds(&served))
                .cloned();
            (service_name, prefills.collect::<Vec<_>>())
        };
        let model = json!({
            "name": service_name,
            "block_size": card.kv_cache_block_size,
        });
        self.service.upsert_model(&model.to_string())?;
        let role = match card.effective_worker_type() {
            WorkerType::Decode => Role::Decode,
            _ => Role::Aggregated,
        };
        self.fleet
            .follow(&service_name, role, self.endpoint(&served)?)
            .await?;
        for prefill in prefills {
            self.fleet
                .follow(&service_name, Role::Prefill, self.endpoint(&prefill)?)
                .await?;
        }
        Ok(service_name)
    }

    /// Notes an endpoint whose workers only prefill, and follows them for every worker set that they feed.
    ///
    /// # Errors
    /// Dynamo's runtime refuses, or there are too many endpoints.
    pub async fn attach_prefill(
        &self,
        id: &ModelCardInstanceId,
        card: &ModelDeploymentCard,
    ) -> anyhow::Result<()> {
        let served = Served::new(id, card);
        let fed = {
            let mut known = self.known.lock();
            if !known.prefills.contains(&served) {
                anyhow::ensure!(
                    known.prefills.len() < MAX_WORKER_SETS,
                    "more than {MAX_WORKER_SETS} prefill endpoints"
                );
                known.prefills.push(served.clone());
            }
            let fed = known.worker_sets.iter().filter(|set| served.feeds(&set.served));
            fed.map(|set| set.service_name.clone()).collect::<Vec<_>>()
        };
        for service_name in fed {
            self.fleet
                .follow(&service_name, Role::Prefill, self.endpoint(&served)?)
                .await?;
        }
        Ok(())
    }

    fn endpoint(&self, served: &Served) -> anyhow::Result<Endpoint> {
        let namespace = self.runtime.namespace(served.namespace.clone())?;
        Ok(namespace
            .component(served.component.clone())?
            .endpoint(served.endpoint.clone()))
    }
}

impl Known {
    fn name(&mut self, served: &Served) -> anyhow::Result<String> {
        if let Some(set) = self.worker_sets.iter().find(|set| set.served == *served) {
            return Ok(set.service_name.clone());
        }
        anyhow::ensure!(
            self.worker_sets.len() < MAX_WORKER_SETS,
            "more than {MAX_WORKER_SETS} worker sets"
        );
        let is_first = self
            .worker_sets
            .iter()
            .all(|set| set.served.model != served.model);
        let service_name = if is_first {
            served.model.clone()
        } else {
            format!(
                "{}@{}/{}/{}",
                served.model, served.namespace, served.component, served.endpoint
            )
        };
        self.worker_sets.push(WorkerSet {
            served: served.clone(),
            service_name: service_name.clone(),
        });
        Ok(service_name)
    }
}

impl Served {
    fn new(id: &ModelCardInstanceId, card: &ModelDeploymentCard) -> Self {
        Self {
            model: card.name().to_owned(),
            namespace: id.namespace.clone(),
            component: id.component.clone(),
            endpoint: id.endpoint.clone(),
        }
    }

    /// Whether prefill workers behind this endpoint serve the decode workers behind `decode`.
    fn feeds(&self, decode: &Self) -> bool {
        self.model == decode.model && self.namespace == decode.namespace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(model: &str, namespace: &str, component: &str) -> Served {
        Served {
            model: model.into(),
            namespace: namespace.into(),
            component: component.into(),
            endpoint: "generate".into(),
        }
    }

    #[test]
    fn first_worker_set_has_the_models_name_and_a_second_one_its_endpoint() {
        let mut known = Known::default();
        assert_eq!(known.name(&served("m", "a", "backend")).unwrap(), "m");
        assert_eq!(
            known.name(&served("m", "b", "backend")).unwrap(),
            "m@b/backend/generate"
        );
        assert_eq!(
            known.name(&served("m", "a", "backend")).unwrap(),
            "m",
            "a known worker set keeps its name"
        );
    }

    #[test]
    fn prefill_workers_feed_only_their_own_model_and_namespace() {
        let prefill = served("m", "a", "prefill");
        assert!(prefill.feeds(&served("m", "a", "backend")));
        assert!(!prefill.feeds(&served("m", "b", "backend")));
        assert!(!prefill.feeds(&served("n", "a", "backend")));
    }
}
