"""Table, picture, page and JSON file of the ramp."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from wardrop.charts import new_figure
from wardrop.demo.machine import footnote
from wardrop.demo.output import MAX_LATENESS_MS, Targets
from wardrop.demo.picture import LIGHT
from wardrop.demo.ramp.figures import GOODPUT, RampResult
from wardrop.demo.ramp.profile import PHASES, Profile
from wardrop.demo.ramp.run import RampPlan, ramp_json
from wardrop.dynamo.install import dynamo_version

_COLOURS = ("#7d8592", "#0072B2", "#56B4E9", "#CC79A7", "#E69F00", "#D55E00")
_BIN_S = 2.0


_TABLE_WIDTH = 190


def show_ramp(
    console: Console, plan: RampPlan, results: Sequence[RampResult], targets: Targets
) -> None:
    """Print the table and write the files.

    Args:
        console: Terminal for everything but the table, which goes to standard output.
        plan: Load, fleet and seed.
        results: The arms, in the order of the rows.
        targets: Where the files go.

    Raises:
        PlotMissingError: matplotlib is not installed. The table and the JSON file exist then.
        OSError: A file cannot be written.
    """
    profile = plan.profile
    late_ms = max(result.driver_late_ms for result in results)
    note = (
        f"{plan.workers} mock workers, {profile.low_per_s:g} to "
        f"{profile.peak * profile.low_per_s:g} requests/s in {profile.seconds:g} s, seed "
        f"{plan.seed}; driver at most {late_ms:.0f} ms late (p99). "
        f"{footnote(dynamo_version(sys.executable))}"
    )
    table = Table(pad_edge=False)
    head, *body = rows(results)
    for name in head:
        table.add_column(name, justify="right" if name else "left")
    for row in body:
        table.add_row(*row)
    Console(width=_TABLE_WIDTH).print(table)
    if late_ms > MAX_LATENESS_MS:
        console.print(
            f"[yellow]doubt:[/yellow] the load driver was {late_ms:.0f} ms late", highlight=False
        )
    if targets.json_file is not None:
        targets.json_file.parent.mkdir(parents=True, exist_ok=True)
        targets.json_file.write_text(ramp_json(plan, results))
    targets.folder.mkdir(parents=True, exist_ok=True)
    picture, report = targets.folder / "ramp.png", targets.folder / "ramp.html"
    draw(profile, results, picture, note)
    report.write_text(page(results, picture, note), encoding="utf-8")
    console.print(f"picture: {picture}\nreport:  {report}", highlight=False)


def draw(profile: Profile, results: Sequence[RampResult], path: Path, note: str) -> None:
    """Write the picture as PNG: times to first token, regimes, price of anarchy, and the queue.

    Args:
        profile: The load over time.
        results: The arms.
        path: The file to write.
        note: Text below the picture.

    Raises:
        PlotMissingError: matplotlib is not installed.
    """
    figure: Any = new_figure(12.5, 14)
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
    """The cells of the table: a head, then one row per arm."""
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
    """The report as one HTML file, which holds the table and the picture."""
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
