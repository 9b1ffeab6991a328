"""Learned latency curves of a running gateway: as text, as a picture, and in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wardrop.charts import new_figure

UNITS = {
    "prefill": {
        "formula": "p0 + p1·n + p2·n²/2 + p3·n·c seconds; n new tokens behind c cached ones",
        "coefficients": ["s", "s/token", "s/token²", "s/token²"],
    },
    "step": {
        "formula": "d0 + d1·b + d2·k seconds; b sequences over k tokens of active KV cache",
        "coefficients": ["s", "s/sequence", "s/token"],
    },
}
"""Formula and units of the coefficients, by kind of curve."""

VERSION = 1


class CurveSource(Protocol):
    """The part of a gateway that saves and restores its curves."""

    def curves(self) -> str:
        """JSON of the learned curves of every pool."""
        ...

    def restore_curves(self, model: str, role: str, record_json: str) -> int:
        """Restore a pool's curves from a record; returns the number of curves restored."""
        ...


def prefill_s(coefficients: list[float], new: Any, cached: Any = 0.0) -> Any:
    """Prefill seconds of `new` tokens behind `cached` ones."""
    p0, p1, p2, p3 = coefficients
    return p0 + p1 * new + 0.5 * p2 * new * new + p3 * new * cached


def step_s(coefficients: list[float], batch: Any, kv_tokens: Any) -> Any:
    """Seconds of one decode step."""
    d0, d1, d2 = coefficients
    return d0 + d1 * batch + d2 * kv_tokens


def table(pools: list[dict[str, Any]]) -> str:
    """One row per worker: values of its curves at typical points, samples and error."""
    rows = [
        f"{'model':<14}{'role':<12}{'worker':<24}{'prefill 1k':>11}{'prefill 8k':>11}"
        f"{'step 1':>9}{'step 32':>9}{'samples':>14}{'error':>14}"
    ]
    for pool in pools:
        for worker in pool["workers"]:
            c = worker["coefficients"]
            name = f"{worker['worker']['instance']}/{worker['worker']['dp_rank']}"
            samples = f"{worker['prefill_samples']}/{worker['step_samples']}"
            error = f"{100 * worker['prefill_error']:.0f}/{100 * worker['step_error']:.0f} %"
            rows.append(
                f"{pool['model']:<14.13}{pool['role']:<12}{name:<24}"
                f"{1e3 * prefill_s(c['prefill'], 1024.0):>8.1f} ms"
                f"{1e3 * prefill_s(c['prefill'], 8192.0):>8.1f} ms"
                f"{1e3 * step_s(c['step'], 1, 2000):>6.1f} ms"
                f"{1e3 * step_s(c['step'], 32, 64_000):>6.1f} ms{samples:>14}{error:>14}"
            )
    return "\n".join(rows)


def plot(pools: list[dict[str, Any]], path: Path) -> None:
    """Prefill against new tokens, a decode step against its batch: one line per worker.

    Raises:
        PlotMissingError: matplotlib is not installed.
        RuntimeError: there is no worker.
    """
    workers = [(pool, worker) for pool in pools for worker in pool["workers"]]
    if not workers:
        raise RuntimeError("got no worker; expected at least one worker with curves")
    figure: Any = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    tokens, batch = np.linspace(1, 16_384, 200), np.linspace(1, 128, 200)
    for place, (pool, worker) in enumerate(workers):
        c = worker["coefficients"]
        line = {"color": f"C{place % 10}", "lw": 1.8, "alpha": 0.85}
        label = f"{pool['role']} {worker['worker']['instance']}/{worker['worker']['dp_rank']}"
        if worker["prefill_samples"] or pool["role"] != "decode":
            left.plot(tokens, 1e3 * prefill_s(c["prefill"], tokens), label=label, **line)
        right.plot(batch, 1e3 * step_s(c["step"], batch, 2000 * batch), label=label, **line)
    left.set(title="Prefill, nothing cached", xlabel="new tokens", ylabel="ms")
    right.set(title="Decode step, 2,000 tokens a sequence", xlabel="sequences", ylabel="ms")
    for axis in (left, right):
        axis.grid(visible=True, color="#e3e6eb")
        axis.set_ylim(bottom=0)
    if len(workers) <= 12:
        right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def save(gateway: CurveSource, path: Path) -> int:
    """Write the curves of all pools, all or nothing; returns the number of pools."""
    pools = json.loads(gateway.curves())
    kept = [{name: pool[name] for name in ("model", "role", "record")} for pool in pools]
    beside = path.with_suffix(path.suffix + ".new")
    beside.write_text(json.dumps({"version": VERSION, "units": UNITS, "pools": kept}))
    beside.replace(path)
    return len(kept)


def load(path: Path) -> list[dict[str, Any]]:
    """The pools of a file that `save` wrote.

    Raises:
        ValueError: the file is no file of curves, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, pools = content["version"], content["pools"]
        known = [{name: pool[name] for name in ("model", "role", "record")} for pool in pools]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a file of curves: {error!r}") from None
    if version != VERSION:
        raise ValueError(f"{path}: version {version!r}, expected {VERSION}")
    return known
