"""Fleets, workloads and result files shared by the experiments."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wardrop.replay import Engine, Fleet, Policy, Workload, load_timing, simulate
from wardrop.replay.generate import generate, prefixes
from wardrop.timing import SimulatedTiming

SHARED = Path(os.environ.get("WARDROP_SHARED", "../shared"))
RESULTS = Path("bench/results/paper")
PICTURES = Path("docs/reports/paper/img")

TABLES = {"70B": "llama70b_tp4_b200.npz", "340B stand-in": "llama405b_tp8_b200.npz"}
PAPER_FLEETS = {
    "70B 1P/2D": ("70B", 1, 2),
    "70B 1P/5D": ("70B", 1, 5),
    "340B stand-in 1P/2D": ("340B stand-in", 1, 2),
}
PAPER_WINDOW = 37
"""Requests per window that would explain the paper's plateaus as N/m: 18.5 for 2, 7.4 for 5."""


@cache
def timing(model: str) -> SimulatedTiming:
    """The measured B200 table of a model."""
    return load_timing(SHARED / "timing" / TABLES[model])


def split(model: str, prefill: int, decode: int, **fields: Any) -> Fleet:
    """A split fleet at a model's timing, with the price of anarchy in the paper's windows."""
    engine = Engine(timing=timing(model))
    return Fleet.split(prefill, decode, engine=engine, anarchy_window=PAPER_WINDOW, **fields)


def closed_loop(requests: int, seed: int) -> Workload:
    """The paper's load: five templates of 128 tokens, answers of 128."""
    return generate(f"paper(requests={requests})", seed)


@cache
def closed_baseline_s(model: str, prefill: int, decode: int) -> float:
    """Baseline p99 TTFT of the paper's load: eight in flight under Dynamo's defaults."""
    fleet = split(model, prefill, decode, concurrency=8)
    result = simulate(closed_loop(800, 99), fleet, "dynamo")
    return float(np.percentile(result.ttft_ms[80:], 99)) / 1e3


def paper_policy(baseline_s: float, **parameters: Any) -> Policy:
    """The paper's controller with thresholds over a measured baseline."""
    return Policy("paper", {"baseline_s": round(baseline_s, 6), **parameters})


def phased(
    rates_per_s: tuple[float, ...], seconds: float | tuple[float, ...], seed: int, **prefix: Any
) -> Workload:
    """Shared prefixes whose Poisson rate steps through `rates_per_s`, each for its `seconds`."""
    rng = np.random.default_rng(seed)
    lengths = seconds if isinstance(seconds, tuple) else (seconds,) * len(rates_per_s)
    pairs = list(zip(rates_per_s, lengths, strict=True))
    counts = [int(rng.poisson(rate * length)) for rate, length in pairs]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parts = [
        np.sort(rng.uniform(start, start + length, count))
        for start, length, count in zip(starts, lengths, counts, strict=True)
    ]
    base = prefixes(requests=sum(counts), per_s=1.0, seed=seed, **prefix)
    at_ms: NDArray[np.float64] = np.concatenate(parts) * 1e3
    return replace(base, name="phased", arrival_ms=at_ms)


def write(name: str, found: dict[str, Any]) -> None:
    """Write an experiment's figures as JSON."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(found), indent=1, sort_keys=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """Read the figures of an earlier run."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _rounded(one) for k, one in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in cast(list[Any], value)]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
