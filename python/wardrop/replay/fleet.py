"""The simulated fleet: engines, pools, links, feeds and faults, as frozen dataclasses."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wardrop.timing import POLYNOMIAL, SimulatedTiming


@dataclass(frozen=True)
class Tier:
    """One tier of memory below the device.

    Attributes:
        num_blocks: capacity in KV blocks.
        read_bytes_per_s: bandwidth to the device, bytes per second.
        latency_ms: time to the first byte, ms.
        promote_at: uses that a block needs to enter the tier (KVBM: 2).
    """

    num_blocks: int
    read_bytes_per_s: float
    latency_ms: float = 0.0
    promote_at: int = 1


@dataclass(frozen=True)
class Engine:
    """The engine of a worker; the defaults are those of Dynamo's mock workers.

    `EngineSpec` of the simulator crate describes every field.
    """

    block_size: int = 64
    num_blocks: int = 16_384
    curve_blocks: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8_192
    chunked_prefill: bool = True
    prefix_caching: bool = True
    watermark: float = 0.0
    preemption: str = "lifo"
    eviction: str = "lru"
    frequency_epoch_ms: float = 10_000.0
    timing: SimulatedTiming = field(default_factory=lambda: POLYNOMIAL, repr=False)
    kv_bytes_per_token: float = 131_072.0
    prefill_answers: bool = False
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True)
class Transfer:
    """The links that carry KV blocks between prefill and decode workers.

    Attributes:
        bandwidth_bytes_per_s: bandwidth of a worker's link, bytes per second.
        latency_ms: time to the first byte, ms.
        contention: whether a worker's link carries one transfer at a time, per direction.
    """

    bandwidth_bytes_per_s: float = 64e9
    latency_ms: float = 0.0
    contention: bool = True


@dataclass(frozen=True)
class Fault:
    """A fault of one worker.

    Attributes:
        at_ms: time of the fault, ms.
        worker: index over the fleet, prefill workers first.
        what: `crash` (value: ms until discovery drops the worker), `hang` (value: ms), `speed`
            (value: factor from then on) or `join`. A worker whose first fault is `join` is absent
            before it.
        value: see `what`.
    """

    at_ms: float
    worker: int
    what: str
    value: float = 0.0

    def to_native(self) -> dict[str, Any]:
        """The form that the simulator reads."""
        names = {"crash": "detect_ms", "hang": "for_ms", "speed": "factor"}
        row: dict[str, Any] = {"at_ms": self.at_ms, "worker": self.worker, "what": self.what}
        if self.what in names:
            row[names[self.what]] = self.value
        return row


@dataclass(frozen=True)
class Fleet:
    """A fleet of aggregated workers, or of prefill and decode workers.

    Attributes:
        workers: aggregated workers; 0 in a split fleet.
        prefill: prefill workers.
        decode: decode workers.
        engine: every worker's engine.
        decode_engine: the decode workers' engine; None for the same engine.
        speeds: speed factor of each worker, prefill workers first; empty for 1 everywhere.
        transfer: links of a split fleet.
        feed_delay_ms: age of a KV event when it reaches the router, ms.
        feed_loss: share of KV events that are lost.
        metrics: whether workers report every iteration (forward-pass metrics) and the router learns
            its latency curves from the reports.
        metrics_delay_ms: age of a report when it reaches the router, ms.
        metrics_loss: share of reports that are lost.
        shared_cache: whether every worker finds every block that any worker has computed, at no
            cost; a relaxed world, for `wardrop.replay.limits`.
        faults: faults of workers.
        retry_ms: pause before a request whose worker died is routed again, ms.
        sample_ms: time between samples of the workers' state, ms; 0 takes no samples.
        rate: load factor; every gap between arrivals is divided by it.
        concurrency: requests in flight (closed loop), or None for the workload's own arrivals.
        anarchy_window: decisions per window of the price of anarchy (`Result.anarchy`); 0: none.
    """

    workers: int = 8
    prefill: int = 0
    decode: int = 0
    engine: Engine = field(default_factory=Engine)
    decode_engine: Engine | None = None
    speeds: tuple[float, ...] = ()
    transfer: Transfer = field(default_factory=Transfer)
    feed_delay_ms: float = 0.0
    feed_loss: float = 0.0
    metrics: bool = False
    metrics_delay_ms: float = 0.0
    metrics_loss: float = 0.0
    shared_cache: bool = False
    faults: tuple[Fault, ...] = ()
    retry_ms: float = 100.0
    sample_ms: float = 0.0
    rate: float = 1.0
    concurrency: int | None = None
    anarchy_window: int = 0

    @classmethod
    def split(cls, prefill: int, decode: int, **fields: Any) -> Fleet:
        """A fleet of `prefill` prefill workers and `decode` decode workers."""
        return cls(workers=0, prefill=prefill, decode=decode, **fields)

    @property
    def size(self) -> int:
        """Number of workers."""
        return self.workers or self.prefill + self.decode

    @property
    def is_split(self) -> bool:
        """Whether prefill and decode run on different workers."""
        return not self.workers

    def with_load(self, *, rate: float = 1.0, concurrency: int | None = None) -> Fleet:
        """The same fleet under another load; see the attributes `rate` and `concurrency`."""
        return replace(self, rate=rate, concurrency=concurrency)

    def to_json(self, seed: int) -> str:
        """The form that the simulator reads."""
        speeds = list(self.speeds) or [1.0] * self.size
        pools = (
            [
                ("prefill", self.prefill, self.engine),
                ("decode", self.decode, self.decode_engine or self.engine),
            ]
            if self.is_split
            else [("aggregated", self.workers, self.engine)]
        )
        rows: list[dict[str, Any]] = []
        for role, count, engine in pools:
            rows.append({"role": role, "speeds": speeds[:count], "engine": asdict(engine)})
            speeds = speeds[count:]
        if speeds:
            rows[-1]["speeds"].extend(speeds)
        return json.dumps(
            {
                "pools": rows,
                "transfer": asdict(self.transfer),
                "feed": {
                    "delay_ms": self.feed_delay_ms,
                    "loss": self.feed_loss,
                    "metrics": self.metrics,
                    "metrics_delay_ms": self.metrics_delay_ms,
                    "metrics_loss": self.metrics_loss,
                },
                "shared_cache": self.shared_cache,
                "faults": [fault.to_native() for fault in self.faults],
                "retry_ms": self.retry_ms,
                "sample_ms": self.sample_ms,
                "rate": self.rate,
                "concurrency": self.concurrency,
                "anarchy_window": self.anarchy_window,
                "seed": seed,
            }
        )
