"""The rows of the comparison, described once for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from wardrop.demo.figures import Figures


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        name: What the row shows.
        unit: Unit of the values; empty for none.
        read: Reads the value of an arm; None where the arm has no value.
        form: Format of the value, as for `format`.
        better: `less`, `more`, or None where no arm wins.
    """

    name: str
    unit: str
    read: Callable[[Figures], float | None]
    form: str
    better: str | None


def lines(pools: Sequence[str]) -> list[Line]:
    """The rows for a fleet with the given pools of workers."""
    rows = [
        Line("requests", "", lambda f: f.requests, ",.0f", None),
        Line("errors", "", lambda f: f.errors, ",.0f", None),
        Line("time to first token, p50", "ms", lambda f: f.ttft_p50_ms, ",.0f", "less"),
        Line("time to first token, p95", "ms", lambda f: f.ttft_p95_ms, ",.0f", "less"),
        Line("time to first token, p99", "ms", lambda f: f.ttft_p99_ms, ",.0f", "less"),
        Line("gap between tokens, p50", "ms", lambda f: f.itl_p50_ms, ".1f", "less"),
        Line("gap between tokens, p95", "ms", lambda f: f.itl_p95_ms, ".1f", "less"),
        Line("cached prompt tokens", "%", lambda f: _percent(f.cached_share), ".1f", "more"),
    ]
    for pool in pools:
        name = "busiest worker ÷ mean" + ("" if pool == "aggregated" else f", {pool}")
        rows.append(Line(name, "", _spread_of(pool), ".2f", "less"))
    rows.append(Line("router CPU per request", "µs", lambda f: f.router_cpu_us, ",.0f", "less"))
    name = "router CPU in Wardrop's process"
    rows.append(Line(name, "µs", lambda f: f.gateway_cpu_us, ",.0f", None))
    return rows


def cells(line: Line, arms: Sequence[Figures]) -> list[tuple[str, bool]]:
    """Text of each arm, and whether it is the best; none is where all texts are equal."""
    values = [line.read(figures) for figures in arms]
    texts = ["–" if value is None else format(value, line.form) for value in values]
    known = [value for value in values if value is not None]
    if line.better is None or len(set(texts)) < 2 or not known:
        return [(text, False) for text in texts]
    best = min(known) if line.better == "less" else max(known)
    best_text = format(best, line.form)
    return [(text, text == best_text) for text in texts]


def table(labels: Sequence[str], arms: Sequence[Figures], pools: Sequence[str]) -> Table:
    """The comparison for a terminal."""
    view = Table(title=None, header_style="bold", pad_edge=False)
    view.add_column("")
    for label in labels:
        view.add_column(label, justify="right")
    for line in lines(pools):
        name = f"{line.name}, {line.unit}" if line.unit else line.name
        row: list[Text] = [
            Text(text, style="bold green" if best else "") for text, best in cells(line, arms)
        ]
        view.add_row(name, *row)
    return view


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _spread_of(pool: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.spread.get(pool)
