"""The comparison of policies as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from wardrop.replay.chart import COLOURS, Axis, Line, distribution, heat, heat_ramp, lines
from wardrop.replay.sweep import Cell, mean_and_range
from wardrop.replay.table import HIGHER_IS_BETTER, best_of, columns, groups, means
from wardrop.slo import Slo

_CURVES = (
    ("ttft_mean_s", "Time to first token, mean", "s", True),
    ("ttft_p99_s", "Time to first token, 99th percentile", "s", True),
    ("goodput_per_s", "Goodput: requests within both limits", "requests/s", False),
    ("reuse", "Prompt tokens served from cache", "share", False),
    ("itl_mean_ms", "Time between tokens, mean", "ms", False),
    ("itl_p99_ms", "Time between tokens, 99th percentile", "ms", False),
    ("e2e_mean_s", "Time to last token, mean", "s", True),
    ("load_spread", "Spread of prefill work over workers", "std ÷ mean", False),
)
_POA_CURVES = (
    ("poa_ttft", "Price of anarchy, TTFT: the optimum is at most this", "cost ÷ bound", True),
    ("poa_e2e", "Price of anarchy, E2E: the optimum is at most this", "cost ÷ bound", True),
    ("decision_loss", "Loss of a decision in the state that it met", "actual ÷ optimum", False),
    ("poa_paper", "The paper's estimator: N/m on equal workers", "actual ÷ matched", True),
    ("decision_cache", "Share of decisions' cost: prefill that others save", "share", False),
    ("decision_load", "Share of decisions' cost: waiting that others save", "share", False),
)

_HEAD = (
    "<!doctype html><html lang=en><meta charset=utf-8>"
    "<meta name=viewport content='width=device-width,initial-scale=1'>"
)


def _colours(cells: Sequence[Cell]) -> dict[str, str]:
    names = list(dict.fromkeys(cell.policy for cell in cells))
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def _figure(caption: str, body: str, note: str = "") -> str:
    small = f" <small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption>{escape(caption)}{small}</figcaption>{body}</figure>"


def _over_load(cells: Sequence[Cell], figure: str, colours: Mapping[str, str]) -> list[Line]:
    grouped = groups(cells)
    curves: list[Line] = []
    for name, colour in colours.items():
        points = [
            (load, *mean_and_range(members, figure))
            for (load, policy), members in grouped.items()
            if policy == name
        ]
        curves.append(Line(name, sorted(points), colour))
    return curves


def _ratio(values: Sequence[float]) -> float:
    """Largest over smallest value; 1 if a value is not above 0."""
    return max(values) / min(values) if values and min(values) > 0 else 1.0


def curves_over_load(cells: Sequence[Cell], figure: str) -> list[Line]:
    """A figure of every policy over load: mean, smallest and largest value over seeds."""
    return _over_load(cells, figure, _colours(cells))


def _load_charts(cells: Sequence[Cell], colours: Mapping[str, str], closed: bool) -> str:
    label = "requests in flight" if closed else "load (× the trace)"
    spread = _ratio([cell.load for cell in cells]) > 6
    charts: list[str] = []
    for figure, title, unit, may_log in _CURVES + _POA_CURVES:
        if not all(figure in cell.figures for cell in cells):
            continue
        curves = _over_load(cells, figure, colours)
        log = may_log and _ratio([point[1] for curve in curves for point in curve.points]) > 8
        drawn = lines(title, curves, Axis(label, log=spread), Axis(unit, log=log))
        charts.append(_figure(title, drawn, "log scale" if log else ""))
    return f"<div class=grid2>{''.join(charts)}</div>"


def _distributions(cells: Sequence[Cell], colours: Mapping[str, str], key: str, label: str) -> str:
    curves: list[Line] = []
    for name, colour in colours.items():
        kept = [cell.curves for cell in cells if cell.policy == name and cell.curves.get(key)]
        if kept:
            # Percentiles may be averaged over seeds: every seed has equally many requests.
            middle = np.mean(np.asarray([curve[key] for curve in kept], dtype=float), axis=0)
            points = [(max(float(at), 1e-4), float(i), 0.0, 0.0) for i, at in enumerate(middle)]
            curves.append(Line(name, points, colour))
    return distribution(label, curves, Axis(label, log=True))


def _heat_maps(cells: Sequence[Cell], colours: Mapping[str, str]) -> str:
    first = {cell.policy: cell.curves for cell in reversed(cells) if cell.curves.get("heat")}
    if not first:
        return "<p>The simulations took no samples of the workers.</p>"
    rows = {name: np.asarray(curves["heat"], dtype=float) for name, curves in first.items()}
    top = max(float(values.max()) for values in rows.values())
    figures = [
        _figure(name, heat(name, rows[name], top, first[name]["heat_end_s"]))
        for name in colours
        if name in rows
    ]
    ramp = ",".join(f"rgb({r},{g},{b})" for r, g, b in heat_ramp(np.linspace(0, 1, 9)))
    bar = f'<span style="background:linear-gradient(90deg,{ramp})"></span>'
    scale = f"0 {bar} {top:.0f} requests in the engine (square-root scale, the same for all)"
    return f'<div class="scale">{scale}</div><div class="grid2">{"".join(figures)}</div>'


def _tabs(cells: Sequence[Cell], colours: Mapping[str, str], unit: str) -> str:
    """One tab per load, chosen by radio buttons, without a script."""
    loads = list(dict.fromkeys(cell.load for cell in cells))
    heads: list[str] = []
    bodies: list[str] = []
    rules: list[str] = []
    for i, load in enumerate(loads):
        here = [cell for cell in cells if cell.load == load]
        checked = " checked" if i == len(loads) // 2 else ""
        heads.append(f'<input type="radio" name="load" id="load{i}"{checked}>')
        heads.append(f'<label for="load{i}">{unit} {load:g}</label>')
        rules.append(f"#load{i}:checked~#at{i}{{display:block}}")
        rules.append(f"#load{i}:checked+label{{background:var(--ink);color:var(--paper)}}")
        ttft = _distributions(here, colours, "ttft_s", "seconds")
        itl = _distributions(here, colours, "itl_ms", "milliseconds")
        pair = _figure("Time to first token", ttft, "log scale") + _figure(
            "Mean time between tokens of a request", itl, "log scale"
        )
        bodies.append(
            f'<section id="at{i}"><div class="grid2">{pair}</div>'
            f"<h3>Requests in each worker over time, first seed</h3>"
            f"{_heat_maps(here, colours)}</section>"
        )
    style = f"<style>{''.join(rules)}</style>"
    return f"{style}<div class='tabs'>{''.join(heads)}{''.join(bodies)}</div>"


def _table(cells: Sequence[Cell], unit: str) -> str:
    rows: list[str] = []
    shown = columns(cells)
    for load, table in means(cells).items():
        best = best_of(table)
        for i, (policy, row) in enumerate(table.items()):
            texts = "".join(
                f"<td{' class=best' if row[name] == best[name] else ''}>{row[name]:.{digits}f}</td>"
                for name, _, digits in shown
            )
            kind = " class=load" if i == 0 else ""
            rows.append(f"<tr{kind}><td>{load:g}</td><td>{escape(policy)}</td>{texts}</tr>")
    heads = "".join(f"<th>{escape(head)}</th>" for _, head, _ in shown)
    head = f"<tr><th>{unit}</th><th>policy</th>{heads}</tr>"
    return f"<div class=scroll><table>{head}{''.join(rows)}</table></div>"


def verdict(cells: Sequence[Cell], figure: str, unit: str) -> list[str]:
    """One sentence per load: the best policy, and whether the second differs beyond the seeds."""
    grouped = groups(cells)
    higher = figure in HIGHER_IS_BETTER
    sentences: list[str] = []
    for load in dict.fromkeys(at for at, _ in grouped):
        rows = {
            policy: mean_and_range(members, figure)
            for (at, policy), members in grouped.items()
            if at == load
        }
        if len(rows) < 2:
            continue
        order = sorted(rows, key=lambda policy: rows[policy][0], reverse=higher)
        a, b = rows[order[0]], rows[order[1]]
        apart = a[1] > b[2] if higher else a[2] < b[1]
        gap = abs(b[0] / a[0] - 1) * 100 if a[0] else 0.0
        head = f"load {load:g}: {order[0]}, {a[0]:.3g} {unit}"
        rest = f"{order[1]} is {gap:.1f} % behind" if apart else "no clear winner: seeds overlap"
        sentences.append(f"{head}; {rest}")
    return sentences


def _verdicts(cells: Sequence[Cell]) -> str:
    parts: list[str] = []
    for figure, title, unit in (
        ("ttft_mean_s", "Lowest mean time to first token", "s"),
        ("goodput_per_s", "Highest goodput", "requests/s"),
    ):
        items = "".join(f"<li>{escape(text)}</li>" for text in verdict(cells, figure, unit))
        if items:
            parts.append(f"<p><b>{title}</b></p><ul>{items}</ul>")
    return f'<div class="said">{"".join(parts)}</div>' if parts else ""


def html(setting: Mapping[str, Any], cells: Sequence[Cell], slo: Slo) -> str:
    """The page as text.

    Args:
        setting: facts about the sweep, name and value.
        cells: the simulations.
        slo: limits of goodput.
    """
    colours = _colours(cells)
    closed = bool(setting.get("closed_loop"))
    unit = "in flight" if closed else "load ×"
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    facts = "".join(
        f"<span>{escape(key.replace('_', ' '))} <b>{escape(str(value))}</b></span>"
        for key, value in setting.items()
        if value is not None
    )
    trace = escape(str(setting.get("trace", "a workload")))
    style = files("wardrop.replay").joinpath("report.css").read_text(encoding="utf-8")
    limits = f"{slo.ttft_s:g} s and tokens {slo.itl_s * 1e3:g} ms apart on average"
    return (
        f"{_HEAD}<title>Wardrop replay: {trace}</title><style>{style}</style><main>"
        f"<h1>Routing policies on {trace}</h1>"
        "<p>A simulated fleet behind the production router. Lines are means over seeds; bands "
        "span the smallest to the largest value.</p>"
        f'<div class="facts">{facts}</div>{_verdicts(cells)}<div class="legend">{legend}</div>'
        f"<h2>Over load</h2><p>Goodput counts requests with a first token within {limits}.</p>"
        f"{_load_charts(cells, colours, closed)}"
        f"<h2>At one load</h2>{_tabs(cells, colours, unit)}"
        f"<h2>Figures</h2>{_table(cells, unit)}</main></html>"
    )


def write_html(path: Path, setting: Mapping[str, Any], cells: Sequence[Cell], slo: Slo) -> None:
    """Write the page of `html` to a file."""
    path.write_text(html(setting, cells, slo), encoding="utf-8")
