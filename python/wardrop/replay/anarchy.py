"""The price of anarchy of a run, from the estimates that the simulated routers make.

docs/how-to/read-the-price-of-anarchy.md explains the figures. Costs are seconds by the latency
curves that the router has learned by each decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

POA_WINDOW = 64
"""Default number of decisions per window, as in the gateway."""

Report = dict[str, float]


def read_reports(raw: Sequence[Any]) -> tuple[Report | None, ...]:
    """The estimates of the simulator as plain numbers, one per pool; None without a measurement."""
    return tuple(
        None if one is None else {name: float(value) for name, value in one.items()} for one in raw
    )


def combined(pools: Sequence[Report | None]) -> Report:
    """The figures of a run over all its pools.

    Seconds of different pools add up, so ratios are ratios of sums. The interval of a split fleet
    is the mean of the pools' intervals, weighted by their optimum. It is as wide as if both pools
    erred together.

    Returns:
        Figures by name, empty where nothing was measured. `poa` has the bounds `poa_low` and
        `poa_high`. `poa_paper` and `poa_square` are weighted alike. `regret_mean_s` is the sum over
        the legs of a request. Three shares of the actual social cost follow. `poa_cache` and
        `poa_load` are what another placement would have saved. `poa_split` is what no placement
        could save. `model_error` is that of predicted first tokens.
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
