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
    cards: HashMap<ModelCardInstanceId, Card>,
    /// Workers with each adapter, by its name. Made anew with each change, so that a request copies nothing.
    holders: HashMap<String, Arc<[WorkerId]>>,
}

/// The card of one adapter on one worker process.
struct Card {
    adapter: String,
    /// The ranks of the process.
    workers: Vec<WorkerId>,
}

impl Adapters {
    /// Notes the card of an adapter. A known card is replaced.
    pub fn added(&self, id: ModelCardInstanceId, card: &ModelDeploymentCard) {
        let ranks = &card.runtime_config;
        let first = ranks.data_parallel_start_rank;
        let end = first.saturating_add(ranks.data_parallel_size.max(1));
        let instance = id.instance_id;
        let workers = (first..end).map(|rank| WorkerId::new(instance, rank));
        self.put(
            id,
            Card {
                adapter: card.name().to_owned(),
                workers: workers.collect(),
            },
        );
    }

    fn put(&self, id: ModelCardInstanceId, card: Card) {
        let mut state = self.0.write();
        if state.cards.len() >= MAX_CARDS && !state.cards.contains_key(&id) {
            return;
        }
        let adapter = card.adapter.clone();
        if let Some(former) = state.cards.insert(id, card)
            && former.adapter != adapter
        {
            state.gather(&former.adapter);
        }
        state.gather(&adapter);
    }

    /// Forgets a card. Returns the name of its adapter; `None` for an unknown card.
    pub fn removed(&self, id: &ModelCardInstanceId) -> Option<String> {
        let mut state = self.0.write();
        let card = state.cards.remove(id)?;
        state.gather(&card.adapter);
        Some(card.adapter)
    }

    /// Identities of all cards.
    pub fn ids(&self) -> Vec<ModelCardInstanceId> {
        self.0.read().cards.keys().cloned().collect()
    }

    /// Identities of the cards of one adapter.
    pub fn ids_of(&self, adapter: &str) -> Vec<ModelCardInstanceId> {
        let state = self.0.read();
        let cards = state.cards.iter().filter(|(_, card)| card.adapter == adapter);
        cards.map(|(id, _)| id.clone()).collect()
    }

    /// Workers that have loaded an adapter; `None` for a name that no card has.
    pub fn holders(&self, adapter: &str) -> Option<Arc<[WorkerId]>> {
        self.0.read().holders.get(adapter).cloned()
    }
}

impl State {
    /// Gathers the workers of an adapter from all cards. O(cards).
    fn gather(&mut self, adapter: &str) {
        let cards = self.cards.values().filter(|card| card.adapter == adapter);
        let mut workers: Vec<_> = cards.flat_map(|card| card.workers.iter().copied()).collect();
        workers.sort_unstable();
        workers.dedup();
        if workers.is_empty() {
            self.holders.remove(adapter);
        } else {
            self.holders.insert(adapter.to_owned(), workers.into());
        }
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

    fn card(adapter: &str, workers: &[WorkerId]) -> Card {
        Card {
            adapter: adapter.into(),
            workers: workers.to_vec(),
        }
    }

    #[test]
    fn holders_follow_the_cards_of_an_adapter() {
        let adapters = Adapters::default();
        let [one, other] = [WorkerId::new(1, 0), WorkerId::new(2, 0)];
        assert_eq!(adapters.holders("a"), None, "no card has this name");
        adapters.put(id(2, "a"), card("a", &[other]));
        adapters.put(id(1, "a"), card("a", &[one]));
        adapters.put(id(1, "b"), card("b", &[one]));
        assert_eq!(adapters.holders("a").as_deref(), Some(&[one, other][..]));
        assert_eq!(adapters.removed(&id(2, "a")).as_deref(), Some("a"));
        assert_eq!(adapters.removed(&id(2, "a")), None);
        assert_eq!(adapters.holders("a").as_deref(), Some(&[one][..]));
        assert_eq!(adapters.removed(&id(1, "a")).as_deref(), Some("a"));
        assert_eq!(adapters.holders("a"), None);
        assert_eq!(adapters.holders("b").as_deref(), Some(&[one][..]));
    }

    #[test]
    fn card_that_changes_its_adapter_leaves_the_former_one() {
        let adapters = Adapters::default();
        let worker = WorkerId::new(1, 0);
        adapters.put(id(1, "x"), card("a", &[worker]));
        adapters.put(id(1, "x"), card("b", &[worker]));
        assert_eq!(adapters.holders("a"), None);
        assert_eq!(adapters.holders("b").as_deref(), Some(&[worker][..]));
    }

    #[test]
    fn base_of_an_adapter_is_the_card_without_suffix() {
        assert_eq!(base_of(&id(1, "a")).model_suffix, None);
        assert_eq!(base_of(&id(1, "a")).instance_id, 1);
    }
}
