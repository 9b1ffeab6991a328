"""The ramp in one picture: time to first token of every arm, and what the gateway did meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from wardrop.demo.picture import LIGHT, PlotMissingError
from wardrop.demo.ramp import GOODPUT, PHASES, Profile, RampResult

_COLOURS = ("#7d8592", "#0072B2", "#56B4E9", "#CC79A7", "#E69F00", "#D55E00")
_BIN_S = 2.0


def draw(profile: Profile, results: Sequence[RampResult], path: Path, note: str) -> None:
    """Write the picture as PNG.

    Raises:
        PlotMissingError: no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotMissingError("pictures need matplotlib: pip install 'wardrop[plot]'") from error
    figure: Any = Figure(figsize=(12.5, 14), layout="constrained")
    axes: Any = figure.subplots(6, 1, sharex=True, height_ratios=(0.7, 1.6, 1.6, 1, 1, 1))
    figure.suptitle("Load across the knee and back", fontsize=16, fontweight="bold")
    times, rates = profile.times()
    axes[0].fill_between(times, rates * profile.low_per_s, color="#dfe5ec")
    axes[0].set(ylabel="sessions' rate,\nrequests/s", ylim=(0, None))
    for place, result in enumerate(results):
        style = {"color": _COLOURS[place % len(_COLOURS)], "lw": 2.2 if result.series else 1.5}
        for axis, q in ((axes[1], 50), (axes[2], 99)):
            at, values = _binned(result, q)
            axis.plot(at, values, label=result.label, **style)
        if result.series is None:
            continue
        series = result.series
        at = np.array(series.time_s)

        def of(name: str, series: Any = series, at: Any = at) -> Any:
            return np.array(series.values.get(name, [np.nan] * len(at)), dtype=float)

        axes[3].step(at, of("regime"), where="post", label=f"regime, {result.label}", **style)
        knee = style | {"lw": 1.0, "ls": ":"}
        axes[3].plot(at, of("knee_share"), label=f"load ÷ knee, {result.label}", **knee)
        axes[4].plot(at, of("poa"), label=f"price of anarchy, {result.label}", **style)
        axes[4].fill_between(at, of("poa_low"), of("poa_high"), color=style["color"], alpha=0.15)
        if np.isfinite(of("setting_kappa")).any():
            axes[5].plot(at, of("waiting"), label="requests in the queue", **style)
            kappa: dict[str, Any] = {"where": "post", "color": "#1c2330"}
            axes[5].step(at, of("setting_kappa"), label="κ", **kappa)
            room: dict[str, Any] = {"where": "post", "color": "#009E73", "ls": "--"}
            axes[5].step(at, 10 * of("setting_backlog_s"), label="room, 0.1 s", **room)
    for axis, title in ((axes[1], "median of 2 s"), (axes[2], "p99 of 2 s")):
        axis.set(yscale="log", ylabel=f"time to first\ntoken, ms ({title})")
    axes[3].set(ylabel="regime: 0 below,\n1 transition, 2 saturated")
    axes[4].set(ylabel="price of anarchy\n(95 % interval)")
    axes[5].set(ylabel="queue and its\nsettings", xlabel="time, s")
    for axis in axes[1:]:
        axis.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    for axis in axes:
        axis.grid(visible=True, color=LIGHT.grid)
        axis.set_axisbelow(True)
        for corner in times[1:-1]:
            axis.axvline(corner, color="#c4ccd6", lw=0.8)
    axes[0].set_xlim(0, max([profile.seconds, *[r.sent_s[-1] for r in results if r.sent_s]]))
    figure.supxlabel(note, fontsize=9, color=LIGHT.faint)
    figure.savefig(path, dpi=130)


def _binned(result: RampResult, q: float) -> tuple[Any, Any]:
    sent, ttft = np.array(result.sent_s), np.array(result.ttft_s)
    if not sent.size:
        return sent, ttft
    place = (sent / _BIN_S).astype(int)
    bins = np.unique(place)
    values = np.array([1e3 * np.percentile(ttft[place == b], q) for b in bins])
    return (bins + 0.5) * _BIN_S, values


def rows(results: Sequence[RampResult]) -> list[list[str]]:
    """The table: a head, then a row per arm."""
    head = ["", "mean, ms", "p99, ms", "goodput, %"]
    head += [f"{phase}: mean / p99" for phase in PHASES] + ["errors"]
    table = [head]
    for result in results:
        f = result.whole
        row = [result.label, f"{f.ttft_mean_ms:,.0f}", f"{f.ttft_p99_ms:,.0f}"]
        row.append(f"{100 * f.goodput:.1f}")
        phases = [result.phases[name] for name in PHASES]
        row += [f"{p.ttft_mean_ms:,.0f} / {p.ttft_p99_ms:,.0f}" for p in phases]
        table.append([*row, str(result.errors)])
    return table


def page(results: Sequence[RampResult], picture: Path, note: str) -> str:
    """One HTML file with the table and the picture in it."""
    import base64

    data = base64.b64encode(picture.read_bytes()).decode()
    head, *body = rows(results)
    th = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    tr = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>Load across the knee and back</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 32px auto; max-width: 1180px; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 5px 12px; text-align: right;
border-bottom: 1px solid #e3e6eb; white-space: nowrap; }} td:first-child {{ text-align: left; }}
img {{ width: 100%; }} div {{ overflow-x: auto; }}</style></head><body>
<h1>Load across the knee and back</h1><p>{escape(note)} Goodput: {escape(GOODPUT)}.</p>
<div><table><tr>{th}</tr>{tr}</table></div>
<img alt="Time to first token, regime, price of anarchy and queue over time"
src="data:image/png;base64,{data}"></body></html>
"""
