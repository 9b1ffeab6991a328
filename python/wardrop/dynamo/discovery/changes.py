"""The changes from one fleet view to the next, in an order that is always safe to apply.

Removals come before additions: feeds, workers and models leave, then models, workers and feeds
join. No feed ever names a pool that does not exist. A worker under the same id with another address
is a new incarnation, which is removed and added, and therefore starts empty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wardrop.dynamo.discovery.fleet_view import Feed, FleetView, Model, Worker


@dataclass(frozen=True)
class Unsubscribe:
    """A feed disappeared, or has another address."""

    feed: Feed


@dataclass(frozen=True)
class RemoveWorker:
    """A worker disappeared, or a new incarnation has its id."""

    worker: Worker


@dataclass(frozen=True)
class RemoveModel:
    """No worker serves the model any more, or its block size changed."""

    model: Model


@dataclass(frozen=True)
class UpsertModel:
    """A model is new, or one of its properties changed."""

    model: Model


@dataclass(frozen=True)
class UpsertWorker:
    """A worker is new, or one of its capacities changed."""

    worker: Worker


@dataclass(frozen=True)
class Subscribe:
    """A feed is new."""

    feed: Feed


Change = Unsubscribe | RemoveWorker | RemoveModel | UpsertModel | UpsertWorker | Subscribe


def diff(old: FleetView, new: FleetView) -> list[Change]:
    """Changes that turn `old` into `new`; empty when the views are equal.

    A model whose block size changed is removed with all its workers and feeds, because every block
    hash of the model is void. Cost: O(|old| + |new|).
    """
    void = {
        name
        for name, model in old.models.items()
        if name not in new.models or new.models[name].block_size != model.block_size
    }
    gone_workers = {
        key: worker
        for key, worker in old.workers.items()
        if worker.model in void or not _same_incarnation(worker, new.workers.get(key))
    }
    gone_feeds = {
        publisher: feed
        for publisher, feed in old.feeds.items()
        if feed.model in void or new.feeds.get(publisher) != feed
    }
    changes: list[Change] = [Unsubscribe(feed) for feed in gone_feeds.values()]
    changes += [RemoveWorker(worker) for worker in gone_workers.values()]
    changes += [RemoveModel(old.models[name]) for name in sorted(void)]
    changes += [
        UpsertModel(model)
        for name, model in new.models.items()
        if name in void or old.models.get(name) != model
    ]
    changes += [
        UpsertWorker(worker)
        for key, worker in new.workers.items()
        if key in gone_workers or old.workers.get(key) != worker
    ]
    changes += [
        Subscribe(feed)
        for publisher, feed in new.feeds.items()
        if publisher in gone_feeds or publisher not in old.feeds
    ]
    return changes


def _same_incarnation(old: Worker, new: Worker | None) -> bool:
    if new is None:
        return False
    same = replace(
        new,
        total_kv_blocks=old.total_kv_blocks,
        max_num_seqs=old.max_num_seqs,
        max_num_batched_tokens=old.max_num_batched_tokens,
    )
    return same == old
