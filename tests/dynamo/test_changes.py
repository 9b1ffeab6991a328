from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from wardrop.dynamo.discovery.changes import (
    Change,
    RemoveModel,
    RemoveWorker,
    Subscribe,
    Unsubscribe,
    UpsertModel,
    UpsertWorker,
    diff,
)
from wardrop.dynamo.discovery.fleet_view import Feed, FleetView, Model, Worker

NAMES = ("a", "b")
ROLES = ("aggregated", "prefill")


@st.composite
def views(draw) -> FleetView:
    models = {
        name: Model(name, draw(st.sampled_from((16, 32))), draw(st.sampled_from((None, 9))))
        for name in draw(st.sets(st.sampled_from(NAMES)))
    }
    workers = {}
    feeds = {}
    for name in models:
        for instance in draw(st.sets(st.integers(1, 3))):
            role = draw(st.sampled_from(ROLES))
            workers[name, role, instance] = Worker(
                name,
                role,
                instance,
                f"{name}.{role}",
                draw(st.sampled_from(("x", "y"))),
                total_kv_blocks=draw(st.sampled_from((None, 100))),
            )
    for name, role, _ in workers:
        for publisher in draw(st.sets(st.integers(1, 4))):
            address = draw(st.sampled_from(("tcp://p", "tcp://q")))
            feeds[publisher] = Feed(publisher, "kv-events", address, "e", name, role)
    return FleetView(models, workers, feeds)


class Mirror:
    """What a gateway would hold; refuses what a gateway refuses."""

    def __init__(self, view: FleetView) -> None:
        self.models = dict(view.models)
        self.workers = dict(view.workers)
        self.feeds = dict(view.feeds)

    def apply(self, change: Change) -> None:
        match change:
            case Unsubscribe(feed):
                assert self.feeds.pop(feed.publisher_id) == feed
            case RemoveWorker(worker):
                assert self.workers.pop((worker.model, worker.role, worker.instance)) == worker
            case RemoveModel(model):
                assert not any(w.model == model.name for w in self.workers.values())
                assert not any(f.model == model.name for f in self.feeds.values())
                del self.models[model.name]
            case UpsertModel(model):
                old = self.models.get(model.name)
                assert old is None or old.block_size == model.block_size
                self.models[model.name] = model
            case UpsertWorker(worker):
                assert worker.model in self.models
                old = self.workers.get((worker.model, worker.role, worker.instance))
                assert old is None or old.address == worker.address
                self.workers[worker.model, worker.role, worker.instance] = worker
            case Subscribe(feed):
                assert feed.publisher_id not in self.feeds
                assert any(
                    (w.model, w.role) == (feed.model, feed.role) for w in self.workers.values()
                )
                self.feeds[feed.publisher_id] = feed


@given(views(), views())
def test_changes_in_order_turn_the_old_view_into_the_new(old, new):
    mirror = Mirror(old)
    for change in diff(old, new):
        mirror.apply(change)
    assert (mirror.models, mirror.workers, mirror.feeds) == (new.models, new.workers, new.feeds)


@given(views())
def test_same_view_gives_no_change(view):
    assert diff(view, view) == []


def one_worker(**changes) -> FleetView:
    worker = replace(Worker("a", "aggregated", 1, "e", "x", total_kv_blocks=10), **changes)
    return FleetView({"a": Model("a", 16)}, {("a", "aggregated", 1): worker})


def test_same_id_at_another_address_is_a_new_incarnation():
    new = one_worker(address="y")
    (worker,) = new.workers.values()
    assert [type(change) for change in diff(one_worker(), new)] == [RemoveWorker, UpsertWorker]
    assert diff(one_worker(), new)[1] == UpsertWorker(worker)


def test_another_capacity_keeps_the_worker_and_its_blocks():
    (change,) = diff(one_worker(), one_worker(total_kv_blocks=20))
    assert isinstance(change, UpsertWorker)


def test_another_block_size_voids_model_and_workers():
    old = one_worker()
    new = FleetView({"a": Model("a", 32)}, old.workers)
    assert [type(change) for change in diff(old, new)] == [
        RemoveWorker,
        RemoveModel,
        UpsertModel,
        UpsertWorker,
    ]
