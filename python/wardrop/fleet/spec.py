"""The fleet as a user writes it: `--worker` texts and the YAML file of `--fleet`.

    models:
      - name: llama
        folder: /models/llama
    workers:
      - url: http://10.0.0.1:8000
        events: tcp://10.0.0.1:5557
        replay: tcp://10.0.0.1:5558
    kubernetes:
      - inference_pool: llm/qwen
        events_port: 5557

Everything that an engine reports itself may be left out. Unknown keys are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import msgspec

from wardrop.decoding import convert, shown
from wardrop.errors import InputError
from wardrop.kubernetes.selector import MAX_RANKS, Endpoint, EndpointSelector
from wardrop.yaml_file import read_yaml

MAX_WORKERS = 4096
"""Workers of one fleet. The router limits ranks, and each rank has a feed."""

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_BlockSize = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
_Ranks = Annotated[int, msgspec.Meta(ge=1, le=MAX_RANKS)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
_Host = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]

WorkerRole = Literal["aggregated", "prefill", "decode"]
"""What a worker runs of a request: all of it, or one part."""

Connector = Literal["vllm", "sglang"]
"""How the KV blocks of a prompt get from a prefill worker to a decode worker."""

DEFAULT_BOOTSTRAP_PORT = 8998
"""Default of SGLang's `--disaggregation-bootstrap-port`."""


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model, where the engines do not report enough.

    Attributes:
        name: Name that clients use.
        folder: Folder with `tokenizer.json` and the chat template. Without one, prompts of text are
            routed by load, and prompts of token ids by prefix.
        block_size: Tokens per KV block; by default what the engines report.
        context_length: Longest prompt plus output, in tokens; by default what the engines report.
    """

    name: str
    folder: str | None = None
    block_size: _BlockSize | None = None
    context_length: _Count | None = None


class WorkerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One OpenAI server, or all servers behind a name.

    Attributes:
        url: Base address of the HTTP server, `http://HOST:PORT` or `https://HOST:PORT`.
        events: Socket of the KV events, `tcp://HOST:PORT`. Rank r of a server publishes on port
            PORT + r. Without one, the router predicts the cache.
        replay: Replay socket of the KV events, `tcp://HOST:PORT`; ranks as for `events`.
        model: Name of the model; by default the first that the server lists.
        ranks: Data-parallel ranks of the server.
        role: What the server runs of a request.
        connector: How blocks get from a prefill to a decode worker; by default that of vLLM.
        bootstrap_host: Host of a prefill worker's bootstrap server; by default that of the URL.
            For SGLang alone.
        bootstrap_port: Port of that server. For SGLang alone.
        dns: Whether the host stands for as many servers as it has addresses.
        block_size: Tokens per KV block; by default what the server reports.
        kv_blocks: KV blocks of a rank; by default what the server reports.
        max_num_seqs: Sequences in a batch; unknown by default.
        max_num_batched_tokens: Tokens in a batch; unknown by default.
    """

    url: str
    events: str | None = None
    replay: str | None = None
    model: str | None = None
    ranks: _Ranks = 1
    role: WorkerRole = "aggregated"
    connector: Connector | None = None
    bootstrap_host: _Host | None = None
    bootstrap_port: _Port | None = None
    dns: bool = False
    block_size: _BlockSize | None = None
    kv_blocks: _Count | None = None
    max_num_seqs: _Count | None = None
    max_num_batched_tokens: _Count | None = None

    @property
    def transfer(self) -> dict[str, Any] | None:
        """The connector as the gateway takes it; None for a worker of whole requests."""
        if self.role == "aggregated":
            return None
        if self.connector != "sglang":
            return {"kind": "vllm"}
        place = http_address(self.url, "url")
        return {
            "kind": "sglang",
            "bootstrap_host": self.bootstrap_host or authority_host(place.host),
            "bootstrap_port": self.bootstrap_port or DEFAULT_BOOTSTRAP_PORT,
            "ranks": self.ranks,
        }


class KubernetesSpec(EndpointSelector, frozen=True, forbid_unknown_fields=True):
    """The ready pods that a selector finds in a cluster, one OpenAI server each.

    Attributes:
        model: Name of the model; by default the first that the server lists.
        role: What the servers run of a request.
        connector: How blocks get from a prefill to a decode worker; by default that of vLLM.
        bootstrap_port: Port of a prefill worker's bootstrap server. For SGLang alone.
        block_size: Tokens per KV block; by default what the server reports.
        kv_blocks: KV blocks of a rank; by default what the server reports.
        max_num_seqs: Sequences in a batch; unknown by default.
        max_num_batched_tokens: Tokens in a batch; unknown by default.
    """

    model: str | None = None
    role: WorkerRole = "aggregated"
    connector: Connector | None = None
    bootstrap_port: _Port | None = None
    block_size: _BlockSize | None = None
    kv_blocks: _Count | None = None
    max_num_seqs: _Count | None = None
    max_num_batched_tokens: _Count | None = None

    def worker(self, endpoint: Endpoint) -> WorkerSpec:
        """The server at an endpoint."""
        return WorkerSpec(
            url=f"http://{endpoint.authority}",
            events=endpoint.socket(self.events_port, self.ranks),
            replay=endpoint.socket(self.replay_port, self.ranks),
            model=self.model,
            ranks=self.ranks,
            role=self.role,
            connector=self.connector,
            bootstrap_port=self.bootstrap_port,
            block_size=self.block_size,
            kv_blocks=self.kv_blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )


class FleetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models and workers.

    Attributes:
        models: What the engines do not report of their models.
        workers: The servers.
        kubernetes: Selectors of servers in a cluster.
    """

    models: tuple[ModelSpec, ...] = ()
    workers: tuple[WorkerSpec, ...] = ()
    kubernetes: tuple[KubernetesSpec, ...] = ()

    @property
    def has_events(self) -> bool:
        """Whether any server publishes KV events."""
        return any(worker.events for worker in self.workers) or any(
            selector.events_port for selector in self.kubernetes
        )


@dataclass(frozen=True)
class Address:
    """Scheme, host and port of a URL."""

    host: str
    port: int
    scheme: str


_HTTP_PORTS = {"http": 80, "https": 443}


def http_address(url: str, place: str) -> Address:
    """Scheme, host and port of `http://HOST[:PORT]` or `https://HOST[:PORT]`.

    Raises:
        InputError: The text has another form.
    """
    scheme = "https" if url[:6].lower() == "https:" else "http"
    try:
        return address(url, scheme, place)
    except InputError as error:
        raise InputError(
            f"{place}: got {shown(url)}, expected http://HOST:PORT or https://HOST:PORT"
        ) from error


def address(url: str, scheme: str, place: str) -> Address:
    """Host and port of `SCHEME://HOST:PORT`.

    Raises:
        InputError: The text has another form.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _HTTP_PORTS.get(scheme, 0)
        usable = (
            parts.scheme == scheme
            and bool(parts.hostname)
            and port > 0
            and parts.path in ("", "/")
            and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:
        usable, port, parts = False, 0, None
    if not usable or parts is None:
        raise InputError(f"{place}: got {shown(url)}, expected {scheme}://HOST:PORT")
    return Address(cast(str, parts.hostname), port, scheme)


def authority(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 address."""
    return f"{authority_host(host)}:{port}"


def authority_host(host: str) -> str:
    """A host as it stands in an authority, with brackets around an IPv6 address."""
    return f"[{host}]" if ":" in host else host


def parse_worker(text: str) -> WorkerSpec:
    """The worker that `URL,key=value,…` names, as `--worker` takes it.

    Raises:
        InputError: The text has another form, or a key does not exist.
    """
    place = f"worker {shown(text)}"
    url, values = _pairs(text, place)
    if "url" in values:
        raise InputError(f"{place}: got the key 'url', expected the address as the first part")
    values["url"] = url
    try:
        spec = msgspec.convert(values, WorkerSpec, strict=False)
    except msgspec.ValidationError:
        # The strict error texts name the key, the value and the type.
        spec = cast(WorkerSpec, convert(_typed(values), WorkerSpec, place))
    _check_worker(spec, place)
    return spec


def parse_selector(kind: str, text: str) -> KubernetesSpec:
    """The selector that `[NAMESPACE/]NAME,key=value,…` names, as the flags of a cluster take it.

    Args:
        kind: `inference_pool` or `service`.
        text: The text.

    Raises:
        InputError: The text has another form, or a key does not exist.
    """
    place = f"{kind} {shown(text)}"
    name, values = _pairs(text, place)
    values[kind] = name
    spec = cast(KubernetesSpec, convert(_typed(values), KubernetesSpec, place))
    spec.check(place)
    _check_split(spec, place)
    return spec


def read_fleet(file: Path) -> FleetSpec:
    """The fleet in a YAML file.

    Raises:
        InputError: The file cannot be read, or has another form; the text names the key.
    """
    content = read_yaml(file)
    fleet = cast(FleetSpec, convert({} if content is None else content, FleetSpec, str(file)))
    check_fleet(fleet, str(file))
    return fleet


def check_fleet(fleet: FleetSpec, place: str) -> None:
    """Refuse a fleet that cannot be followed.

    Raises:
        InputError: An address is wrong, or a worker or model is there twice.
    """
    if len(fleet.workers) > MAX_WORKERS:
        raise InputError(
            f"{place}: workers: got {len(fleet.workers)}, expected at most {MAX_WORKERS}"
        )
    for number, worker in enumerate(fleet.workers):
        _check_worker(worker, f"{place}: workers[{number}]")
    for number, selector in enumerate(fleet.kubernetes):
        selector.check(f"{place}: kubernetes[{number}]")
        _check_split(selector, f"{place}: kubernetes[{number}]")
    if len(set(fleet.kubernetes)) < len(fleet.kubernetes):
        raise InputError(f"{place}: kubernetes: got a selector twice; name it once")
    for what, names in (
        ("worker", [worker.url.rstrip("/") for worker in fleet.workers]),
        ("model", [model.name for model in fleet.models]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{place}: got the {what} {shown(twice[0])} twice; name it once")


def _check_worker(worker: WorkerSpec, place: str) -> None:
    http_address(worker.url, f"{place}: url")
    for name in ("events", "replay"):
        endpoint = getattr(worker, name)
        if endpoint is None:
            continue
        last = address(endpoint, "tcp", f"{place}: {name}").port + worker.ranks - 1
        if last > 65_535:
            raise InputError(
                f"{place}: {name}: got {shown(endpoint)} with {worker.ranks} ranks, but the port "
                f"of the last rank would be {last}"
            )
    _check_split(worker, place)
    if worker.bootstrap_host and (worker.connector, worker.role) != ("sglang", "prefill"):
        raise InputError(
            f"{place}: bootstrap_host: got {shown(worker.bootstrap_host)}, expected it with "
            "connector=sglang and role=prefill alone"
        )
    if worker.bootstrap_host and worker.dns:
        raise InputError(
            f"{place}: bootstrap_host: got {shown(worker.bootstrap_host)} with dns=true, but each "
            "server behind the name has a bootstrap server of its own; leave bootstrap_host out"
        )
    if worker.replay and not worker.events:
        raise InputError(
            f"{place}: replay: got a replay socket without events; add events=tcp://HOST:PORT"
        )


def _check_split(worker: WorkerSpec | KubernetesSpec, place: str) -> None:
    if worker.connector and worker.role == "aggregated":
        raise InputError(
            f"{place}: connector: got {shown(worker.connector)} for a worker of whole requests; "
            "add role=prefill or role=decode"
        )
    if worker.bootstrap_port and (worker.connector, worker.role) != ("sglang", "prefill"):
        raise InputError(
            f"{place}: bootstrap_port: got {worker.bootstrap_port}, expected it with "
            "connector=sglang and role=prefill alone"
        )


def _pairs(text: str, place: str) -> tuple[str, dict[str, Any]]:
    """The first part of `FIRST,key=value,…`, and the values.

    Raises:
        InputError: A part is no `key=value`, or a key is there twice.
    """
    first, *pairs = text.split(",")
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.strip().partition("=")
        if not equals or key in values:
            raise InputError(f"{place}: got {shown(pair)}, expected each key once, as key=value")
        values[key] = value
    return first.strip(), values


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """Texts of numbers and switches as values, for the error texts of a strict reader."""
    typed: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, str) and value.isdecimal():
            typed[key] = int(value)
        else:
            typed[key] = {"true": True, "false": False}.get(value, value)
    return typed
