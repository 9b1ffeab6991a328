//! Addresses of the workers, in both directions: a decision names a worker, and Envoy needs its address.
//!
//! The table is replaced as a whole by the control plane, so a stream sees one state of all
//! endpoints. At most 16,384 endpoints; a lookup is O(log endpoints), a subset O(endpoints).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Deserialize;
use wardrop_core::WorkerId;
use wardrop_service::{Role, ServiceError};

/// Most endpoints of one picker.
const MAX_ENDPOINTS: usize = 16_384;

/// One worker as the control plane reports it. Envoy reaches a worker by IP address, so the control plane resolves names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoint {
    /// IP address and port of the worker's HTTP server.
    pub address: SocketAddr,
    /// Name of the model that the worker serves.
    pub model: String,
    /// Role of the worker.
    #[serde(default = "aggregated")]
    pub role: Role,
    /// Id of the instance; `None` derives the id from the address.
    #[serde(default)]
    pub instance: Option<u64>,
    /// First data-parallel rank behind the address.
    #[serde(default)]
    pub dp_start: u32,
    /// Data-parallel ranks behind the address. With several, a header names the rank.
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

/// Default role of an endpoint.
fn aggregated() -> Role {
    Role::Aggregated
}

/// Default number of ranks.
fn one() -> u32 {
    1
}

impl Endpoint {
    /// Id of the instance. An IPv4 address and its port fit into the id, so two addresses never share an id.
    pub fn instance(&self) -> u64 {
        self.instance.unwrap_or_else(|| {
            let port = u64::from(self.address.port());
            match self.address.ip() {
                IpAddr::V4(ip) => u64::from(u32::from(ip)) << 16 | port,
                IpAddr::V6(ip) => {
                    let bits = u128::from(ip);
                    // An odd multiplier spreads the bits of the two halves; a clash of two addresses is refused.
                    ((bits >> 64) as u64 ^ bits as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ port
                }
            }
        })
    }

    /// The worker as the service takes it.
    pub fn worker_json(&self) -> String {
        serde_json::json!({
            "model": self.model,
            "role": self.role,
            "instance": self.instance(),
            "dp_start": self.dp_start,
            "dp_size": self.dp_size,
            "total_kv_blocks": self.total_kv_blocks,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
        })
        .to_string()
    }

    /// Every rank behind the address, as a worker.
    fn workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        let (instance, start) = (self.instance(), self.dp_start);
        (start..start.saturating_add(self.dp_size)).map(move |rank| WorkerId::new(instance, rank))
    }
}

/// All endpoints at one moment.
#[derive(Default)]
pub(crate) struct Endpoints {
    /// Endpoints by instance, from a decision to an address.
    by_instance: BTreeMap<u64, Arc<Endpoint>>,
    /// Workers by address, from a subset of Envoy's to workers.
    by_address: HashMap<SocketAddr, Vec<WorkerId>>,
}

impl Endpoints {
    /// Reads a list of endpoints.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for JSON that is no list of endpoints, too many, or two with one address or one instance.
    pub fn from_json(json: &str) -> Result<Self, ServiceError> {
        let list: Vec<Endpoint> = serde_json::from_str(json)
            .map_err(|error| ServiceError::Config(format!("not a list of endpoints: {error}")))?;
        if list.len() > MAX_ENDPOINTS {
            return Err(ServiceError::Config(format!(
                "got {} endpoints, at most {MAX_ENDPOINTS}",
                list.len()
            )));
        }
        let mut all = Self::default();
        for endpoint in list {
            let endpoint = Arc::new(endpoint);
            let address = endpoint.address;
            let workers: Vec<WorkerId> = endpoint.workers().collect();
            if all.by_address.insert(address, workers).is_some() {
                return Err(ServiceError::Config(format!(
                    "two endpoints have the address {address}; name each address once"
                )));
            }
            if let Some(other) = all.by_instance.insert(endpoint.instance(), endpoint.clone()) {
                return Err(ServiceError::Config(format!(
                    "the endpoints {} and {address} have one instance, {}; give each an instance of its own",
                    other.address,
                    endpoint.instance()
                )));
            }
        }
        Ok(all)
    }

    /// The endpoint of an instance.
    pub fn get(&self, instance: u64) -> Option<&Arc<Endpoint>> {
        self.by_instance.get(&instance)
    }

    /// All endpoints, by instance.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.by_instance.values()
    }

    /// Workers whose address satisfies `is_wanted`.
    pub fn workers_at(&self, is_wanted: impl Fn(&SocketAddr) -> bool) -> Vec<WorkerId> {
        let wanted = self.by_address.iter().filter(|(address, _)| is_wanted(address));
        wanted.flat_map(|(_, workers)| workers).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_to_workers_and_back() {
        let json = r#"[{"address": "10.0.0.1:8000", "model": "m", "dp_size": 2}, {"address": "[::1]:8000", "model": "m", "role": "prefill", "instance": 7}]"#;
        let endpoints = Endpoints::from_json(json).unwrap();
        let first = endpoints.workers_at(|address| address.port() == 8000 && address.is_ipv4());
        let instance = (10 << 40) | (1 << 16) | 0x1f40;
        assert_eq!(first, [WorkerId::new(instance, 0), WorkerId::new(instance, 1)]);
        assert_eq!(
            endpoints.get(instance).unwrap().address.to_string(),
            "10.0.0.1:8000"
        );
        assert_eq!(endpoints.get(7).unwrap().role, Role::Prefill);
    }

    #[test]
    fn clashes_and_names_are_refused() {
        for (json, named) in [
            (
                r#"[{"address":"1.1.1.1:1","model":"m"},{"address":"1.1.1.1:1","model":"n"}]"#,
                "two endpoints",
            ),
            (
                r#"[{"address":"1.1.1.1:1","model":"m","instance":3},{"address":"1.1.1.2:1","model":"m","instance":3}]"#,
                "one instance",
            ),
            (
                r#"[{"address":"engine:8000","model":"m"}]"#,
                "not a list of endpoints",
            ),
        ] {
            let error = Endpoints::from_json(json).err().unwrap().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
