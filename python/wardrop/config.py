"""Configuration: one frozen dataclass per stage, checked when it is built, swapped whole.

Sources, strongest first: flags, `WARDROP_*` variables, a strict YAML file, the defaults here. Every
setting has all four: `limits.body_bytes` is `--limits-body-bytes`, `WARDROP_LIMITS_BODY_BYTES` and
`limits: {body_bytes: …}`; a few have a shorter flag (and variable), given as `flag` below. A key
that does not exist is refused with the nearest one that does.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import yaml

from wardrop import shadow_policies

FrontendMode = Literal["kv", "direct", "round-robin"]
Discovery = Literal["auto", "file", "etcd", "frontend"]
PredictedUse = Literal["off", "alone", "beside"]
CONTROLLER_MOVES = ("kappa", "room", "objective", "admission")
"""Names of `wardrop.control.moves.MOVES`, which would bring numpy with it."""


_SWITCHES = ("fair", "share_passes")
_MOST_TENANTS = 1024
_LONGEST_TENANT = 128


class ConfigError(ValueError):
    """A setting can not be used: what was got, what is expected, and where it came from."""


def _setting(default: Any, says: str, flag: str | None = None) -> Any:
    metadata = {"says": says, "flag": flag}
    if isinstance(default, dict):
        return field(default_factory=dict[str, float], metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Http:
    """Where clients come in."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 serves other machines")
    port: int = _setting(8000, "port to listen on; 0 takes a free one")
    worker_threads: int = _setting(2, "threads that serve HTTP")
    router_id: str = _setting("wardrop-0", "label router_id of all metrics", "router-id")

    def __post_init__(self) -> None:
        _within("http.port", self.port, 0, 65535)
        _within("http.worker_threads", self.worker_threads, 1, 256)


@dataclass(frozen=True)
class Limits:
    """What a client can run into, each answered with its own status."""

    body_bytes: int = _setting(64 << 20, "largest request body (413 above)")
    header_bytes: int = _setting(64 << 10, "all header names and values together (431 above)")
    concurrent_requests: int = _setting(4096, "requests in flight (429 above)")
    connections: int = _setting(8192, "open client connections")
    read_timeout_ms: int = _setting(30_000, "time to send the whole body (408 after)")

    def __post_init__(self) -> None:
        _positive("limits", self)


@dataclass(frozen=True)
class Upstream:
    """How frontends are reached."""

    connect_timeout_ms: int = _setting(2_000, "time to connect before the next is tried")
    first_byte_timeout_ms: int = _setting(600_000, "time to the first byte (504 after)")
    idle_timeout_ms: int = _setting(120_000, "longest silence inside an answer")
    idle_connections: int = _setting(512, "idle connections kept per frontend and thread")
    idle_connection_ttl_ms: int = _setting(30_000, "age of an idle connection that is used again")
    retry_after_ms: int = _setting(1_000, "how long a frontend that refused is tried last")

    def __post_init__(self) -> None:
        _positive("upstream", self)


@dataclass(frozen=True)
class Routing:
    """How a worker is chosen."""

    policy: str = _setting("dynamo", "name of the policy", "policy")
    parameters: dict[str, float] = _setting(  # noqa: RUF009  (a field, as the others)
        {}, "parameters of the policy, name=number,…", "policy-parameters"
    )
    queue: bool = _setting(False, "let requests wait for room at their worker", "queue")
    queue_parameters: dict[str, float] = _setting(  # noqa: RUF009  (a field, as the others)
        {}, "parameters of the queue, name=number,… (kappa, backlog_s, …)", "queue-parameters"
    )
    queue_hints: bool = _setting(False, "take priority and deadline headers from clients")
    tenant_weights: dict[str, float] = _setting(  # noqa: RUF009  (a field, as the others)
        {}, "weights in a fair queue, tenant=number,…; others have 1", "tenant-weights"
    )
    handoff_s_per_token: float = _setting(
        0.0, "split: seconds to move the KV of a prompt token to a decode worker"
    )
    seed: int = _setting(0, "seed of the tie breaker", "seed")
    booking_ttl_s: float = _setting(900.0, "life of a booking whose request never ends")
    allow_client_pins: bool = _setting(False, "pass on worker pins of clients, else 400")
    explain_headers: bool = _setting(False, "add x-wardrop-worker and x-wardrop-overlap-blocks")

    def __post_init__(self) -> None:
        if not self.policy:
            raise ConfigError("routing.policy: got an empty name, expected one such as 'dynamo'")
        _within("routing.seed", self.seed, 0, 2**64 - 1)
        _within("routing.booking_ttl_s", self.booking_ttl_s, 1e-3, 1e9)
        _within("routing.handoff_s_per_token", self.handoff_s_per_token, 0, 1)
        _check_tenants(self.tenant_weights)
        if self.queue_parameters and not self.queue:
            raise ConfigError(
                f"routing.queue_parameters: got {', '.join(self.queue_parameters)} without a "
                "queue; add --queue true, or leave them out"
            )
        for name in _SWITCHES:
            if (value := self.queue_parameters.get(name, 0)) not in (0, 1):
                raise ConfigError(
                    f"routing.queue_parameters: {name}: got {value:g}, expected 0 (off) or 1 (on)"
                )
        if self.tenant_weights and not (self.queue and self.queue_parameters.get("fair")):
            raise ConfigError(
                "routing.tenant_weights: got some, but only a fair queue weighs tenants; "
                "add --queue true --queue-parameters fair=1"
            )


@dataclass(frozen=True)
class Predicted:
    """Caches predicted by where requests were sent; see docs/predicted.md."""

    used: PredictedUse = _setting(  # noqa: RUF009  (a field, as the others)
        "off", "off, alone (a fleet without KV events) or beside (until events arrive)", "predicted"
    )
    ttl_s: float = _setting(120.0, "life of a record after its request ended")
    settle_s: float = _setting(1.0, "beside: life of a record after its first token")
    capacity_blocks: int = _setting(1 << 16, "KV blocks of a worker that does not say how many")
    max_records: int = _setting(1_000_000, "records at most; the oldest goes first")

    def __post_init__(self) -> None:
        _within("predicted.ttl_s", self.ttl_s, 1e-3, 1e9)
        _within("predicted.settle_s", self.settle_s, 0, 1e9)
        _within("predicted.capacity_blocks", self.capacity_blocks, 1, 2**40)
        _within("predicted.max_records", self.max_records, 1, 2**32)


@dataclass(frozen=True)
class Prompt:
    """How prompts become tokens."""

    handover: bool = _setting(True, "hand token ids over where they proved equal to Dynamo's")
    inline_bytes: int = _setting(16 << 10, "longer prompts are tokenised off the serving threads")
    tokenise_timeout_ms: int = _setting(5_000, "wait for the tokeniser, then route without it")

    def __post_init__(self) -> None:
        _within("prompt.inline_bytes", self.inline_bytes, 0, 2**40)
        _within("prompt.tokenise_timeout_ms", self.tokenise_timeout_ms, 1, 2**31)


@dataclass(frozen=True)
class Feed:
    """How event feeds are read, and when silence is a fault."""

    frame_bytes: int = _setting(8 << 20, "largest frame that is read")
    silence_ms: int = _setting(3_500, "a worker silent for this long is not chosen")
    quarantine_ms: int = _setting(5_000, "a worker that failed is tried again after this")
    max_feeds: int = _setting(16_384, "feeds that may be open")

    def __post_init__(self) -> None:
        _positive("feed", self)


@dataclass(frozen=True)
class Dynamo:
    """The Dynamo behind us."""

    upstreams: tuple[str, ...] = _setting(
        (), "frontends that run already; none are started then", "upstream"
    )
    frontends: int = _setting(1, "dynamo.frontend children to start", "frontends")
    frontend_mode: FrontendMode = _setting(  # noqa: RUF009  (a field, as the others)
        "kv", "their --router-mode", "frontend-mode"
    )
    discovery: Discovery = _setting(  # noqa: RUF009  (a field, as the others)
        "auto", "auto takes DYN_DISCOVERY_BACKEND, else asks --upstream, else etcd", "discovery"
    )
    python: str = _setting("", "interpreter that has Dynamo; default our own")
    store: str = _setting("", "folder of the file store; default DYN_FILE_KV", "store")
    etcd_endpoints: tuple[str, ...] = _setting(
        (), "default ETCD_ENDPOINTS, else http://localhost:2379", "etcd-endpoints"
    )
    poll_interval_ms: int = _setting(200, "shortest time between two looks at discovery")
    event_endpoints: tuple[str, ...] = _setting(
        (), "TOPIC@tcp://HOST:PORT, with --discovery frontend", "event-endpoint"
    )
    block_size: int = _setting(16, "tokens per block, with --discovery frontend", "block-size")
    bootstrap: bool = _setting(True, "read the workers' present blocks at start", "bootstrap")
    resync_interval_s: float = _setting(10.0, "shortest time between two resyncs of a pool")
    restart_limit: int = _setting(10, "restarts of a frontend in ten minutes before we give up")
    ready_timeout_s: float = _setting(120.0, "time for the frontends to answer at start")
    drain_timeout_s: float = _setting(
        30.0, "time for requests in flight at stop", "drain-timeout-s"
    )

    def __post_init__(self) -> None:
        for url in (*self.upstreams, *self.etcd_endpoints):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError(f"dynamo: got address {url!r}, expected http://HOST:PORT")
        _within("dynamo.frontends", self.frontends, 1, 256)
        _within("dynamo.poll_interval_ms", self.poll_interval_ms, 10, 60_000)
        _within("dynamo.block_size", self.block_size, 1, 65_536)
        _within("dynamo.restart_limit", self.restart_limit, 0, 10_000)
        for name in ("resync_interval_s", "ready_timeout_s", "drain_timeout_s"):
            _within(f"dynamo.{name}", getattr(self, name), 0, 86_400)
        if self.discovery == "frontend" and not self.upstreams:
            raise ConfigError(
                "dynamo.discovery: got 'frontend' without upstreams, expected --upstream URL; for "
                "frontends of our own use 'file' or 'etcd'"
            )
        if self.event_endpoints and self.discovery not in ("auto", "frontend"):
            raise ConfigError(
                f"dynamo.event_endpoints: got some with discovery {self.discovery!r}, which knows "
                "them itself; leave them out"
            )


@dataclass(frozen=True)
class Control:
    """How a running router is watched and changed; see docs/control.md."""

    admin_port: int = _setting(
        8010, "port of the admin API on 127.0.0.1; 0 takes a free one, -1 none", "admin-port"
    )
    audit_file: str = _setting("", "JSON lines of every change; default: memory only", "audit-file")
    curves_file: str = _setting(
        "", "learned latency curves: read at start, written each minute and at stop", "curves-file"
    )
    timing_table: str = _setting(
        "", "timing table (.npz) that curves start from where none are saved", "timing-table"
    )
    controller: bool = _setting(False, "let the controller move settings, guarded", "controller")
    moves: tuple[str, ...] = _setting(
        ("kappa", "room"),
        f"what it may move: {', '.join(CONTROLLER_MOVES)}",
        "controller-moves",
    )
    period_ms: int = _setting(250, "time between two looks of the controller")
    receipts: int = _setting(
        0, "decisions whose receipt is kept, for GET /v1/receipts/ID; 0 keeps none", "receipts"
    )
    prometheus: str = _setting(
        "", "metrics page to fall back on, http://HOST:PORT/metrics", "controller-prometheus"
    )

    def __post_init__(self) -> None:
        _within("control.admin_port", self.admin_port, -1, 65535)
        _within("control.period_ms", self.period_ms, 50, 10_000)
        _within("control.receipts", self.receipts, 0, 65_536)
        if self.receipts and self.admin_port < 0:
            raise ConfigError(
                "control.receipts: got some with --admin-port -1, where nobody can read them; "
                "leave one of them out"
            )
        strange = [name for name in self.moves if name not in CONTROLLER_MOVES]
        if strange:
            raise ConfigError(
                f"control.moves: got {', '.join(strange)}, "
                f"expected some of {', '.join(CONTROLLER_MOVES)}"
            )
        if self.prometheus and urlsplit(self.prometheus).scheme not in ("http", "https"):
            raise ConfigError(
                f"control.prometheus: got {self.prometheus!r}, expected http://HOST:PORT/metrics"
            )


@dataclass(frozen=True)
class Shadows:
    """Other policies beside live traffic, in the simulator; see docs/control.md."""

    policies: str = _setting(
        "", "what runs in the shadows: 'dynamo;toll(e2e=1)+queue(kappa=30);…'; none: off", "shadows"
    )
    calibrate: bool = _setting(
        False, "adopt an objective or kappa that the shadows proved better", "shadows-calibrate"
    )
    cpu_share: float = _setting(0.05, "share of one core that they may take")
    tick_s: float = _setting(5.0, "requests are compared in groups of this time; 20 of them count")
    lag_s: float = _setting(20.0, "how far behind they run, to know most answers' lengths")
    ttft_slo_s: float = _setting(0.0, "goodput: limit of the time to first token; 0: none")
    itl_slo_s: float = _setting(0.0, "goodput: limit of the time between tokens; 0: none")
    max_blocks: int = _setting(1 << 23, "KV blocks of all workers and policies: their memory")

    def __post_init__(self) -> None:
        try:
            shadow_policies.parse(self.policies)
        except ValueError as error:
            raise ConfigError(f"shadows.policies: {error}") from error
        if self.calibrate and not self.policies:
            raise ConfigError(
                "shadows.calibrate: got true without shadows; give candidates too, for example "
                "--shadows 'toll(e2e=1)'"
            )
        _within("shadows.cpu_share", self.cpu_share, 1e-4, 1)
        _within("shadows.tick_s", self.tick_s, 0.1, 600)
        _within("shadows.lag_s", self.lag_s, 0, 3600)
        _within("shadows.ttft_slo_s", self.ttft_slo_s, 0, 3600)
        _within("shadows.itl_slo_s", self.itl_slo_s, 0, 60)
        _within("shadows.max_blocks", self.max_blocks, 1, 2**40)

    def gateway(self) -> dict[str, Any] | None:
        """The gateway's form; None without shadows."""
        if not self.policies:
            return None
        told = {name: value for name, value in asdict(self).items() if name != "calibrate"}
        return told | {"policies": shadow_policies.parse(self.policies)}


@dataclass(frozen=True)
class IndexFile:
    """The prefix index over restarts; see docs/core.md, Restarts."""

    file: str = _setting(
        "", "the prefix index: read at start, written now and then and at stop", "index-file"
    )
    interval_s: float = _setting(60.0, "time between two writes of the file")
    max_bytes: int = _setting(1 << 30, "a larger index is not saved, a larger file not read")
    max_age_s: float = _setting(3600.0, "an older file is not used")

    def __post_init__(self) -> None:
        _within("index.interval_s", self.interval_s, 0.1, 86_400)
        _within("index.max_bytes", self.max_bytes, 1024, 2**40)
        _within("index.max_age_s", self.max_age_s, 1, 1e9)


@dataclass(frozen=True)
class Log:
    """What is said on standard error."""

    level: str = _setting("info", "error, warning, info or debug", "log-level")

    def __post_init__(self) -> None:
        if self.level not in ("error", "warning", "info", "debug"):
            raise ConfigError(
                f"log.level: got {self.level!r}, expected error, warning, info or debug"
            )


@dataclass(frozen=True)
class Config:
    """All stages."""

    http: Http = field(default_factory=Http)
    limits: Limits = field(default_factory=Limits)
    upstream: Upstream = field(default_factory=Upstream)
    routing: Routing = field(default_factory=Routing)
    predicted: Predicted = field(default_factory=Predicted)
    prompt: Prompt = field(default_factory=Prompt)
    feed: Feed = field(default_factory=Feed)
    dynamo: Dynamo = field(default_factory=Dynamo)
    control: Control = field(default_factory=Control)
    shadows: Shadows = field(default_factory=Shadows)
    index: IndexFile = field(default_factory=IndexFile)
    log: Log = field(default_factory=Log)

    def gateway_json(
        self,
        upstreams: list[str],
        timing: Mapping[str, list[tuple[float, float, float]]] | None = None,
    ) -> str:
        """The gateway's own part, as `wardrop._core.Gateway` reads it.

        Args:
            upstreams: addresses of frontends.
            timing: points of a timing table that latency curves start from; see `service.prior`.
        """
        routing = asdict(self.routing)
        routing["policy"] = {"name": routing["policy"], **routing.pop("parameters")}
        queue = {
            name: bool(value) if name in _SWITCHES else int(value) if value == int(value) else value
            for name, value in routing.pop("queue_parameters").items()
        }
        routing["queue"] = queue if routing["queue"] else None
        routing["predicted"] = asdict(self.predicted)
        routing["receipts"] = self.control.receipts
        routing["timing"] = dict(timing or {})
        return json.dumps(
            {
                "listen": f"{self.http.host}:{self.http.port}",
                "upstreams": upstreams,
                "worker_threads": self.http.worker_threads,
                "router_id": self.http.router_id,
                "limits": asdict(self.limits),
                "upstream": asdict(self.upstream),
                "routing": routing,
                "prompt": asdict(self.prompt),
                "feed": asdict(self.feed),
                "shadows": self.shadows.gateway(),
                "log": "warn" if self.log.level == "warning" else self.log.level,
            }
        )


@dataclass(frozen=True)
class Setting:
    """One key with its names in every source."""

    stage: str
    name: str
    kind: object
    default: object
    says: str
    flag: str

    @property
    def key(self) -> str:
        """`stage.name`, as in YAML."""
        return f"{self.stage}.{self.name}"

    @property
    def variable(self) -> str:
        """Name in the environment."""
        return "WARDROP_" + self.flag.upper().replace("-", "_")

    @property
    def default_text(self) -> str:
        """The default as one would write it."""
        if isinstance(self.default, bool):
            return "true" if self.default else "false"
        if isinstance(self.default, tuple | dict):
            items = cast(Any, self.default)
            return ",".join(map(str, items)) if items else "none"
        return str(self.default) or "none"


def settings() -> Iterator[Setting]:
    """Every setting, in the order of the stages."""
    for stage in fields(Config):
        kind = cast(type[Any], get_type_hints(Config)[stage.name])
        hints = get_type_hints(kind)
        defaults = kind()
        for item in fields(kind):
            flag = item.metadata["flag"] or f"{stage.name}-{item.name}".replace("_", "-")
            default = getattr(defaults, item.name)
            yield Setting(
                stage.name, item.name, hints[item.name], default, item.metadata["says"], flag
            )


def load(
    flags: Mapping[str, str], environment: Mapping[str, str], file: Path | None = None
) -> Config:
    """Build the configuration from all sources.

    Args:
        flags: setting key (`stage.name`) → text of the flag.
        environment: the process environment; only `WARDROP_*` is read.
        file: strict YAML, or None.

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range.
    """
    known = {setting.key: setting for setting in settings()}
    values: dict[str, object] = {}
    if file is not None:
        values.update(_read_yaml(file, known))
    _refuse_misspelt_variables(environment, known)
    for setting in known.values():
        if setting.variable in environment:
            text = environment[setting.variable]
            values[setting.key] = _parse(setting, text, setting.variable)
        if setting.key in flags:
            values[setting.key] = _parse(setting, flags[setting.key], f"--{setting.flag}")
    stages: dict[str, Any] = {}
    hints = get_type_hints(Config)
    for stage in fields(Config):
        given = {
            key.partition(".")[2]: value
            for key, value in values.items()
            if key.startswith(f"{stage.name}.")
        }
        stages[stage.name] = hints[stage.name](**given)
    return Config(**stages)


def _read_yaml(file: Path, known: Mapping[str, Setting]) -> dict[str, object]:
    try:
        content: object = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: can not be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: got {type(content).__name__}, expected a mapping of stages")
    stages = sorted({setting.stage for setting in known.values()})
    values: dict[str, object] = {}
    for stage, items in cast(dict[object, object], content).items():
        if stage not in stages:
            raise ConfigError(_unknown(f"{file}: stage", str(stage), stages))
        if not isinstance(items, dict):
            raise ConfigError(f"{file}: {stage}: expected a mapping, got {type(items).__name__}")
        for name, value in cast(dict[object, object], items).items():
            setting = known.get(f"{stage}.{name}")
            if setting is None:
                names = [s.name for s in known.values() if s.stage == stage]
                raise ConfigError(_unknown(f"{file}: {stage}: key", str(name), names))
            values[setting.key] = _check(setting, value, f"{file}: {setting.key}")
    return values


def _refuse_misspelt_variables(
    environment: Mapping[str, str], known: Mapping[str, Setting]
) -> None:
    """Refuse `WARDROP_*` names that are nearly one of ours.

    Others pass: Kubernetes puts `WARDROP_SERVICE_HOST` and the like into every pod beside a service
    of our name.
    """
    ours = {setting.variable for setting in known.values()}
    for name in environment:
        if not name.startswith("WARDROP_") or name in ours or name in _OTHER_VARIABLES:
            continue
        if re.fullmatch(r"WARDROP_(SERVICE_(HOST|PORT)\w*|PORT(_\d+_\w+)?)", name):
            continue
        if get_close_matches(name, ours, 1, 0.85):
            raise ConfigError(_unknown("environment: variable", name, sorted(ours)))


_OTHER_VARIABLES = {"WARDROP_SHARED", "WARDROP_PRIVATE_NETWORK", "WARDROP_CONFIG"}


def _parse(setting: Setting, text: str, source: str) -> object:
    """The value of a text from a flag or a variable."""
    kind = setting.kind
    if kind is bool:
        lowered = text.strip().lower()
        if lowered not in ("true", "false", "1", "0", "yes", "no"):
            raise ConfigError(f"{source}: got {text!r}, expected true or false")
        return lowered in ("true", "1", "yes")
    if kind is int or kind is float:
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{source}: got {text!r}, expected {_expected(kind)}") from None
    if get_origin(kind) is tuple:
        return _check(setting, [part for part in re.split(r"[,\s]+", text) if part], source)
    if get_origin(kind) is dict:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        try:
            numbers = {name.strip(): float(value) for name, _, value in pairs}
            if not all(map(math.isfinite, numbers.values())):
                raise ValueError
            return numbers
        except ValueError:
            raise ConfigError(f"{source}: got {text!r}, expected name=number,…") from None
    return _check(setting, text, source)


def _check(setting: Setting, value: object, source: str) -> object:
    """The value itself when it has the setting's type; a whole number may stand for a float."""
    kind = setting.kind
    origin = get_origin(kind)
    if origin is Literal:
        allowed = get_args(kind)
        if value not in allowed:
            raise ConfigError(f"{source}: got {value!r}, expected one of {', '.join(allowed)}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple:
        items: Any = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(
            isinstance(item, str) for item in cast(list[object], items)
        ):
            return tuple(cast(list[str], items))
        raise ConfigError(f"{source}: got {value!r}, expected a list of texts")
    if origin is dict:
        entries = cast(dict[object, object], value) if isinstance(value, dict) else {None: None}
        for name, number in entries.items():
            numeric = isinstance(number, int | float) and not isinstance(number, bool)
            if not isinstance(name, str) or not numeric or not math.isfinite(cast(float, number)):
                raise ConfigError(f"{source}: got {value!r}, expected names with numbers")
        return entries
    plain = not isinstance(kind, types.UnionType) and origin is not Union
    if plain and (not isinstance(value, cast(type, kind)) or (kind is int and value is True)):
        raise ConfigError(f"{source}: got {value!r}, expected {_expected(kind)}")
    return value


def _expected(kind: object) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(cast(type, kind), str(kind))


def _unknown(where: str, got: str, known: list[str]) -> str:
    near = get_close_matches(got, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    return f"{where} {got!r} is not known{hint}"


def _check_tenants(weights: Mapping[str, float]) -> None:
    if len(weights) > _MOST_TENANTS:
        raise ConfigError(
            f"routing.tenant_weights: got {len(weights)} tenants, expected at most {_MOST_TENANTS}"
        )
    for tenant, weight in weights.items():
        if not tenant or len(tenant) > _LONGEST_TENANT:
            raise ConfigError(
                f"routing.tenant_weights: got the tenant {tenant[:40]!r}, expected a name of 1 to "
                f"{_LONGEST_TENANT} characters, as in the header x-tenant-id"
            )
        _within(f"routing.tenant_weights: {tenant}", weight, 1e-3, 1e3)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also catches NaN
        raise ConfigError(f"{name}: got {value!r}, expected {low:g} to {high:g}")


def _positive(stage: str, values: Any) -> None:
    for item in fields(values):
        _within(f"{stage}.{item.name}", getattr(values, item.name), 1, 2**40)
