"""Settings around the router: control, shadows, decision records, the saved index, and logs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wardrop import shadow_policies
from wardrop.config.fields import (
    ConfigError,
    require_address,
    require_within,
    setting,
)

CONTROLLER_MOVES = ("kappa", "room", "objective", "admission")
"""Names of `wardrop.control.moves.MOVES`, repeated here because that module imports numpy."""


@dataclass(frozen=True)
class Control:
    """Watching and changing a running router. The page on control explains the controller."""

    admin_port: int = setting(
        8010, "port of the admin API on 127.0.0.1; 0: a free one, -1: no admin API", "admin-port"
    )
    audit_file: str = setting(
        "", "JSON lines of every change; by default in memory only", "audit-file"
    )
    curves_file: str = setting(
        "", "learned latency curves: read at start, written each minute and at stop", "curves-file"
    )
    timing_table: str = setting(
        "", "timing table (.npz) for the first curves where no curves are saved", "timing-table"
    )
    controller: bool = setting(
        False, "let the controller change settings within its guards", "controller"
    )
    moves: tuple[str, ...] = setting(
        ("kappa", "room"),
        f"settings that the controller may change: {', '.join(CONTROLLER_MOVES)}",
        "controller-moves",
    )
    period_ms: int = setting(250, "time between two samples of the controller")
    receipts: int = setting(
        1_000,
        "recent decisions whose receipt GET /v1/receipts/ID returns; 0 keeps none, and neither "
        "does a router without an admin port",
        "receipts",
    )
    bound_window_s: float = setting(
        60.0,
        "length of a window of the price of anarchy against the lower bound, in seconds; 0 turns "
        "this figure off",
    )
    prometheus: str = setting(
        "",
        "metrics page to read when the router's own samples fail, http://HOST:PORT/metrics",
        "controller-prometheus",
    )

    def __post_init__(self) -> None:
        require_within("control.admin_port", self.admin_port, -1, 65535)
        require_within("control.period_ms", self.period_ms, 50, 10_000)
        require_within("control.receipts", self.receipts, 0, 65_536)
        if self.bound_window_s:
            require_within("control.bound_window_s", self.bound_window_s, 1, 3600)
        unknown = [name for name in self.moves if name not in CONTROLLER_MOVES]
        if unknown:
            raise ConfigError(
                f"control.moves: got {', '.join(unknown)}, "
                f"expected some of {', '.join(CONTROLLER_MOVES)}"
            )
        if self.prometheus:
            require_address("control.prometheus", self.prometheus)


@dataclass(frozen=True)
class Shadows:
    """Simulated fleets under other policies, fed with live traffic."""

    policies: str = setting(
        "", "policies to simulate, such as 'dynamo;toll(e2e=1)+queue(kappa=30)'", "shadows"
    )
    calibrate: bool = setting(
        False, "adopt an objective or kappa that the shadows prove better", "shadows-calibrate"
    )
    limits: bool = setting(
        False, "simulate what relaxing each limit of the fleet would save", "shadows-limits"
    )
    cpu_share: float = setting(0.05, "share of one core that all shadows together may use")
    tick_s: float = setting(
        5.0, "length of a group of requests in a comparison; 20 groups make an estimate"
    )
    lag_s: float = setting(20.0, "delay of the shadows, so that output lengths are known")
    ttft_slo_s: float = setting(0.0, "goodput: limit of the time to first token; 0: no limit")
    itl_slo_s: float = setting(0.0, "goodput: limit of the time between tokens; 0: no limit")
    max_blocks: int = setting(
        1 << 23, "KV blocks of all simulated workers, which bounds the memory"
    )

    def __post_init__(self) -> None:
        try:
            shadow_policies.parse(self.policies)
        except ValueError as error:
            raise ConfigError(f"shadows.policies: {error}") from error
        if self.calibrate and not self.policies:
            raise ConfigError(
                "shadows.calibrate: got true without shadows; add policies to simulate, for "
                "example --shadows 'toll(e2e=1)'"
            )
        require_within("shadows.cpu_share", self.cpu_share, 1e-4, 1)
        require_within("shadows.tick_s", self.tick_s, 0.1, 600)
        require_within("shadows.lag_s", self.lag_s, 0, 3600)
        require_within("shadows.ttft_slo_s", self.ttft_slo_s, 0, 3600)
        require_within("shadows.itl_slo_s", self.itl_slo_s, 0, 60)
        require_within("shadows.max_blocks", self.max_blocks, 1, 2**40)

    def gateway(self) -> dict[str, Any] | None:
        """The stage as the native gateway reads it; None without shadows."""
        if not self.policies and not self.limits:
            return None
        values = {name: value for name, value in asdict(self).items() if name != "calibrate"}
        policies = shadow_policies.parse(self.policies) if self.policies else []
        return values | {"policies": policies}


@dataclass(frozen=True)
class Records:
    """Decision records: one JSON line per request, for replay."""

    dir: str = setting(
        "", "folder of the records, which wardrop replay and advise read; empty: none", "records"
    )
    file_bytes: int = setting(64 << 20, "size at which the next file begins")
    all_bytes: int = setting(1 << 30, "size of all files; the oldest are removed beyond it")
    key_file: str = setting(
        "",
        "file with 32 hexadecimal digits, the key of the block ids; empty: a new key at each start",
    )

    def __post_init__(self) -> None:
        require_within("records.file_bytes", self.file_bytes, 4096, 2**49)
        require_within("records.all_bytes", self.all_bytes, 2 * self.file_bytes, 2**50)
        if self.key_file and not self.dir:
            raise ConfigError("records.key_file: got a key without records; add --records DIR")

    def native(self) -> dict[str, Any] | None:
        """The stage as the native doors read it; None without records."""
        if not self.dir:
            return None
        return asdict(self) | {"key_file": self.key_file or None}


@dataclass(frozen=True)
class IndexFile:
    """The prefix index in a file, which keeps it over a restart of the router."""

    file: str = setting(
        "", "file of the prefix index: read at start, written periodically", "index-file"
    )
    interval_s: float = setting(60.0, "time between two writes of the file")
    max_bytes: int = setting(1 << 30, "largest index that is saved, largest file that is read")
    max_age_s: float = setting(3600.0, "age above which a file is not used")

    def __post_init__(self) -> None:
        require_within("index.interval_s", self.interval_s, 0.1, 86_400)
        require_within("index.max_bytes", self.max_bytes, 1024, 2**40)
        require_within("index.max_age_s", self.max_age_s, 1, 1e9)


@dataclass(frozen=True)
class Log:
    """The log on standard error."""

    level: str = setting("info", "error, warning, info or debug", "log-level")

    def __post_init__(self) -> None:
        if self.level not in ("error", "warning", "info", "debug"):
            raise ConfigError(
                f"log.level: got {self.level!r}, expected error, warning, info or debug"
            )
