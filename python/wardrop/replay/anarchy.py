"""What routing lost in a run, from the meters that the simulated routers carry.

`docs/explanation/control.md` explains the figures. Costs are seconds of the latency curves that the
router had learned by each decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

POA_WINDOW = 64
"""Decisions per window where nothing else is asked for, as in the gateway."""

Report = dict[str, float]


def read_reports(raw: Sequence[Any]) -> tuple[Report | None, ...]:
    """The simulator's reports as plain numbers, one per pool."""
    return tuple(
        None if one is None else {name: float(value) for name, value in one.items()} for one in raw
    )


def combined(pools: Sequence[Report | None]) -> Report:
    """The figures of a run over all its pools.

    Seconds of different pools add up, so ratios are ratios of sums. The interval of a split is the
    pools' own ones weighted by their optimum: as wide as if both erred together.

    Returns:
        `poa` with `poa_low` and `poa_high`, `poa_paper` and `poa_square` (weighted alike),
        `regret_mean_s` (sum over the legs of a request), and as shares of the actual social cost
        `poa_cache`, `poa_load` (what another placement would have saved) and `poa_split` (what
        none could); `model_error` of predicted first tokens. Empty when nothing was measured.
    """
    kept = [pool for pool in pools if pool is not None]
    if not kept:
        return {}
    optimum = [pool["free_s"] + pool["split_s"] for pool in kept]
    best = sum(optimum)
    actual = best + sum(pool["cache_s"] + pool["load_s"] for pool in kept)
    figures: Report = {"poa": max(actual / best, 1.0) if best > 0 else 1.0}
    for name in ("poa_low", "poa_high", "poa_paper", "poa_square"):
        weighted = sum(pool[name] * weight for pool, weight in zip(kept, optimum, strict=True))
        figures[name] = weighted / best if best > 0 else 1.0
    figures["regret_mean_s"] = sum(pool["regret_mean_s"] for pool in kept)
    for name in ("cache", "load", "split"):
        lost = sum(pool[f"{name}_s"] for pool in kept)
        figures[f"poa_{name}"] = lost / actual if actual > 0 else 0.0
    samples = sum(pool["model_samples"] for pool in kept)
    error = sum(pool["model_error"] * pool["model_samples"] for pool in kept)
    figures["model_error"] = error / samples if samples else float("nan")
    return figures
