//! Who pays: the tenant of a request, and its weight.
//!
//! A tenant is what `x-tenant-id` says, the last one that is not empty, as it is for the cache's namespaces; requests without
//! one are one tenant together. The name is the client's word: put the gateway behind what checks it. Names with a weight have
//! numbers of their own; the others get one by a keyed hash, so that nobody can choose a name that shares another's place.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use hyper::HeaderMap;
use wardrop_core::queue::Tenant;

const HEADER: &str = "x-tenant-id";

/// See the module.
pub struct Tenants {
    /// Number and weight of those with a weight of their own.
    weighted: HashMap<String, (u32, f64)>,
    keyed: RandomState,
}

impl Tenants {
    /// With these weights; every other tenant has 1.
    pub fn new<'a>(weights: impl IntoIterator<Item = (&'a String, &'a f64)>) -> Self {
        let weighted = (0u32..).zip(weights);
        Self {
            weighted: weighted
                .map(|(number, (name, &weight))| (name.clone(), (number, weight)))
                .collect(),
            keyed: RandomState::new(),
        }
    }

    /// The tenant's name, as the headers tell it.
    pub fn name(headers: &HeaderMap) -> Option<&str> {
        let names = headers
            .get_all(HEADER)
            .iter()
            .filter_map(|value| value.to_str().ok());
        names.map(str::trim).rfind(|name| !name.is_empty())
    }

    /// Its number and its weight.
    pub fn of(&self, headers: &HeaderMap) -> (Tenant, f64) {
        let name = Self::name(headers).unwrap_or_default();
        if let Some(&(number, weight)) = self.weighted.get(name) {
            return (Tenant(number), weight);
        }
        let first = self.weighted.len() as u32;
        // Behind those with a weight, before the place of those who are too many.
        let number = first + (self.keyed.hash_one(name) % u64::from(Tenant::OTHERS.0 - first)) as u32;
        (Tenant(number), 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(names: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(HEADER, name.parse().unwrap());
        }
        headers
    }

    #[test]
    fn tenant_is_the_last_name_that_is_not_empty() {
        let tenants = Tenants::new(&HashMap::from([("a".to_owned(), 2.0), ("b".to_owned(), 0.5)]));
        assert_eq!(tenants.of(&headers(&["x", " a ", ""])).1, 2.0);
        assert_eq!(tenants.of(&headers(&["b"])).1, 0.5);
        let (nobody, weight) = tenants.of(&headers(&[]));
        assert_eq!((nobody, weight), tenants.of(&headers(&["", " "])));
        assert_eq!(weight, 1.0);
    }

    #[test]
    fn names_keep_their_places_and_take_nobody_elses() {
        let tenants = Tenants::new(&HashMap::from([("a".to_owned(), 2.0)]));
        assert_eq!(tenants.of(&headers(&["a"])).0, Tenant(0));
        for n in 0..10_000 {
            let name = format!("n{n}");
            let (tenant, _) = tenants.of(&headers(&[&name]));
            assert!(tenant != Tenant(0) && tenant != Tenant::OTHERS);
            assert_eq!(tenants.of(&headers(&[&name])).0, tenant);
        }
    }
}
