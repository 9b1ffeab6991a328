//! A plan: the placement and the order of every request, chosen in advance instead of by a router.

use serde::{Deserialize, Serialize};

use crate::error::{SimError, out_of_range};
use crate::spec::FleetSpec;
use crate::workload::Workload;

/// Placement and order of every request of a run. All lists have one entry per request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Index of the prefill worker, or of the only worker.
    pub worker: Vec<u32>,
    /// Index of the decode worker over all pools, in a split fleet; empty in an aggregated fleet.
    pub decode_worker: Vec<u32>,
    /// Order of the requests of a worker, lowest first. Requests of equal rank follow each other by index.
    pub rank: Vec<f64>,
    /// Largest number of requests that a worker may hold before their first token.
    pub most_prefilling: u32,
    /// Largest number of requests that a worker may hold before their end.
    pub most_open: u32,
    /// Whether a worker waits for the next request of its order, even if a later request is already here.
    pub is_strict: bool,
}

impl Plan {
    /// A plan that sends every request to its worker on arrival. `worker` has one entry per request.
    pub fn immediate(worker: Vec<u32>) -> Self {
        Self {
            rank: vec![0.0; worker.len()],
            worker,
            decode_worker: Vec::new(),
            most_prefilling: u32::MAX,
            most_open: u32::MAX,
            is_strict: false,
        }
    }

    pub(crate) fn validate(&self, spec: &FleetSpec, workload: &Workload) -> Result<(), SimError> {
        let first = spec.pools[0].speeds.len() as u32;
        let all = spec
            .pools
            .iter()
            .map(|pool| pool.speeds.len() as u32)
            .sum::<u32>();
        let decodes = if spec.pools.len() > 1 { workload.len() } else { 0 };
        let lengths = [
            ("plan.worker", self.worker.len(), workload.len()),
            ("plan.rank", self.rank.len(), workload.len()),
            ("plan.decode_worker", self.decode_worker.len(), decodes),
        ];
        for (field, got, want) in lengths {
            if got != want {
                return Err(out_of_range(
                    field,
                    got,
                    "one entry per request (decode_worker: none without a decode pool)",
                ));
            }
        }
        if let Some(worker) = self.worker.iter().find(|worker| **worker >= first) {
            return Err(out_of_range("plan.worker", worker, "a worker of the first pool"));
        }
        let is_decode = |worker: &&u32| !(first..all).contains(*worker);
        if let Some(worker) = self.decode_worker.iter().find(is_decode) {
            return Err(out_of_range(
                "plan.decode_worker",
                worker,
                "a worker of the decode pool",
            ));
        }
        if self.rank.iter().any(|rank| rank.is_nan()) {
            return Err(out_of_range("plan.rank", "NaN", "a number"));
        }
        if self.most_prefilling == 0 || self.most_open == 0 {
            return Err(out_of_range(
                "plan.most_open and plan.most_prefilling",
                0,
                "at least 1",
            ));
        }
        if spec.queues.iter().any(Option::is_some) || !spec.faults.is_empty() {
            return Err(out_of_range(
                "fleet",
                "a queue or a fault",
                "a fleet without queues and faults: a plan has its own order",
            ));
        }
        Ok(())
    }
}
