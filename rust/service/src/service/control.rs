//! The calls by which a control plane reads and changes the running service. Every call is short and off the path of requests.
//!
//! Values come and go as JSON, because the caller is another language. Every list has a limit, and
//! a call that is refused changes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wardrop_core::control::{ControlSnapshot, RoutingChange};
use wardrop_core::latency::FleetRecord;
use wardrop_engines::dynamo::decode_dump;

use super::{Service, parse, parse_role};
use crate::ServiceError;
use crate::pool::{EngineReport, PoolCurves, WorkerPool};

/// Figures that a controller may report in one call.
const MAX_FIGURES: usize = 64;
/// Parts that a control plane may have.
const MAX_PARTS: usize = 64;
/// Reports of engines in one call.
const MAX_REPORTS: usize = 65_536;

/// The state of one part of the control plane, such as discovery or the admin API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartState {
    /// Whether the part works. A part that failed waits for its next attempt.
    pub up: bool,
    /// Failures since the start; never falls.
    pub failures: u64,
    /// Text of the last failure; empty before the first failure.
    pub error: String,
    /// Up to when the part's source is known to have answered, in seconds since 1970; `None` for a part without a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_unix_s: Option<f64>,
}

impl Service {
    /// Policy and queue in force, as JSON.
    pub fn routing(&self) -> String {
        json(&*self.routing.lock())
    }

    /// Changes policy or queue of every pool, present and future, all or nothing; returns what is in force then. Requests that
    /// wait stay; when the queue is taken away they are placed at once.
    ///
    /// The new settings are validated as a whole before the first pool changes, and the lock keeps
    /// a new model from missing them.
    ///
    /// # Errors
    /// What is wrong with the change; nothing has changed then.
    pub fn set_routing(&self, change_json: &str) -> Result<String, ServiceError> {
        let change: RoutingChange = parse("change of the routing", change_json)?;
        let mut routing = self.routing.lock();
        let refused = |error| ServiceError::Config(format!("change of the routing: {error}"));
        let next = routing.with(change).map_err(refused)?;
        let now_s = self.clock.now_s();
        for model in self.models.all() {
            for pool in model.pools() {
                if next.policy != routing.policy {
                    pool.set_policy(next.policy.clone())?;
                }
                if next.queue != routing.queue {
                    pool.set_queue(next.queue, now_s)?;
                }
            }
        }
        if let Some(records) = self.records.as_ref().filter(|_| next != *routing) {
            records.set_routing(&next);
        }
        *routing = next;
        Ok(json(&*routing))
    }

    /// Outcomes since the last call and the state of every pool, as JSON. One controller may ask; a second would take the
    /// outcomes away from it.
    pub fn sample(&self) -> String {
        let now_s = self.clock.now_s();
        json(&ControlSnapshot {
            now_s,
            outcomes: self.outcomes.take(),
            pools: self.pools(|pool| pool.pulse(now_s)),
        })
    }

    /// The reports of the shadows of every model, as JSON; `None` when there are no shadows.
    ///
    /// The reports are at most one second old.
    pub fn shadows(&self) -> Option<String> {
        let shadows = self.shadows.as_ref()?;
        Some(json(&*shadows.reports()))
    }

    /// Begins a dump: from now on the pool keeps the events of workers that need the dump. Returns the number of the workers.
    ///
    /// Call this before the dump is read, so that no event between dump and load is lost.
    ///
    /// # Errors
    /// An unknown model or role.
    pub fn begin_dump(&self, model: &str, role: &str) -> Result<usize, ServiceError> {
        Ok(self.model(model)?.pool(parse_role(role)?).begin_dump())
    }

    /// Replaces the blocks of workers for which [`Service::begin_dump`] began a dump. Returns the number of the workers.
    ///
    /// Workers whose live events had a gap keep their blocks and need another dump.
    ///
    /// # Errors
    /// An unknown model or role, or JSON that is no list of events.
    pub fn load_dump(&self, model: &str, role: &str, json: &str) -> Result<usize, ServiceError> {
        let pool = self.model(model)?.pool(parse_role(role)?).clone();
        let events = decode_dump(json).map_err(|e| {
            ServiceError::Config(format!("not a list of events as dump_events() returns: {e}"))
        })?;
        let (workers, counts) = pool.load_dump(events);
        self.metrics.feeds.count_dumped(counts.applied);
        Ok(workers)
    }

    /// Takes what the control plane read from engines: a list of `{model, role, instance, is_reachable, ranks}`. Returns the number of
    /// instances that are registered.
    ///
    /// # Errors
    /// No such list, or more instances than there may be.
    pub fn report_engines(&self, reports_json: &str) -> Result<usize, ServiceError> {
        let reports: Vec<EngineReport> = parse("list of reports of engines", reports_json)?;
        if reports.len() > MAX_REPORTS {
            return Err(ServiceError::Config(format!(
                "{} reports of engines at once, at most {MAX_REPORTS}",
                reports.len()
            )));
        }
        let now_s = self.clock.now_s();
        let known = reports.iter().filter(|report| {
            let model = self.models.find(&report.model);
            model.is_some_and(|(model, _)| model.pool(report.role).engine_report(report, now_s))
        });
        Ok(known.count())
    }

    /// The learned latency curves of every pool, as JSON.
    pub fn curves(&self) -> String {
        let pools: Vec<PoolCurves> = self.pools(WorkerPool::curves);
        json(&pools)
    }

    /// Takes over learned curves of a pool; how many of its workers were known.
    ///
    /// # Errors
    /// An unknown model, or a record of another version or with values that no curve can have.
    pub fn restore_curves(&self, model: &str, role: &str, record_json: &str) -> Result<usize, ServiceError> {
        let record: FleetRecord = parse("record of curves", record_json)?;
        Ok(self
            .model(model)?
            .pool(parse_role(role)?)
            .restore_curves(&record)?)
    }

    /// Puts figures of the control plane on the metrics page, `{name: number}`. A name `setting_X` holds the setting X. Figures
    /// of other names stay as they are; settings are replaced as a whole.
    ///
    /// # Errors
    /// No object of numbers, more names than there may be, or a name without a metric. Nothing changes then.
    pub fn set_figures(&self, figures_json: &str) -> Result<(), ServiceError> {
        let figures: BTreeMap<String, Value> = parse("object of numbers", figures_json)?;
        if figures.len() > MAX_FIGURES {
            return Err(ServiceError::Config(format!(
                "{} figures at once, at most {MAX_FIGURES}",
                figures.len()
            )));
        }
        let mut numbers = BTreeMap::new();
        for (name, value) in figures {
            let Some(number) = value.as_f64() else {
                return Err(ServiceError::Config(format!(
                    "figure {name} must be a number, got {value}"
                )));
            };
            if !self.metrics.control.knows(&name) {
                let known = self.metrics.control.figures();
                return Err(ServiceError::Config(format!(
                    "got the figure {name:?}, expected a name that begins with setting_, or one of: {known}"
                )));
            }
            numbers.insert(name, number);
        }
        if let Some(&regime) = numbers.get("regime") {
            self.receipts.set_regime(regime);
        }
        self.metrics.set_figures(&numbers);
        Ok(())
    }

    /// Takes over the states of the parts of the control plane, for `/health` and the metrics page.
    ///
    /// The form is `{name: {up, failures, error}}`, with `answered_unix_s` where a part has a source. A part that is not named
    /// any more is forgotten.
    ///
    /// # Errors
    /// No such object, or more names than there may be.
    pub fn set_parts(&self, parts_json: &str) -> Result<(), ServiceError> {
        let parts: BTreeMap<String, PartState> = parse("object of parts", parts_json)?;
        if parts.len() > MAX_PARTS {
            return Err(ServiceError::Config(format!(
                "{} parts at once, at most {MAX_PARTS}",
                parts.len()
            )));
        }
        self.metrics.set_parts(&parts);
        *self.parts.lock() = parts;
        Ok(())
    }

    /// The states of the parts of the control plane, as they were reported last, and of records and peers where they are on.
    pub fn parts(&self) -> BTreeMap<String, PartState> {
        let mut parts = self.parts.lock().clone();
        if let Some(records) = &self.records {
            parts.insert("records".into(), records.state());
        }
        if let Some(peers) = &self.peers {
            parts.insert("peers".into(), peers.state());
        }
        parts
    }

    /// The receipt of a request's decision as JSON; `None` when it is not kept, or none are.
    pub fn receipt(&self, request_id: &str) -> Option<String> {
        self.receipts.find(request_id)
    }

    /// What `read` finds in every pool that has it, by model name and role.
    pub(super) fn pools<T>(&self, read: impl Fn(&WorkerPool) -> Option<T>) -> Vec<T> {
        let models = self.models.all();
        let pools = models.iter().flat_map(|model| model.pools());
        pools.filter_map(|pool| read(pool)).collect()
    }
}

/// JSON of a plain value; its types have no map with other keys than text, so it cannot fail.
pub(super) fn json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("plain values must serialise")
}
