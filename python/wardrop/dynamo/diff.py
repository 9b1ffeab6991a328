"""From one view to the next: the changes, in an order that is always safe to apply.

What goes leaves before what comes: feeds, workers, models out; models, workers, feeds in. So no
feed ever names a worker pool that does not exist, and a worker that came back under the same id
(another address: a new incarnation) starts empty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wardrop.dynamo.view import Feed, Model, View, Worker


@dataclass(frozen=True)
class Unsubscribe:
    """A feed is gone, or moved."""

    feed: Feed


@dataclass(frozen=True)
class RemoveWorker:
    """A worker is gone, or another incarnation took its id."""

    worker: Worker


@dataclass(frozen=True)
class RemoveModel:
    """No worker serves it any more, or its block size changed."""

    model: Model


@dataclass(frozen=True)
class UpsertModel:
    """A new model, or new properties of one."""

    model: Model


@dataclass(frozen=True)
class UpsertWorker:
    """A new worker, or new capacities of one."""

    worker: Worker


@dataclass(frozen=True)
class Subscribe:
    """A new feed."""

    feed: Feed


Change = Unsubscribe | RemoveWorker | RemoveModel | UpsertModel | UpsertWorker | Subscribe


def diff(old: View, new: View) -> list[Change]:
    """Changes that turn `old` into `new`; empty when they say the same.

    Cost O(|old| + |new|). A model whose block size changed takes all its workers and feeds with
    it: every hash of it is void.
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
