//! LoRA adapters: which workers have loaded each, by the cards in discovery.
//!
//! A worker registers one card for its model and one more for each adapter. Dynamo serves an adapter by the pipelines of its model, with
//! the adapter's name in the routing hints. Only workers with the adapter may get its requests.

use std::collections::HashMap;
use std::sync::Arc;

use dynamo_llm::model_card::ModelDeploymentCard;
use dynamo_runtime::discovery::ModelCardInstanceId;
use parking_lot::RwLock;
use wardrop_core::WorkerId;

/// Most cards of adapters that are remembered. The workers of later cards get no requests of their adapter.
const MAX_CARDS: usize = 65_536;

/// Adapters of all workers.
#[derive(Default)]
pub struct Adapters(RwLock<State>);

#[derive(Default)]
struct State {
    /// Name of the adapter of each card.
    names: HashMap<ModelCardInstanceId, String>,
    /// The cards of each adapter, by its name. No entry is empty.
    adapters: HashMap<String, Adapter>,
}

/// The cards of one adapter.
#[derive(Default)]
struct Adapter {
    /// Ranks of the process behind each card.
    cards: HashMap<ModelCardInstanceId, Vec<WorkerId>>,
    /// The workers of all cards, in order. Made anew with each change, so that a request copies nothing.
    holders: Arc<[WorkerId]>,
}

impl Adapters {
    /// Notes the card of an adapter. A known card is replaced.
    pub fn added(&self, id: ModelCardInstanceId, card: &ModelDeploymentCard) {
        let ranks = &card.runtime_config;
        let first = ranks.data_parallel_start_rank;
        let end = first.saturating_add(ranks.data_parallel_size.max(1));
        let instance = id.instance_id;
        let workers = (first..end).map(|rank| WorkerId::new(instance, rank));
        self.put(id, card.name(), workers.collect());
    }

    /// Notes that these workers have loaded an adapter. O(cards of the adapter).
    fn put(&self, id: ModelCardInstanceId, name: &str, workers: Vec<WorkerId>) {
        let mut state = self.0.write();
        if state.names.len() >= MAX_CARDS && !state.names.contains_key(&id) {
            return;
        }
        state.remove(&id);
        state.names.insert(id.clone(), name.to_owned());
        let adapter = state.adapters.entry(name.to_owned()).or_default();
        adapter.cards.insert(id, workers);
        adapter.gather();
    }

    /// Forgets a card. An unknown card changes nothing. O(cards of the adapter).
    pub fn removed(&self, id: &ModelCardInstanceId) {
        self.0.write().remove(id);
    }

    /// Identities of all cards.
    pub fn ids(&self) -> Vec<ModelCardInstanceId> {
        self.0.read().names.keys().cloned().collect()
    }

    /// The first result of `find` over the cards of one adapter, in no order. `find` must not call this object.
    pub fn find_card<T>(
        &self,
        adapter: &str,
        find: impl FnMut(&ModelCardInstanceId) -> Option<T>,
    ) -> Option<T> {
        self.0.read().adapters.get(adapter)?.cards.keys().find_map(find)
    }

    /// Workers that have loaded an adapter; `None` for a name that no card has.
    pub fn holders(&self, adapter: &str) -> Option<Arc<[WorkerId]>> {
        let state = self.0.read();
        Some(state.adapters.get(adapter)?.holders.clone())
    }
}

impl State {
    fn remove(&mut self, id: &ModelCardInstanceId) {
        let Some(name) = self.names.remove(id) else { return };
        let Some(adapter) = self.adapters.get_mut(&name) else {
            return;
        };
        adapter.cards.remove(id);
        if adapter.cards.is_empty() {
            self.adapters.remove(&name);
        } else {
            adapter.gather();
        }
    }
}

impl Adapter {
    /// Gathers the workers of all cards.
    fn gather(&mut self) {
        let mut workers: Vec<_> = self.cards.values().flatten().copied().collect();
        workers.sort_unstable();
        workers.dedup();
        self.holders = workers.into();
    }
}

/// Identity of the model's card on the worker that has the adapter's card `id`.
pub fn base_of(id: &ModelCardInstanceId) -> ModelCardInstanceId {
    ModelCardInstanceId {
        model_suffix: None,
        ..id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(instance_id: u64, adapter: &str) -> ModelCardInstanceId {
        ModelCardInstanceId {
            namespace: "n".into(),
            component: "backend".into(),
            endpoint: "generate".into(),
            instance_id,
            model_suffix: Some(adapter.into()),
        }
    }

    #[test]
    fn holders_follow_the_cards_of_an_adapter() {
        let adapters = Adapters::default();
        let [one, other] = [WorkerId::new(1, 0), WorkerId::new(2, 0)];
        assert_eq!(adapters.holders("a"), None, "no card has this name");
        adapters.put(id(2, "a"), "a", vec![other]);
        adapters.put(id(1, "a"), "a", vec![one]);
        adapters.put(id(1, "b"), "b", vec![one]);
        assert_eq!(adapters.holders("a").as_deref(), Some(&[one, other][..]));
        adapters.removed(&id(2, "a"));
        adapters.removed(&id(2, "a"));
        assert_eq!(adapters.holders("a").as_deref(), Some(&[one][..]));
        adapters.removed(&id(1, "a"));
        assert_eq!(adapters.holders("a"), None);
        assert_eq!(adapters.holders("b").as_deref(), Some(&[one][..]));
    }

    #[test]
    fn card_that_changes_its_adapter_leaves_the_former_one() {
        let adapters = Adapters::default();
        let worker = WorkerId::new(1, 0);
        adapters.put(id(1, "x"), "a", vec![worker]);
        adapters.put(id(1, "x"), "b", vec![worker]);
        assert_eq!(adapters.holders("a"), None);
        assert_eq!(adapters.holders("b").as_deref(), Some(&[worker][..]));
    }

    #[test]
    fn base_of_an_adapter_is_the_card_without_suffix() {
        assert_eq!(base_of(&id(1, "a")).model_suffix, None);
        assert_eq!(base_of(&id(1, "a")).instance_id, 1);
    }
}
