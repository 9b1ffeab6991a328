"""The loss of a run's decisions, each judged in the state that it met.

The figures compare the chosen worker with the best assignment of a window of decisions, with caches
and backlogs as the router itself left them. They do not rank routers: `wardrop.replay.bound` does.
docs/how-to/read-the-price-of-anarchy.md explains the figures. Costs are seconds by the latency
curves that the router has learned by each decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

POA_WINDOW = 64
"""Default number of decisions per window, as in the gateway."""

Report = dict[str, float]

_WEIGHTED = {
    "decision_loss_low": "poa_low",
    "decision_loss_high": "poa_high",
    "poa_paper": "poa_paper",
    "poa_square": "poa_square",
}
"""Figures of a run that are means over its pools, each with the pool's name of it."""


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
        Figures by name, empty where nothing was measured. `decision_loss` has the bounds
        `decision_loss_low` and `decision_loss_high`. The paper's estimator `poa_paper` and its
        square form `poa_square` are weighted alike. `regret_mean_s` is the sum over the legs of a
        request. Three shares of the social cost that the decisions caused follow. `decision_cache`
        and `decision_load` are what another placement in the same state would have saved.
        `decision_split` is what no placement in that state could save. `model_error` is that of
        predicted first tokens.
    """
    kept = [pool for pool in pools if pool is not None]
    if not kept:
        return {}
    optimum = [pool["free_s"] + pool["split_s"] for pool in kept]
    best = sum(optimum)
    actual = best + sum(pool["cache_s"] + pool["load_s"] for pool in kept)
    figures: Report = {"decision_loss": max(actual / best, 1.0) if best > 0 else 1.0}
    for name, of_pool in _WEIGHTED.items():
        weighted = sum(pool[of_pool] * weight for pool, weight in zip(kept, optimum, strict=True))
        figures[name] = weighted / best if best > 0 else 1.0
    figures["regret_mean_s"] = sum(pool["regret_mean_s"] for pool in kept)
    for name in ("cache", "load", "split"):
        lost = sum(pool[f"{name}_s"] for pool in kept)
        figures[f"decision_{name}"] = lost / actual if actual > 0 else 0.0
    samples = sum(pool["model_samples"] for pool in kept)
    error = sum(pool["model_error"] * pool["model_samples"] for pool in kept)
    figures["model_error"] = error / samples if samples else float("nan")
    return figures
