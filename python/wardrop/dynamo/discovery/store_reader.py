"""The content of a discovery store as a `FleetView`.

The file store and etcd hold the same keys and entries. `entries` has their format, `worker_sets`
the rules by which Dynamo serves with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from wardrop.dynamo.discovery.entries import (
    Card,
    CardEntry,
    ChannelEntry,
    Entry,
    InstanceEntry,
    SourceEntry,
    capacity,
    place_of,
    role_of,
)
from wardrop.dynamo.discovery.fleet_view import TOPICS, Feed, FleetView, Model, Role, Worker
from wardrop.dynamo.discovery.scope import Scope
from wardrop.dynamo.discovery.worker_sets import Member, SetKey, WorkerSets

StoreContent = Mapping[str, Mapping[str, Entry]]
"""Entries of a store by bucket and key."""

_Place = tuple[str, int]
"""Endpoint and instance."""


class StoreReader:
    """Reads the contents of one store, one after the other.

    Args:
        scope: Namespaces that the frontends see.
    """

    def __init__(self, scope: Scope | None = None) -> None:
        self._scope = scope or Scope()
        self._sets = WorkerSets()

    def forget_order(self) -> None:
        """A frontend started again: which configuration a worker set serves with is open."""
        self._sets.forget_order()

    def read(self, content: StoreContent, problems: tuple[str, ...] = ()) -> FleetView:
        """The fleet that the content of a store describes.

        A worker is in the view when its address (bucket `instances`) and its model card (bucket
        `mdc`) are in the store. Frontends serve with the same workers. The role of a worker is the
        card's `worker_type`. A feed belongs to the model and role of the workers on its endpoint. A
        feed whose endpoint has no worker is left out until a worker appears.

        Cost: linear in the number of entries. An entry that cannot be used becomes a problem of
        the view and affects no other entry.

        Args:
            content: Decoded entries.
            problems: Texts about entries that could not be decoded.
        """
        found = list(problems)
        addresses = {
            (entry.endpoint_name, entry.instance_id): entry.address
            for entry in content.get("instances", {}).values()
            if isinstance(entry, InstanceEntry) and self._scope.has(entry.namespace)
        }
        members: list[Member] = []
        adapters: dict[str, set[_Place]] = {}
        for key, entry in sorted(content.get("mdc", {}).items()):
            if not isinstance(entry, CardEntry):
                continue
            at = entry.endpoint_name, entry.instance_id
            if at not in addresses:
                continue
            if entry.card_json.lora is not None:
                adapters.setdefault(entry.card_json.display_name, set()).add(at)
                continue
            try:
                member = _member(entry, addresses[at])
            except ValueError as error:
                found.append(f"{place_of('mdc', key)}: {error}")
                continue
            if member is not None:
                members.append(member)
        choice = self._sets.choose(members)
        found += choice.problems
        models, workers = _models(choice.members, choice.left_to_dynamo, found)
        models = _with_adapters(models, workers, adapters, found)
        feeds = _feeds(content, workers, found)
        return FleetView(models, workers, feeds, tuple(found))


def read_fleet_view(content: StoreContent, scope: Scope | None = None) -> FleetView:
    """The fleet that one content of a store describes, without the memory of an earlier one."""
    return StoreReader(scope).read(content)


def _member(entry: CardEntry, address: str) -> Member | None:
    card, endpoint = entry.card_json, entry.endpoint_name
    role = role_of(card, endpoint)
    if role is None:
        return None
    runtime = card.runtime
    worker = Worker(
        model=card.display_name,
        role=role,
        instance=entry.instance_id,
        endpoint=endpoint,
        address=address,
        dp_start=runtime.data_parallel_start_rank or 0,
        dp_size=runtime.data_parallel_size or 1,
        total_kv_blocks=capacity(runtime.total_kv_blocks),
        max_num_seqs=capacity(runtime.max_num_seqs),
        max_num_batched_tokens=capacity(runtime.max_num_batched_tokens),
    )
    kind = card.model_type if isinstance(card.model_type, str) else ""
    key = SetKey(card.display_name, entry.namespace, endpoint, kind, role)
    return Member(key, worker, card, card.checksum)


def _models(
    members: list[Member], left_to_dynamo: frozenset[str], problems: list[str]
) -> tuple[dict[str, Model], dict[tuple[str, Role, int], Worker]]:
    """Models and workers. The card of a worker that requests enter at describes its model."""
    models: dict[str, Model] = {}
    workers: dict[tuple[str, Role, int], Worker] = {}
    checksums: dict[str, set[str]] = {}
    for member in members:
        checksums.setdefault(member.worker.model, set()).add(member.card.prompt_checksum)
    for member in sorted(members, key=lambda member: not member.serves):
        worker, card = member.worker, member.card
        model = models.setdefault(
            worker.model,
            _model(card, checksums[worker.model], worker.model in left_to_dynamo),
        )
        if model.block_size != card.kv_cache_block_size:
            problems.append(
                f"{worker.endpoint}, instance {worker.instance}: block size "
                f"{card.kv_cache_block_size} of model {worker.model!r} differs from "
                f"{model.block_size} of another worker; this worker is left out"
            )
            continue
        workers[worker.model, worker.role, worker.instance] = worker
    return models, workers


def _model(card: Card, checksums: set[str], left_to_dynamo: bool) -> Model:
    return Model(
        name=card.display_name,
        block_size=card.kv_cache_block_size,
        context_length=card.context_length or None,
        source_path=card.source_path or None,
        files=tuple(card.files),
        checksums=tuple(sorted(checksums)),
        prompt_options=card.prompt_options,
        left_to_dynamo=left_to_dynamo,
    )


def _with_adapters(
    models: Mapping[str, Model],
    workers: Mapping[tuple[str, Role, int], Worker],
    adapters: Mapping[str, set[_Place]],
    problems: list[str],
) -> dict[str, Model]:
    """Each model with the adapters that all of its workers have.

    Dynamo routes an adapter that only some workers have: a pin could name a worker without it.
    """
    places: dict[str, set[_Place]] = {}
    for worker in workers.values():
        places.setdefault(worker.model, set()).add((worker.endpoint, worker.instance))
    loras: dict[str, list[str]] = {}
    for adapter, at in sorted(adapters.items()):
        for name, workers_of_model in places.items():
            if workers_of_model <= at:
                loras.setdefault(name, []).append(adapter)
            elif with_adapter := workers_of_model & at:
                problems.append(
                    f"adapter {adapter!r} is on {len(with_adapter)} of {len(workers_of_model)} "
                    f"workers of {name!r}; Dynamo routes the adapter until all workers have it"
                )
    return {
        name: replace(model, loras=tuple(loras.get(name, ()))) for name, model in models.items()
    }


def _feeds(
    content: StoreContent, workers: Mapping[tuple[str, Role, int], Worker], problems: list[str]
) -> dict[int, Feed]:
    served: dict[str, tuple[str, Role]] = {}
    by_instance: dict[_Place, tuple[str, Role]] = {}
    for worker in workers.values():
        served.setdefault(worker.endpoint, (worker.model, worker.role))
        by_instance.setdefault((worker.endpoint, worker.instance), (worker.model, worker.role))
    sources = {
        entry.publisher_id: entry.metadata.worker.worker_id
        for entry in content.get("event_sources", {}).values()
        if isinstance(entry, SourceEntry)
    }
    feeds: dict[int, Feed] = {}
    for key, entry in _channels(content):
        try:
            endpoint = entry.endpoint_name(key)
            address = entry.socket(key)
        except ValueError as error:
            problems.append(str(error))
            continue
        publisher = entry.instance_id
        source = sources.get(publisher)
        owner = by_instance.get((endpoint, source)) if source is not None else None
        owner = owner or served.get(endpoint)
        if owner is not None:
            feeds[publisher] = Feed(publisher, entry.topic, address, endpoint, *owner, source)
    return feeds


def _channels(content: StoreContent) -> Iterator[tuple[str, ChannelEntry]]:
    """The channels of topics that the router reads, each with its place for errors."""
    for key, entry in content.get("event_channels", {}).items():
        if isinstance(entry, ChannelEntry) and entry.topic in TOPICS:
            yield place_of("event_channels", key), entry
