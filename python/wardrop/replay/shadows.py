"""Shadow fleets: what other policies would have made of the traffic that is coming in now.

    shadows = Shadows(fleet, {"runs": "toll", "sticky": "sticky"})
    shadows.push(request_id, now_s, tokens, sequence_hashes)     # at every arrival
    shadows.outcome(request_id, ttft_s=0.21, output_tokens=180)  # as it becomes known
    shadows.advance(now_s)                                       # a few times a second
    shadows.report()["arms"][1]["ttft_ratio"]                    # {"value", "low", "high", "p"}

How it works, and what bounds it: `rust/core/src/twin/mod.rs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wardrop._core import Twin
from wardrop.replay.fleet import Fleet
from wardrop.replay.run import Policy
from wardrop.replay.timing import Timing
from wardrop.replay.workload import ReplayError


class Shadows:
    """One persistent simulated fleet per policy, all fed the same live requests.

    Args:
        fleet: the fleet as it is; its timing is what the shadows run at.
        arms: name → policy. The first is what production runs, the others are told relative to it.
        seed: of ties.
        bounds: fields of the core's `TwinConfig`: `tick_s`, `window_ticks`, `batch_ticks`,
            `warm_ticks`, `settle_s`, `lag_s`, `cpu_share`, `clock_bound`, `clock_least`,
            `min_gain`, `max_open`, `max_waiting`, `max_waiting_blocks`, `ttft_slo_s`, `itl_slo_s`.

    Raises:
        ReplayError: the fleet has faults, samples or a closed loop.
        ValueError: a field is unknown or out of range, or a policy is not known.
    """

    def __init__(
        self,
        fleet: Fleet,
        arms: Mapping[str, Policy | str],
        *,
        seed: int = 0,
        **bounds: float,
    ) -> None:
        if fleet.faults or fleet.sample_ms or fleet.concurrency:
            raise ReplayError("shadows follow live traffic: no faults, samples or closed loop")
        rows: list[dict[str, Any]] = []
        for name, given in arms.items():
            policy = Policy.parse(given) if isinstance(given, str) else given
            rows.append({"name": name, "routers": json.loads(policy.routers(fleet, seed))})
        config = {"fleet": json.loads(fleet.to_json(seed)), "arms": rows, **bounds}
        self._native = Twin(json.dumps(config))

    def push(
        self, request_id: int, at_s: float, input_tokens: int, sequence_hashes: Sequence[int]
    ) -> None:
        """A request came.

        Args:
            request_id: for `outcome`.
            at_s: when, on the caller's monotonic clock.
            input_tokens: of its prompt.
            sequence_hashes: one per whole block of its prompt.
        """
        self._native.push(request_id, at_s, input_tokens, list(sequence_hashes))

    def outcome(
        self, request_id: int, *, ttft_s: float | None = None, output_tokens: int | None = None
    ) -> None:
        """What was measured of a request, at its first token or its end."""
        self._native.outcome(request_id, ttft_s=ttft_s, output_tokens=output_tokens)

    def advance(self, now_s: float) -> int:
        """Simulate what is due, within the share of a core; how many requests were started."""
        return self._native.advance(now_s)

    def set_timing(self, timing: Timing, pool: int = 0) -> None:
        """Run a pool's engines at another timing from now on."""
        self._native.set_timing(pool, json.dumps(timing))

    def report(self) -> dict[str, Any]:
        """Per arm figures and ratios with intervals, and whether to trust them."""
        report: dict[str, Any] = json.loads(self._native.report())
        return report

    def suggest(self, figure: str = "ttft") -> str | None:
        """The arm to run instead of the first: trusted, significant, and above `min_gain`."""
        return self._native.suggest(figure)
