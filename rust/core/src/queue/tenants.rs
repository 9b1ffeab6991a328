//! What each tenant has waiting, and where its next request starts in a fair queue.
//!
//! A fair queue follows start-time fair queueing (Goyal, Vin and Cheng 1996), with real time in place of virtual
//! time. A request starts at the later of its arrival and the finish of its tenant's previous request. Its service
//! takes its prefill seconds divided by the tenant's weight.

use rustc_hash::FxHashMap;

use super::request::Tenant;

/// Lowest and highest weight of a tenant. A weight that is not above 0 counts as 1.
const WEIGHT_RANGE: (f64, f64) = (1e-6, 1e6);

/// What one tenant has waiting.
///
/// Invariant: both counts are 0 when nothing of the tenant waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TenantState {
    /// Requests that wait.
    pub waiting: usize,
    /// Bytes that they hold.
    pub bytes: u64,
    /// Earliest start of the tenant's next request, seconds. Only a fair queue moves it.
    next_start_s: f64,
}

/// The tenants that are accounted for separately. At most the configured number of them, and [`Tenant::OTHERS`].
#[derive(Clone, Debug, Default)]
pub(super) struct Tenants(FxHashMap<Tenant, TenantState>);

impl Tenants {
    /// Tenants that are accounted for, [`Tenant::OTHERS`] included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What a tenant has waiting.
    pub fn state(&self, tenant: Tenant) -> TenantState {
        self.0.get(&tenant).copied().unwrap_or_default()
    }

    /// The account that a tenant's request counts for: its own, or [`Tenant::OTHERS`] once `max_tenants` have one.
    ///
    /// A full table first drops tenants with nothing waiting whose next start has passed: they owe nothing.
    pub fn account(&mut self, tenant: Tenant, max_tenants: usize, now_s: f64) -> Tenant {
        if self.0.contains_key(&tenant) || self.0.len() < max_tenants {
            return tenant;
        }
        self.0
            .retain(|_, tenant| tenant.waiting > 0 || tenant.next_start_s > now_s);
        if self.0.len() >= max_tenants {
            Tenant::OTHERS
        } else {
            tenant
        }
    }

    /// Starts a request of `service_s` prefill seconds no earlier than `earliest_s` and the tenant's previous finish.
    /// Returns the start, and moves the tenant's next start behind it by the service over `weight`.
    pub fn start(&mut self, tenant: Tenant, earliest_s: f64, service_s: f64, weight: f64) -> f64 {
        let state = self.0.entry(tenant).or_default();
        let start_s = earliest_s.max(state.next_start_s);
        let weight = if weight > 0.0 {
            weight.clamp(WEIGHT_RANGE.0, WEIGHT_RANGE.1)
        } else {
            1.0
        };
        state.next_start_s = start_s + service_s / weight;
        start_s
    }

    /// A request of a tenant waits now.
    pub fn add(&mut self, tenant: Tenant, bytes: u64) {
        let state = self.0.entry(tenant).or_default();
        state.waiting += 1;
        state.bytes += bytes;
    }

    /// A request of a tenant waits no more. `forget_idle`: a tenant with nothing left is dropped.
    pub fn remove(&mut self, tenant: Tenant, bytes: u64, forget_idle: bool) {
        if let Some(state) = self.0.get_mut(&tenant) {
            state.waiting -= 1;
            state.bytes -= bytes;
            if state.waiting == 0 && forget_idle {
                self.0.remove(&tenant);
            }
        }
    }
}
