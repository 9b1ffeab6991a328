//! The picker as an object: a routing service with an endpoint table and the servers in front of it.
//!
//! The bindings hold one picker per process. The order of a start is [`Picker::new`], models,
//! endpoints, [`Picker::start`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Deserialize;
use wardrop_service::admission::{BodyBudget, InFlight};
use wardrop_service::{Service, ServiceError, hide_panic_texts, start_logging};

use crate::config::PickerConfig;
use crate::endpoints::Endpoints;
use crate::metrics::PickerMetrics;
use crate::server::Servers;
use crate::shared::Shared;

/// An endpoint picker, before and after it serves.
pub struct Picker {
    /// State that all streams share.
    shared: Arc<Shared>,
    /// The running servers; `None` before the start and after the stop.
    servers: Mutex<Option<Servers>>,
    /// Serialises changes of models and endpoints.
    change: Mutex<()>,
}

/// The part of a model's JSON that the picker itself reads.
#[derive(Deserialize)]
struct ModelName {
    /// Name of the model.
    name: String,
}

impl Picker {
    /// A picker that is configured but does not listen yet.
    ///
    /// # Errors
    /// [`ServiceError::Config`] names the setting that cannot work.
    pub fn new(mut config: PickerConfig) -> Result<Self, ServiceError> {
        if let Some(filter) = &config.log {
            start_logging(filter)?;
        }
        hide_panic_texts();
        // No frontend of Dynamo stands behind the picker, so token ids have no proof and no reader.
        config.service.prompt.handover = false;
        let service = Service::new(config.service.clone())?;
        let metrics = PickerMetrics::new(service.metric_builder())
            .map_err(|error| ServiceError::Config(format!("metrics of the picker: {error}")))?;
        Ok(Self {
            shared: Arc::new(Shared {
                service,
                metrics,
                bodies: BodyBudget::new(config.limits.all_bodies_bytes),
                endpoints: ArcSwap::default(),
                default_model: ArcSwap::from_pointee(config.default_model.clone()),
                in_flight: InFlight::new(config.limits.concurrent_requests),
                draining: AtomicBool::new(false),
                config,
            }),
            servers: Mutex::new(None),
            change: Mutex::new(()),
        })
    }

    /// The routing service, for the control calls that every door shares.
    pub fn service(&self) -> &Arc<Service> {
        &self.shared.service
    }

    /// Registers a model or changes it. Without a configured default, the first registered model takes requests without a known model.
    ///
    /// # Errors
    /// Those of [`Service::upsert_model`].
    pub fn upsert_model(&self, json: &str) -> Result<(), ServiceError> {
        let _change = self.change.lock();
        self.shared.service.upsert_model(json)?;
        if self.shared.default_model.load().is_none()
            && let Ok(model) = serde_json::from_str::<ModelName>(json)
        {
            self.shared.default_model.store(Arc::new(Some(model.name)));
        }
        Ok(())
    }

    /// Forgets a model with its workers; whether it was known.
    pub fn remove_model(&self, name: &str) -> bool {
        let _change = self.change.lock();
        let is_default = self.shared.default_model.load().as_deref() == Some(name);
        if is_default {
            let configured = self.shared.config.default_model.clone();
            self.shared.default_model.store(Arc::new(configured));
        }
        self.shared.service.remove_model(name)
    }

    /// Replaces all endpoints. An endpoint that stays keeps its blocks, load and health.
    ///
    /// # Errors
    /// JSON that is no list of endpoints, or an unknown model: nothing has changed. A worker that the service refuses: the endpoints
    /// before it have changed.
    pub fn set_endpoints(&self, json: &str) -> Result<(), ServiceError> {
        let _change = self.change.lock();
        let next = Endpoints::from_json(json)?;
        let known = self.shared.service.model_names();
        for endpoint in next.all() {
            if !known.contains(&endpoint.model) {
                return Err(ServiceError::UnknownModel(endpoint.model.clone()));
            }
        }
        let last = self.shared.endpoints.load_full();
        let service = &self.shared.service;
        for endpoint in next.all() {
            service.upsert_worker(&endpoint.worker_json())?;
        }
        // A request that is decided in this moment finds the address of an old or of a new worker.
        let next = Arc::new(next);
        self.shared.endpoints.store(next.clone());
        for old in last.all() {
            let instance = old.instance();
            let stays = next
                .get(instance)
                .is_some_and(|new| new.model == old.model && new.role == old.role);
            if !stays && known.contains(&old.model) {
                service.remove_worker(&old.model, old.role.name(), instance)?;
            }
        }
        Ok(())
    }

    /// Starts to serve; returns the port of external processing.
    ///
    /// # Errors
    /// An address is taken, or the picker runs already.
    pub fn start(&self) -> Result<u16, ServiceError> {
        let mut servers = self.servers.lock();
        if servers.is_some() {
            return Err(ServiceError::State("the picker runs already".into()));
        }
        self.shared.service.start_peers()?;
        let started = Servers::start(&self.shared)?;
        let address = started.addresses.grpc;
        tracing::info!(%address, "picker serves");
        *servers = Some(started);
        Ok(address.port())
    }

    /// The state of the picker and of everything behind it, as JSON.
    pub fn status(&self) -> String {
        let addresses = self.servers.lock().as_ref().map(|servers| servers.addresses);
        self.shared.status(addresses)
    }

    /// The metrics page in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.shared.render_metrics()
    }

    /// Fails the health checks, takes no new connection, and waits until the requests in flight end. Returns whether all of them ended
    /// within `timeout`.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.shared.draining.store(true, Ordering::Relaxed);
        if let Some(servers) = &*self.servers.lock() {
            servers.drain();
        }
        self.shared.in_flight.wait_for_none(timeout)
    }

    /// Stops all threads and cuts the streams in flight. A second call does nothing.
    pub fn stop(&self) {
        let servers = self.servers.lock().take();
        if let Some(servers) = servers {
            servers.stop();
        }
        self.shared.service.stop();
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        self.stop();
    }
}
