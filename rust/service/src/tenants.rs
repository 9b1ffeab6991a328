//! Tenants of the fair queue: the number and the weight of each.
//!
//! The name of a tenant comes from the client, so a deployment puts the door behind a proxy that checks it. All requests without a name
//! are one tenant. Each tenant with a configured weight has a number of its own. Every other name gets a number by a keyed hash, so that
//! no client can choose a name that shares another tenant's number.
//!
//! The queue accounts per number; see `wardrop_core::queue` for the bounds per tenant. Looking a
//! tenant up is O(1) and allocates nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use wardrop_core::queue::Tenant;

/// Number and weight of a tenant in a fair queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TenantWeight {
    /// Number under which the queue accounts for the tenant.
    pub tenant: Tenant,
    /// Share against other tenants, above 0.
    pub weight: f64,
}

/// Configured weights, and the key of the hash for all other names.
pub(crate) struct Tenants {
    /// Tenants with a configured weight, numbered from 0 in the order of their names.
    weighted: HashMap<String, TenantWeight>,
    /// Hash of all other names, with a key drawn at the start.
    keyed: RandomState,
}

impl Tenants {
    /// Tenants with these weights; every other tenant has the weight 1.
    pub fn new<'a>(weights: impl IntoIterator<Item = (&'a String, &'a f64)>) -> Self {
        let weighted = (0u32..).zip(weights).map(|(number, (name, &weight))| {
            let tenant = Tenant(number);
            (name.clone(), TenantWeight { tenant, weight })
        });
        Self {
            weighted: weighted.collect(),
            keyed: RandomState::new(),
        }
    }

    /// Number and weight of a tenant; `None` stands for all requests without a name.
    pub fn get(&self, name: Option<&str>) -> TenantWeight {
        let name = name.unwrap_or_default();
        if let Some(&known) = self.weighted.get(name) {
            return known;
        }
        let first = self.weighted.len() as u32;
        // Numbers of unlisted tenants follow the weighted tenants and end before the number of the overflow bucket.
        let number = first + (self.keyed.hash_one(name) % u64::from(Tenant::OTHERS.0 - first)) as u32;
        TenantWeight {
            tenant: Tenant(number),
            weight: 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weighted_tenants_have_their_weight_and_all_others_have_1() {
        let tenants = Tenants::new(&HashMap::from([("a".to_owned(), 2.0), ("b".to_owned(), 0.5)]));
        assert_eq!(tenants.get(Some("a")).weight, 2.0);
        assert_eq!(tenants.get(Some("b")).weight, 0.5);
        assert_eq!(tenants.get(None).weight, 1.0);
    }

    #[test]
    fn names_keep_their_numbers_and_share_none_with_a_weighted_tenant() {
        let tenants = Tenants::new(&HashMap::from([("a".to_owned(), 2.0)]));
        assert_eq!(tenants.get(Some("a")).tenant, Tenant(0));
        for n in 0..10_000 {
            let name = format!("n{n}");
            let tenant = tenants.get(Some(&name)).tenant;
            assert!(tenant != Tenant(0) && tenant != Tenant::OTHERS);
            assert_eq!(tenants.get(Some(&name)).tenant, tenant);
        }
    }
}
