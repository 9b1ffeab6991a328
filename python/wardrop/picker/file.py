"""The file of `wardrop picker`: settings of the picker, models and workers, in YAML.

    listen: 0.0.0.0:9002
    models:
      - name: llama
        folder: /models/llama
    workers:
      - url: http://10.0.0.1:8000
      - url: http://10.0.0.2:8000
    kubernetes:
      - inference_pool: llm/qwen

The stages `routing`, `predicted`, `prompt` and `feed` are those of `wardrop dynamo`. Unknown keys
are refused.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import structs

from wardrop.config import (
    Config,
    ConfigError,
    Feed,
    Peers,
    Predicted,
    Prompt,
    Records,
    Routing,
    Tracing,
    settings,
)
from wardrop.config.values import check_value
from wardrop.decoding import convert, shown
from wardrop.errors import InputError
from wardrop.kubernetes.selector import Endpoint, EndpointSelector
from wardrop.yaml_file import read_yaml

MAX_WORKERS = 4096
_ID_BITS = (1 << 53) - 1
_STAGES: dict[str, type[Any]] = {
    "routing": Routing,
    "predicted": Predicted,
    "prompt": Prompt,
    "feed": Feed,
    "records": Records,
    "tracing": Tracing,
    "peers": Peers,
}

_ANY_ENDPOINT = Endpoint("pod", "uid", "127.0.0.1", 1)

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Ranks = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_BlockSize = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
_Level = Literal["debug", "info", "warning", "error"]


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model.

    Attributes:
        name: Name that clients use.
        folder: Folder with `tokenizer.json` and the chat template. Without one, prompts of text are
            routed by load, and prompts of token ids by prefix.
        block_size: Tokens per KV block of the workers.
        context_length: Longest prompt plus output, in tokens.
        loras: Names of adapters that run on this model.
    """

    name: str
    folder: str | None = None
    block_size: _BlockSize = 16
    context_length: _Count | None = None
    loras: tuple[str, ...] = ()


class WorkerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One OpenAI server.

    Attributes:
        url: Base address of the HTTP server, `http://IP:PORT`. Envoy connects to the IP address.
        model: Name of the model; by default the only model of the file.
        role: Part of a request that the server runs.
        events: Socket of the KV events, `tcp://HOST:PORT`; rank r publishes on port PORT + r.
            Without one, the picker predicts the cache.
        replay: Replay socket of the KV events, `tcp://HOST:PORT`; ranks as for `events`.
        ranks: Data-parallel ranks behind the address.
        kv_blocks: KV blocks of a rank; unknown by default.
        max_num_seqs: Sequences in a batch; unknown by default.
        max_num_batched_tokens: Tokens in a batch; unknown by default.
    """

    url: str
    model: str | None = None
    role: Literal["aggregated", "prefill", "decode"] = "aggregated"
    events: str | None = None
    replay: str | None = None
    ranks: _Ranks = 1
    kv_blocks: _Count | None = None
    max_num_seqs: _Count | None = None
    max_num_batched_tokens: _Count | None = None

    def endpoint(self, models: tuple[ModelSpec, ...], place: str) -> dict[str, Any]:
        """The worker as `wardrop._core.Picker.set_endpoints` takes it.

        Raises:
            InputError: The address is no IP address with a port, or the model is not clear.
        """
        model = self.model or (models[0].name if len(models) == 1 else None)
        if model not in [known.name for known in models]:
            names = ", ".join(known.name for known in models) or "no model"
            raise InputError(f"{place}: model: got {shown(self.model)}, expected one of {names}")
        address = _address(self.url, place)
        return {
            "address": address,
            "instance": _id(address),
            "model": model,
            "role": self.role,
            "dp_size": self.ranks,
            "total_kv_blocks": self.kv_blocks,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
        }

    def feeds(self, models: tuple[ModelSpec, ...], place: str) -> list[dict[str, Any]]:
        """The feeds of the worker as `wardrop._core.Picker.subscribe` takes them.

        Raises:
            InputError: An address has another form.
        """
        if self.events is None:
            return []
        endpoint = self.endpoint(models, place)
        return [
            {
                "endpoint": _of_rank(self.events, rank, f"{place}: events"),
                "topic": "engine-events",
                "model": endpoint["model"],
                "role": self.role,
                "publisher_id": _id(f"{endpoint['address']} events {rank}"),
                "instance": endpoint["instance"],
                "dp_rank": rank,
                "replay": self.replay and _of_rank(self.replay, rank, f"{place}: replay"),
            }
            for rank in range(self.ranks)
        ]


class KubernetesSpec(EndpointSelector, frozen=True, forbid_unknown_fields=True):
    """The ready pods that a selector finds in a cluster, one OpenAI server each.

    Attributes:
        model: Name of the model; by default the only model of the file.
        role: Part of a request that the servers run.
        kv_blocks: KV blocks of a rank; unknown by default.
        max_num_seqs: Sequences in a batch; unknown by default.
        max_num_batched_tokens: Tokens in a batch; unknown by default.
    """

    model: str | None = None
    role: Literal["aggregated", "prefill", "decode"] = "aggregated"
    kv_blocks: _Count | None = None
    max_num_seqs: _Count | None = None
    max_num_batched_tokens: _Count | None = None

    def worker(self, endpoint: Endpoint) -> WorkerSpec:
        """The server at an endpoint."""
        return WorkerSpec(
            url=f"http://{endpoint.authority}",
            model=self.model,
            role=self.role,
            events=endpoint.socket(self.events_port, self.ranks),
            replay=endpoint.socket(self.replay_port, self.ranks),
            ranks=self.ranks,
            kv_blocks=self.kv_blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Logging.

    Attributes:
        level: Least level of the lines on standard error.
    """

    level: _Level = "info"


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files in PEM format.

    Attributes:
        certificate: Certificate chain.
        key: Private key.
    """

    certificate: str
    key: str


class PickerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        listen: `host:port` of external processing; port 0 takes a free one.
        health_listen: `host:port` of gRPC health checks without TLS.
        http_listen: `host:port` of `/metrics`, `/live`, `/ready`, and what `wardrop doctor` asks.
        tls: Certificate and key of `listen`; without them the picker serves plain HTTP/2.
        worker_threads: Threads that serve streams.
        router_id: Label of all metrics.
        dialect: Names of the headers for workers in a split or with ranks.
        default_model: Model of requests without a known model; by default the first.
        objectives: Priority of each objective, −10 to 10.
        model_rewrites: Model name that a worker sees, by the name that a client sends.
        conformance_headers: Answer the headers of the conformance tests.
        receipts: Recent decisions whose reasons are kept.
        drain_timeout_s: Time for requests in flight to end at stop.
        limits: Limits on what Envoy may send.
        routing: The choice of a worker, as for `wardrop dynamo`.
        predicted: Predicted caches, as for `wardrop dynamo`; by default `used: beside` where a
            worker has `events`, else `used: alone`.
        prompt: Turning prompts into tokens, as for `wardrop dynamo`.
        feed: Feeds of events, as for `wardrop dynamo`.
        records: Decision records, as for `wardrop dynamo`.
        tracing: OpenTelemetry spans, as for `wardrop dynamo`.
        peers: Routers that share the fleet, as for `wardrop dynamo`.
        log: Logging.
        models: The models; one at least.
        workers: The servers.
        kubernetes: Selectors of servers in a cluster.
    """

    models: Annotated[tuple[ModelSpec, ...], msgspec.Meta(min_length=1, max_length=1024)]
    workers: Annotated[tuple[WorkerSpec, ...], msgspec.Meta(max_length=MAX_WORKERS)] = ()
    kubernetes: Annotated[tuple[KubernetesSpec, ...], msgspec.Meta(max_length=64)] = ()
    listen: str = "127.0.0.1:9002"
    health_listen: str | None = None
    http_listen: str | None = None
    tls: Tls | None = None
    worker_threads: int = 2
    router_id: str = "wardrop-0"
    dialect: Literal["llm-d", "dynamo"] = "llm-d"
    default_model: str | None = None
    objectives: dict[str, Annotated[int, msgspec.Meta(ge=-10, le=10)]] = {}
    model_rewrites: dict[str, str] = {}
    conformance_headers: bool = False
    receipts: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0
    drain_timeout_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    limits: dict[str, int] = {}
    routing: dict[str, Any] = {}
    predicted: dict[str, Any] = {}
    prompt: dict[str, Any] = {}
    feed: dict[str, Any] = {}
    records: dict[str, Any] = {}
    tracing: dict[str, Any] = {}
    peers: dict[str, Any] = {}
    log: Log = Log()

    def native_json(self) -> str:
        """The configuration of `wardrop._core.Picker`, as JSON.

        Raises:
            InputError: A value of a stage has the wrong type or is out of range.
        """
        given = {name: cast(dict[str, Any], getattr(self, name)) for name in _STAGES}
        has_events = any(worker.events for worker in self.workers)
        has_events |= any(selector.events_port for selector in self.kubernetes)
        used = "beside" if has_events else "alone"
        given["predicted"] = {"used": used} | given["predicted"]
        native = native_stages(given)
        native["routing"]["receipts"] = self.receipts
        native["prompt"]["handover"] = False
        level = "warn" if self.log.level == "warning" else self.log.level
        own = {
            "listen": self.listen,
            "health_listen": self.health_listen,
            "http_listen": self.http_listen,
            "tls": None if self.tls is None else msgspec.to_builtins(self.tls),
            "worker_threads": self.worker_threads,
            "router_id": self.router_id,
            "limits": self.limits,
            "dialect": self.dialect,
            "default_model": self.default_model,
            "objectives": self.objectives,
            "model_rewrites": self.model_rewrites,
            "conformance_headers": self.conformance_headers,
            "log": level,
        }
        return json.dumps(own | native)

    def with_endpoints(self, found: Mapping[KubernetesSpec, tuple[Endpoint, ...]]) -> PickerFile:
        """The file with the servers of a cluster beside its own workers.

        An address counts once; a worker of the file comes first.
        """
        workers = {worker.url: worker for worker in self.workers}
        for selector, endpoints in found.items():
            for endpoint in endpoints:
                worker = selector.worker(endpoint)
                if len(workers) < MAX_WORKERS:
                    workers.setdefault(worker.url, worker)
        return structs.replace(self, workers=tuple(workers.values()))

    def models_json(self) -> list[str]:
        """The models as `wardrop._core.Picker.upsert_model` takes them."""
        return [json.dumps(msgspec.to_builtins(model)) for model in self.models]

    def endpoints_json(self) -> str:
        """The workers as `wardrop._core.Picker.set_endpoints` takes them.

        Raises:
            InputError: A worker cannot be used; the text names it.
        """
        places = enumerate(self.workers, 1)
        return json.dumps(
            [worker.endpoint(self.models, f"worker {number}") for number, worker in places]
        )

    def feeds(self) -> dict[int, str]:
        """The feeds of all workers as `wardrop._core.Picker.subscribe` takes them, by id.

        Raises:
            InputError: An address has another form.
        """
        places = enumerate(self.workers, 1)
        feeds = [
            feed
            for number, worker in places
            for feed in worker.feeds(self.models, f"worker {number}")
        ]
        return {feed["publisher_id"]: json.dumps(feed) for feed in feeds}


def read_file(path: Path) -> PickerFile:
    """Read and check a file.

    Raises:
        InputError: The file cannot be read, or a key or value is wrong.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: got {type(content).__name__}, expected a mapping")
    file = cast(PickerFile, convert(cast(object, content), PickerFile, str(path)))
    file.endpoints_json()
    file.feeds()
    for number, selector in enumerate(file.kubernetes):
        place = f"{path}: kubernetes[{number}]"
        selector.check(place)
        # The checks of a worker hold for each server that the selector finds later.
        selector.worker(_ANY_ENDPOINT).endpoint(file.models, place)
    if len(set(file.kubernetes)) < len(file.kubernetes):
        raise InputError(f"{path}: kubernetes: got a selector twice; name it once")
    return file


def native_stages(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Stages of `wardrop.config` as the native doors take them.

    They are `routing`, `prompt` and `feed`, and `records`, `tracing` and `peers` where given.

    Raises:
        InputError: A key is unknown, or a value has the wrong type or is out of range.
    """
    try:
        stages: dict[str, Any] = {name: _stage(name, stage) for name, stage in given.items()}
        config = Config(**stages)
    except ConfigError as error:
        raise InputError(str(error)) from error
    shared = json.loads(config.gateway_json([]))
    further = [name for name in ("records", "tracing", "peers") if name in given]
    return {key: shared[key] for key in ("routing", "prompt", "feed", *further)}


def _stage(name: str, given: Mapping[str, Any]) -> Any:
    """One stage of `wardrop.config`.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or is out of range.
    """
    known = {setting.name: setting for setting in settings() if setting.stage == name}
    for key in given:
        if key not in known:
            raise ConfigError(f"{name}: key {key!r} is not known; known: {', '.join(known)}")
    values: dict[str, Any] = {
        key: check_value(known[key].kind, value, f"{name}.{key}") for key, value in given.items()
    }
    return _STAGES[name](**values)


def _address(url: str, place: str) -> str:
    """`ip:port` of `http://IP:PORT`.

    Raises:
        InputError: The text has another form.
    """
    try:
        parts = urlsplit(url)
        host = ipaddress.ip_address(parts.hostname or "")
        usable = parts.scheme == "http" and parts.path in ("", "/") and parts.port
    except ValueError:
        usable, host, parts = False, None, None
    if not usable or host is None or parts is None:
        raise InputError(f"{place}: url: got {shown(url)}, expected http://IP:PORT")
    return f"[{host}]:{parts.port}" if host.version == 6 else f"{host}:{parts.port}"


def _of_rank(endpoint: str, rank: int, place: str) -> str:
    """The socket of a rank.

    Raises:
        InputError: The text is no `tcp://HOST:PORT`.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
        usable = parts.scheme == "tcp" and not parts.path and host and port
    except ValueError:
        usable, host, port = False, None, None
    if not usable or host is None or port is None:
        raise InputError(f"{place}: got {shown(endpoint)}, expected tcp://HOST:PORT")
    return f"tcp://[{host}]:{port + rank}" if ":" in host else f"tcp://{host}:{port + rank}"


def _id(text: str) -> int:
    """An id that stays the same over restarts, and that every JSON reader keeps exact."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) & _ID_BITS
