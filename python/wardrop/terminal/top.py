"""One screen of `wardrop top`: problems, figures and workers of each model, from a snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from wardrop.service.live.observation import Pool, PriceOfAnarchy, Worker
from wardrop.service.live.percentiles import Percentiles
from wardrop.service.live.problems import short_name
from wardrop.service.live.snapshot import ModelSnapshot, Snapshot
from wardrop.terminal.numbers import DASH, count, ratio, seconds, share

_REGIME_STYLES = {"below": "green", "transition": "yellow", "saturated": "red"}
_STATE_STYLES = {"synced": "green", "suspect": "red", "restored": "yellow"}
_LEVEL_STYLES = {"failure": "red", "warning": "yellow"}
_BAR_CELLS = 5
_BAR_COLUMNS = 106
"""Columns from which a number of blocks has a bar beside it."""
_GRID_COLUMNS = 80
"""Columns from which the figures of a model stand in a grid."""
_COLUMNS = {
    "worker": 0,
    "state": 0,
    "requests": 0,
    "to prefill": 92,
    "KV used": 70,
    "in the index": 60,
    "as predicted": 92,
    "2k prefill": 60,
}
"""Columns of the table of workers, each with the columns of the screen from which it is shown."""
_MISSING = {
    "no_window": "no window has ended yet",
    "few_requests": "too few requests have finished",
    "no_curves": "the latency curves have too few samples",
    "no_worker": "a role has no worker",
    "not_covered": "the bound does not cover this fleet",
}
"""Why the price of anarchy is missing, by its name in an observation."""


def render_top(snapshot: Snapshot, most_workers: int) -> RenderableType:
    """The screen of one second.

    Args:
        snapshot: Facts of the router.
        most_workers: Workers that the screen has lines for, over all models; others are counted.
    """
    at = time.strftime("%H:%M:%S", time.localtime(snapshot.at_s))
    regime = snapshot.regime or "unknown"
    head = Text.assemble(
        ("Wardrop ", "bold"),
        at,
        "   regime ",
        (regime, _REGIME_STYLES.get(regime, "")),
        f"   load against the knee {ratio(snapshot.control.get('knee_share'))}",
        f"   arrivals {ratio(snapshot.control.get('arrivals_per_second'))} /s",
    )
    if not snapshot.models:
        return Group(head, Text("No model is known yet.", "yellow"))
    lines = max(1, most_workers // len(snapshot.models))
    return Group(head, *(_model(model, lines) for model in snapshot.models))


def _model(model: ModelSnapshot, most_workers: int) -> RenderableType:
    problems = [
        Text(f"● {problem.text}", _LEVEL_STYLES[problem.level]) for problem in model.problems
    ]
    healthy = Text("● All workers are available, and no block in the index is suspect.", "green")
    pools = [_ByWidth(partial(_pool, pool, most_workers)) for pool in model.pools]
    return Panel(
        Group(*(problems or [healthy]), _ByWidth(partial(_figures, model)), *pools),
        title=Text(model.name),
        title_align="left",
    )


class _ByWidth:
    """Something that is made for the columns of its place."""

    def __init__(self, make: Callable[[int], RenderableType]) -> None:
        self._make = make

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._make(options.max_width)


def _figures(model: ModelSnapshot, columns: int) -> RenderableType:
    """The figures of a model in a grid, or one below the other on a narrow screen."""
    point = model.point
    cells = [
        f"running [b]{count(point['running'])}[/b]",
        f"waiting [b]{count(point['waiting'])}[/b]",
        f"TTFT {_percentiles(model.ttft)}",
        f"ITL {_percentiles(model.itl)}",
    ]
    rows = [cells]
    if model.price_of_anarchy is not None:
        rows.append(_bound(model.price_of_anarchy))
    for pool in model.pools:
        anarchy = pool.anarchy
        if anarchy is not None:
            band = f"{ratio(anarchy.low)} to {ratio(anarchy.high)}" if anarchy.low else DASH
            rows.append(
                [
                    f"loss of a decision [b]{ratio(anarchy.poa)}[/b] ({pool.role})",
                    band,
                    f"lost by placing: cache [b]{share(anarchy.lost_to_cache)}[/b]",
                    f"load [b]{share(anarchy.lost_to_load)}[/b], "
                    f"split [b]{share(anarchy.lost_to_split)}[/b]",
                ]
            )
    if columns < _GRID_COLUMNS:
        return Group(*(Text.from_markup(cell) for row in rows for cell in row))
    grid = Table.grid(padding=(0, 3))
    for row in rows:
        grid.add_row(*row)
    return grid


def _bound(price: PriceOfAnarchy) -> list[str]:
    """Cells of the price of anarchy: both figures, or why there is none."""
    if price.missing is not None:
        reason = _MISSING.get(price.missing, price.missing)
        return ["price of anarchy at most", DASH, reason]
    cells = ["price of anarchy at most"]
    for name, figure in (("TTFT", price.ttft), ("E2E", price.e2e)):
        if figure is None:
            cells.append(f"{name} {DASH}")
            continue
        band = f" ({ratio(figure.low)} to {ratio(figure.high)})" if figure.low is not None else ""
        cells.append(f"{name} [b]{ratio(figure.value)}[/b]{band}")
    curves = price.curves
    cells.append(f"curve error {share(max(curves.prefill_error, curves.step_error))}")
    return cells


def _percentiles(found: Percentiles | None) -> str:
    if found is None:
        return DASH
    return f"p50 [b]{seconds(found.p50_s)}[/b] p99 [b]{seconds(found.p99_s)}[/b]"


def _pool(pool: Pool, most_workers: int, columns: int) -> Table:
    """One line per worker. A narrow screen leaves out bars first, then whole columns."""
    rest = len(pool.workers) - most_workers
    table = Table(
        title=f"{pool.role}: {sum(w.available for w in pool.workers)} of {len(pool.workers)} "
        "available",
        title_justify="left",
        caption=f"{rest} more workers are not shown" if rest > 0 else None,
        expand=True,
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    shown = [name for name, least in _COLUMNS.items() if columns >= least]
    for name in shown:
        table.add_column(
            name, justify="left" if name in ("worker", "state") else "right", no_wrap=True
        )
    # The worst first, so that a short screen shows them.
    for worker in sorted(pool.workers, key=_rank)[:most_workers]:
        cells = _cells(worker, has_bars=columns >= _BAR_COLUMNS)
        table.add_row(*(cells[name] for name in shown))
    return table


def _rank(worker: Worker) -> tuple[bool, float, int]:
    return worker.available, worker.trust_score, -worker.active_requests


def _cells(worker: Worker, has_bars: bool) -> dict[str, RenderableType]:
    """The cells of a worker by the name of their column."""
    state, style = _state(worker)
    total = worker.total_kv_blocks if has_bars else None
    curve = worker.curve
    predicted = worker.predicted_cached_tokens
    prefill = DASH
    if curve is not None:
        prefill = ("" if curve.prefill_samples else "≈ ") + seconds(curve.prefill_s[1])
    return {
        "worker": short_name(worker.instance, worker.dp_rank),
        "state": Text(state, style),
        "requests": count(worker.active_requests),
        "to prefill": count(worker.prefill_tokens),
        "KV used": _bar(worker.decode_blocks, total),
        "in the index": _bar(worker.held_blocks, total),
        "as predicted": share(worker.reported_cached_tokens / predicted) if predicted else DASH,
        "2k prefill": prefill,
    }


def _state(worker: Worker) -> tuple[str, str]:
    """Fault of a worker, else the trust in its index where it fell, else the state of its feed."""
    if not worker.available:
        return worker.fault or "unavailable", "red"
    if worker.trust_mode != "exact" and worker.feed_state != "suspect":
        mode = worker.trust_mode.replace("_", " ")
        return f"{mode} {share(worker.trust_score)}", "yellow"
    return worker.feed_state, _STATE_STYLES.get(worker.feed_state, "")


def _bar(blocks: int, total: int | None) -> str:
    if not total:
        return count(blocks)
    cells = min(_BAR_CELLS, round(_BAR_CELLS * blocks / total))
    return f"{count(blocks)} {'█' * cells}{'░' * (_BAR_CELLS - cells)}"
