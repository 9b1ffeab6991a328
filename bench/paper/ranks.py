"""Does an index rank policies as their measured latency does? Kendall's τ over equal requests.

`run_figures` gives the figures of one run, and `ranks` compares runs of the same requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from wardrop.replay import Result

INDEXES = ("poa", "poa_paper", "decode_poa_paper", "decision_loss")
"""`poa` is cost ÷ lower bound of any routing, of the latency that it is compared with."""
COSTS = ("ttft", "e2e")

Ranks = dict[str, list[float]]
"""Kendall's τ of every seed, by `INDEX_COST`."""


def run_figures(result: Result) -> dict[str, float]:
    """The summary of a run, and the paper's estimator of its last pool.

    The last pool of a split fleet decodes. The paper measures that pool. An aggregated fleet has
    one pool.
    """
    figures = result.summary()
    pool = result.anarchy[-1] if result.anarchy else None
    figures["decode_poa_paper"] = pool["poa_paper"] if pool else float("nan")
    return figures


def ranks(seeds: Sequence[Sequence[dict[str, Any]]]) -> Ranks:
    """Kendall's τ between every index and every mean latency.

    Args:
        seeds: for each seed, the figures of runs that complete the same requests.

    Raises:
        ValueError: the runs of a seed did not complete equally many requests.
    """
    found: Ranks = {}
    for runs in seeds:
        counts = sorted({figures["completed"] for figures in runs})
        if len(counts) > 1:
            raise ValueError(
                f"runs of one seed completed {counts} requests; expected one count, because the "
                "bound is over complete requests: leave out the runs that refuse some"
            )
        for cost in COSTS:
            paid = [figures[f"{cost}_mean_s"] for figures in runs]
            for index in INDEXES:
                values = [figures[f"poa_{cost}" if index == "poa" else index] for figures in runs]
                tau = float(kendalltau(_rounded(values), _rounded(paid)).statistic)
                found.setdefault(f"{index}_{cost}", []).append(tau)
    return found


def _rounded(values: Sequence[float]) -> list[float]:
    """Values to nine digits. Equal runs differ in the last bit, by the order of their sums."""
    return [float(f"{value:.9g}") for value in values]


def ranks_text(found: Ranks) -> str:
    """Mean, least and most τ over the seeds, one pair of latencies for each index."""
    parts: list[str] = []
    for index in INDEXES:
        spans = [
            f"{np.mean(taus):+.2f} ({min(taus):+.2f} to {max(taus):+.2f})"
            for taus in (found[f"{index}_{cost}"] for cost in COSTS)
        ]
        parts.append(f"{index} {', '.join(spans)}")
    return "τ with TTFT, E2E: " + "; ".join(parts)
