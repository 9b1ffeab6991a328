"""Dynamo's discovery format: the content of a store as a `FleetView`.

Pure: content in, view out. The file store and etcd hold the same keys and entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from wardrop.dynamo.discovery.fleet_view import TOPICS, Feed, FleetView, Model, Role, Worker

JsonObject = dict[str, object]

StoreContent = Mapping[str, Mapping[str, JsonObject]]
"""Entries of a store by bucket and key."""

BUCKETS = ("instances", "mdc", "event_channels", "event_sources")
"""Buckets that the router reads."""

MAX_ENTRY_BYTES = 1 << 20
"""An entry larger than this is not read; a model card is about 4 kB."""

_ROLES: dict[str, Role] = {"aggregated": "aggregated", "prefill": "prefill", "decode": "decode"}


def read_fleet_view(content: StoreContent) -> FleetView:
    """The fleet that the content of a discovery store describes.

    A worker is in the view when both its address (bucket `instances`) and its model card (bucket
    `mdc`) are in the store. The role of a worker is the card's `worker_type`. A feed belongs to the
    model and role of the workers on its endpoint. A feed whose endpoint has no worker is left out
    until a worker appears.

    Cost: linear in the number of entries. An entry that cannot be read becomes a problem of the
    view and affects no other entry.
    """
    problems: list[str] = []
    addresses: dict[tuple[str, int], str] = {}
    for key, entry in content.get("instances", {}).items():
        try:
            addresses[_endpoint(entry), _unsigned(entry, "instance_id")] = _address(entry)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"instances/{key}: {_reason(error)}")
    models: dict[str, Model] = {}
    workers: dict[tuple[str, Role, int], Worker] = {}
    adapters: dict[str, set[tuple[str, int]]] = {}
    for key, entry in sorted(content.get("mdc", {}).items()):
        try:
            endpoint, instance = _endpoint(entry), _unsigned(entry, "instance_id")
            if (endpoint, instance) not in addresses:
                continue
            card = _object(entry["card_json"], "card_json")
            if isinstance(card.get("lora"), dict):
                adapters.setdefault(str(card["display_name"]), set()).add((endpoint, instance))
                continue
            model = _model(card)
            worker = _worker(card, model.name, endpoint, instance, addresses[endpoint, instance])
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"mdc/{key}: {_reason(error)}")
            continue
        known = models.setdefault(model.name, model)
        if known.block_size != model.block_size:
            problems.append(
                f"mdc/{key}: block size {model.block_size} of model {model.name!r} differs from "
                f"{known.block_size} of another worker; this worker is left out"
            )
            continue
        workers[worker.model, worker.role, worker.instance] = worker
    models = _with_adapters(models, workers, adapters, problems)
    feeds = _feeds(content, workers, problems)
    return FleetView(models, workers, feeds, tuple(problems))


def _with_adapters(
    models: Mapping[str, Model],
    workers: Mapping[tuple[str, Role, int], Worker],
    adapters: Mapping[str, set[tuple[str, int]]],
    problems: list[str],
) -> dict[str, Model]:
    """Each model with the adapters that all of its workers have.

    Dynamo routes an adapter that only some workers have: a pin could name a worker without it.
    """
    places: dict[str, set[tuple[str, int]]] = {}
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
    by_instance: dict[tuple[str, int], tuple[str, Role]] = {}
    for worker in workers.values():
        served.setdefault(worker.endpoint, (worker.model, worker.role))
        by_instance.setdefault((worker.endpoint, worker.instance), (worker.model, worker.role))
    sources: dict[int, int] = {}
    for key, entry in content.get("event_sources", {}).items():
        try:
            metadata = _object(entry["metadata"], "metadata")
            worker_of = _object(metadata["worker"], "metadata.worker")
            sources[_unsigned(entry, "publisher_id")] = _unsigned(worker_of, "worker_id")
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"event_sources/{key}: {_reason(error)}")
    feeds: dict[int, Feed] = {}
    for key, entry in content.get("event_channels", {}).items():
        try:
            topic = str(entry["topic"])
            if topic not in TOPICS:
                continue
            scope = _object(entry["scope"], "scope")
            endpoint = _endpoint_name(_object(scope["endpoint"], "scope.endpoint"), "name")
            publisher = _unsigned(entry, "instance_id")
            transport = _object(entry["transport"], "transport")
            if str(transport["kind"]).lower() != "zmq":
                raise ValueError(
                    f"got event transport {transport['kind']!r}, expected Zmq; start Dynamo with "
                    "DYN_EVENT_PLANE=zmq, otherwise the feed is not read and routing is by load"
                )
            address = str(_object(transport["config"], "transport.config")["endpoint"])
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"event_channels/{key}: {_reason(error)}")
            continue
        source = sources.get(publisher)
        owner = by_instance.get((endpoint, source)) if source is not None else None
        owner = owner or served.get(endpoint)
        if owner is not None:
            feeds[publisher] = Feed(publisher, topic, address, endpoint, *owner, source)
    return feeds


def _model(card: JsonObject) -> Model:
    context = card.get("context_length")
    return Model(
        name=str(card["display_name"]),
        block_size=_positive(card, "kv_cache_block_size"),
        context_length=context if isinstance(context, int) and context > 0 else None,
        source_path=str(card["source_path"]) if card.get("source_path") else None,
        files=tuple(sorted(_files(card))),
    )


def _worker(card: JsonObject, model: str, endpoint: str, instance: int, address: str) -> Worker:
    kind = card.get("worker_type")
    if kind is None:
        # Cards of older workers have no `worker_type`: model type or component names prefill.
        prefill = "prefill" in str(card.get("model_type", "")).lower() or ".prefill." in endpoint
        kind = "prefill" if prefill else "aggregated"
    if str(kind) not in _ROLES:
        raise ValueError(f"got worker_type {kind!r}, expected one of {', '.join(_ROLES)}")
    runtime = _object(card.get("runtime_config") or {}, "runtime_config")
    return Worker(
        model=model,
        role=_ROLES[str(kind)],
        instance=instance,
        endpoint=endpoint,
        address=address,
        dp_start=_natural(runtime, "data_parallel_start_rank") or 0,
        dp_size=_natural(runtime, "data_parallel_size") or 1,
        total_kv_blocks=_natural(runtime, "total_kv_blocks"),
        max_num_seqs=_natural(runtime, "max_num_seqs"),
        max_num_batched_tokens=_natural(runtime, "max_num_batched_tokens"),
    )


def _files(card: JsonObject) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in ("model_info", "tokenizer", "prompt_formatter", "gen_config", "chat_template_file"):
        kinds = card.get(part)
        if not isinstance(kinds, dict):
            continue
        for kind, place in cast(JsonObject, kinds).items():
            path = cast(JsonObject, place).get("path") if isinstance(place, dict) else None
            if isinstance(path, str):
                found.append((_file_name(kind, path), path))
    return found


def _file_name(kind: str, path: str) -> str:
    names = {
        "hf_config_json": "config.json",
        "hf_tokenizer_json": "tokenizer.json",
        "hf_tokenizer_config_json": "tokenizer_config.json",
        "hf_generation_config_json": "generation_config.json",
        "hf_chat_template_jinja": "chat_template.jinja",
        "hf_chat_template_json": "chat_template.json",
    }
    return names.get(kind) or path.rpartition("/")[2]


def _endpoint(entry: JsonObject) -> str:
    return _endpoint_name(entry, "endpoint")


def _endpoint_name(entry: JsonObject, last: str) -> str:
    return f"{entry['namespace']}.{entry['component']}.{entry[last]}"


def _address(entry: JsonObject) -> str:
    transport = entry.get("transport")
    if isinstance(transport, dict):
        return " ".join(str(value) for value in cast(JsonObject, transport).values())
    return str(transport or "")


def _object(value: object, name: str) -> JsonObject:
    if not isinstance(value, dict):
        raise TypeError(f"got {type(value).__name__} for {name}, expected an object")
    return cast(JsonObject, value)


def _unsigned(entry: JsonObject, name: str) -> int:
    value = entry[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise ValueError(f"got {value!r} for {name}, expected an unsigned 64-bit number")
    return value


def _positive(entry: JsonObject, name: str) -> int:
    value = _unsigned(entry, name)
    if value == 0:
        raise ValueError(f"got 0 for {name}, expected at least 1")
    return value


def _natural(entry: JsonObject, name: str) -> int | None:
    return _unsigned(entry, name) if entry.get(name) is not None else None


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
