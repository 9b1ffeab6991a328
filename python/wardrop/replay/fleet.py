"""What is simulated: engines, pools, links, feeds and faults, as plain frozen dataclasses."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wardrop.timing import POLYNOMIAL, SimulatedTiming


@dataclass(frozen=True)
class Tier:
    """Memory below the device.

    Attributes:
        num_blocks: KV blocks it holds.
        read_bytes_per_s: bandwidth back to the device.
        latency_ms: time to the first byte.
        promote_at: uses that a block must have had to be kept here (KVBM: 2).
    """

    num_blocks: int
    read_bytes_per_s: float
    latency_ms: float = 0.0
    promote_at: int = 1


@dataclass(frozen=True)
class Engine:
    """One engine.

    the defaults are Dynamo's mocker's. See `EngineSpec` in `rust/core/src/sim/config.rs`.
    """

    block_size: int = 64
    num_blocks: int = 16_384
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
    """KV between prefill and decode workers.

    each worker's link in and out carries one transfer at a time.
    """

    bandwidth_bytes_per_s: float = 64e9
    latency_ms: float = 0.0
    contention: bool = True


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at `at_ms`.

    Attributes:
        at_ms: when.
        worker: index over the fleet, prefill workers first.
        what: `crash` (value: ms until discovery drops it), `hang` (value: ms), `speed` (value:
            factor from now on) or `join` (a worker whose first fault this is was absent until
            then).
        value: see `what`.
    """

    at_ms: float
    worker: int
    what: str
    value: float = 0.0

    def to_native(self) -> dict[str, Any]:
        """The simulator's form."""
        names = {"crash": "detect_ms", "hang": "for_ms", "speed": "factor"}
        row: dict[str, Any] = {"at_ms": self.at_ms, "worker": self.worker, "what": self.what}
        if self.what in names:
            row[names[self.what]] = self.value
        return row


@dataclass(frozen=True)
class Fleet:
    """A fleet of `workers` aggregated workers, or of `prefill` and `decode` ones.

    Attributes:
        workers: aggregated workers; 0 in a split fleet.
        prefill: prefill workers.
        decode: decode workers.
        engine: every worker's engine.
        decode_engine: the decode workers' engine, if it differs.
        speeds: one factor per worker, prefill first; all 1 when empty.
        transfer: KV movement in a split fleet.
        feed_delay_ms: age of a KV event when the router hears it.
        feed_loss: share of KV events that are lost.
        metrics: workers report every iteration (forward-pass metrics), and the router learns.
        metrics_delay_ms: age of such a report when the router hears it.
        metrics_loss: share of them that are lost.
        faults: what goes wrong.
        retry_ms: until a request whose worker died is tried again.
        sample_ms: between samples of the workers' state; 0 takes none.
        rate: load; every gap of the workload is divided by it.
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
    faults: tuple[Fault, ...] = ()
    retry_ms: float = 100.0
    sample_ms: float = 0.0
    rate: float = 1.0
    concurrency: int | None = None
    anarchy_window: int = 0

    @classmethod
    def split(cls, prefill: int, decode: int, **fields: Any) -> Fleet:
        """A prefill/decode split."""
        return cls(workers=0, prefill=prefill, decode=decode, **fields)

    @property
    def size(self) -> int:
        """All workers."""
        return self.workers or self.prefill + self.decode

    @property
    def is_split(self) -> bool:
        """Whether prefill and decode are apart."""
        return not self.workers

    def with_load(self, *, rate: float = 1.0, concurrency: int | None = None) -> Fleet:
        """The same fleet under another load."""
        return replace(self, rate=rate, concurrency=concurrency)

    def to_json(self, seed: int) -> str:
        """The simulator's form."""
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
                "faults": [fault.to_native() for fault in self.faults],
                "retry_ms": self.retry_ms,
                "sample_ms": self.sample_ms,
                "rate": self.rate,
                "concurrency": self.concurrency,
                "anarchy_window": self.anarchy_window,
                "seed": seed,
            }
        )
