"""From the columns of the load driver to the figures and curves of a report. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wardrop.demo.drive import Driven

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """One arm in numbers. A latency is None where no request has one.

    Attributes:
        requests: Requests sent.
        errors: Requests sent without a complete answer; `outcomes` has their kinds.
        outcomes: Number of planned requests by outcome.
        ttft_p50_ms, ttft_p95_ms, ttft_p99_ms, ttft_mean_ms: Time from the sent request to the
            first token.
        itl_p50_ms, itl_p95_ms: Gap between two tokens of an answer, over all gaps.
        cached_share: Cached ÷ prompt tokens as the engines report, 0 to 1. None for a split fleet:
            Dynamo 1.6.1 forwards the decode worker's count, which is always 0.
        spread: Busiest ÷ mean worker in request-seconds, by pool; 1 is even.
        router_cpu_us: CPU of the routing processes per answered request, in µs.
        gateway_cpu_us: Part of `router_cpu_us` in Wardrop's process; None without that process.
        elapsed_s: Time from the first request sent to the last answer.
        output_tokens: Tokens received.
        lateness_p99_ms: Lateness of the driver when it sends a request.
        loop_lag_p99_ms: Lateness of the driver's event loop.
        driver_cpu_share: CPU time of the driver ÷ `elapsed_s`, in cores.
        first_error: Text of the first failure, or None.
    """

    requests: int
    errors: int
    outcomes: dict[str, int]
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    ttft_p99_ms: float | None
    ttft_mean_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    cached_share: float | None
    spread: dict[str, float]
    router_cpu_us: float | None
    gateway_cpu_us: float | None
    elapsed_s: float
    output_tokens: int
    lateness_p99_ms: float | None
    loop_lag_p99_ms: float | None
    driver_cpu_share: float
    first_error: str | None


@dataclass(frozen=True)
class Curves:
    """One arm in curves. Times are seconds after the start.

    Attributes:
        ttft_ms: Times to first token, ascending.
        time_s: Middles of the time bins.
        ttft_p50_ms, ttft_p95_ms: Percentiles over the requests sent in a bin; NaN in bins with
            fewer than `BIN_LEAST` requests.
        cached_share: Cached ÷ prompt tokens of the requests sent in a bin; NaN likewise.
        pools: Name of each worker's pool, in the order of the rows of `load`.
        load_time_s: Edges of the bins of `load`.
        load: Mean requests in flight per worker and bin; shape (workers, bins).
    """

    ttft_ms: Floats
    time_s: Floats
    ttft_p50_ms: Floats
    ttft_p95_ms: Floats
    cached_share: Floats
    pools: list[str]
    load_time_s: Floats
    load: Floats


BIN_S = 2.0
"""Width of a time bin of the curves."""

BIN_LEAST = 8
"""Bins with fewer requests are empty: at the end only a few long conversations are left."""

LOAD_BIN_S = 0.5
"""Width of a bin of the load map."""


def figures(driven: Driven, workers: dict[str, list[int]]) -> Figures:
    """The numbers of an arm.

    Args:
        driven: The outcome of the driver.
        workers: Instance ids by pool, as started.
    """
    columns = driven.columns
    outcomes = Counter(_outcomes(columns))
    sent = sum(count for kind, count in outcomes.items() if kind not in ("unsent", "shed"))
    answered = outcomes["ok"]
    ok = _ok(columns)
    ttft = _ttft_ms(columns, ok)
    prompt = _column(columns, "prompt_tokens", ok)
    cached = _column(columns, "cached_tokens", ok)
    busy = _busy(columns, ok, workers)
    elapsed_s = float(columns["elapsed_s"])
    return Figures(
        requests=sent,
        errors=sent - answered,
        outcomes=dict(outcomes),
        ttft_p50_ms=_percentile(ttft, 50),
        ttft_p95_ms=_percentile(ttft, 95),
        ttft_p99_ms=_percentile(ttft, 99),
        ttft_mean_ms=float(ttft.mean()) if ttft.size else None,
        itl_p50_ms=_milli(columns["itl_p50_s"]),
        itl_p95_ms=_milli(columns["itl_p95_s"]),
        cached_share=(
            float(np.nansum(cached) / np.nansum(prompt))
            if prompt.size and "aggregated" in workers
            else None
        ),
        spread={
            pool: max(seconds) / (sum(seconds) / len(seconds))
            for pool, seconds in busy.items()
            if sum(seconds) > 0
        },
        router_cpu_us=1e6 * sum(driven.router_cpu_s) / answered if answered else None,
        gateway_cpu_us=(
            1e6 * driven.router_cpu_s[1] / answered
            if answered and len(driven.router_cpu_s) > 1
            else None
        ),
        elapsed_s=elapsed_s,
        output_tokens=int(np.nansum(_column(columns, "completion_tokens", ok))),
        lateness_p99_ms=_milli(columns["lateness_p99_s"]),
        loop_lag_p99_ms=_milli(columns["loop_lag_p99_s"]),
        driver_cpu_share=driven.driver_cpu_s / elapsed_s if elapsed_s else 0.0,
        first_error=driven.first_error,
    )


def curves(driven: Driven, workers: dict[str, list[int]]) -> Curves:
    """The curves of an arm; the arguments are as for `figures`."""
    columns = driven.columns
    ok = _ok(columns)
    sent = _column(columns, "sent_s", ok)
    ttft = _ttft_ms(columns, ok)
    prompt = _column(columns, "prompt_tokens", ok)
    cached = _column(columns, "cached_tokens", ok)
    elapsed_s = float(columns["elapsed_s"])
    edges = np.arange(0.0, elapsed_s + BIN_S, BIN_S)
    members = [np.flatnonzero((sent >= a) & (sent < a + BIN_S)) for a in edges[:-1]]

    def each(of: NDArray[np.float64], q: float) -> Floats:
        return np.array(
            [np.percentile(of[m], q) if m.size >= BIN_LEAST else np.nan for m in members]
        )

    if "aggregated" not in workers:
        cached = np.full_like(cached, np.nan)
    shares = [cached[m].sum() / prompt[m].sum() if m.size >= BIN_LEAST else np.nan for m in members]
    load_edges = np.arange(0.0, elapsed_s + LOAD_BIN_S, LOAD_BIN_S)
    return Curves(
        ttft_ms=np.sort(ttft),
        time_s=edges[:-1] + BIN_S / 2,
        ttft_p50_ms=each(ttft, 50),
        ttft_p95_ms=each(ttft, 95),
        cached_share=np.array(shares, dtype=np.float64),
        pools=[pool for pool, ids in workers.items() for _ in ids],
        load_time_s=load_edges,
        load=_load(columns, ok, workers, load_edges),
    )


def _outcomes(columns: dict[str, Any]) -> list[str]:
    """Outcome of each request; a complete answer without a token is `empty`, which is an error."""
    return [
        "empty" if outcome == "ok" and chunks == 0 else outcome
        for outcome, chunks in zip(
            cast(list[str], columns["outcome"]), cast(list[int], columns["chunks"]), strict=True
        )
    ]


def _ok(columns: dict[str, Any]) -> NDArray[np.intp]:
    return np.flatnonzero(np.array([o == "ok" for o in _outcomes(columns)], dtype=bool))


def _column(columns: dict[str, Any], name: str, rows: NDArray[np.intp]) -> Floats:
    """Rows of a column as floats; NaN for a value that the driver does not have."""
    return np.array(columns[name], dtype=np.float64)[rows]


def _ttft_ms(columns: dict[str, Any], rows: NDArray[np.intp]) -> Floats:
    return 1e3 * (_column(columns, "first_token_s", rows) - _column(columns, "sent_s", rows))


def _stays(
    columns: dict[str, Any], rows: NDArray[np.intp], workers: dict[str, list[int]]
) -> dict[str, list[tuple[Floats, Floats]]]:
    """Begins and ends of the requests on each worker, by pool.

    In a split fleet a request is on its prefill worker up to the first token, and then on its
    decode worker.
    """
    sent, first, end = (_column(columns, n, rows) for n in ("sent_s", "first_token_s", "end_s"))
    decoded = np.array(columns["worker_id"], dtype=object)[rows]
    prefilled = np.array(columns["prefill_worker_id"], dtype=object)[rows]
    parts: dict[str, tuple[NDArray[np.object_], Floats, Floats]] = {
        "aggregated": (decoded, sent, end),
        "prefill": (prefilled, sent, first),
        "decode": (decoded, first, end),
    }
    stays: dict[str, list[tuple[Floats, Floats]]] = {}
    for pool, ids in workers.items():
        holder, begin, leave = parts[pool]
        masks: list[NDArray[np.bool_]] = [
            np.array([h == str(i) for h in holder], dtype=bool) for i in ids
        ]
        stays[pool] = [(begin[mask], leave[mask]) for mask in masks]
    return stays


def _busy(
    columns: dict[str, Any], rows: NDArray[np.intp], workers: dict[str, list[int]]
) -> dict[str, list[float]]:
    """Request-seconds per worker of each pool."""
    return {
        pool: [float(np.nansum(end - begin)) for begin, end in stays]
        for pool, stays in _stays(columns, rows, workers).items()
    }


def _load(
    columns: dict[str, Any],
    rows: NDArray[np.intp],
    workers: dict[str, list[int]],
    edges: Floats,
) -> Floats:
    """Mean requests in flight per worker and bin, from the exact overlap of stays with bins."""
    low, high = edges[:-1], edges[1:]
    lines: list[Floats] = []
    for stays in _stays(columns, rows, workers).values():
        for begin, end in stays:
            overlap = np.minimum(end[:, None], high) - np.maximum(begin[:, None], low)
            lines.append(np.nansum(np.clip(overlap, 0, None), axis=0) / (high - low))
    return np.array(lines).reshape(len(lines), len(low))


def _percentile(values: Floats, q: float) -> float | None:
    return float(np.percentile(values, q)) if values.size else None


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def common_time_s(all_curves: Sequence[Curves]) -> float:
    """Longest elapsed time of all arms, in seconds, so that all panels share one time axis."""
    return max((float(c.load_time_s[-1]) for c in all_curves), default=1.0)
