"""Table, picture, page and JSON file of a comparison."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from wardrop.demo.comparison import ArmResult
from wardrop.demo.figures import Curves, Figures
from wardrop.demo.machine import description, footnote
from wardrop.demo.picture import draw_png
from wardrop.demo.plan import Plan, pools
from wardrop.demo.report import Page, html
from wardrop.demo.table import table
from wardrop.timing import STEP_MS

_COUNTS = {3: "three", 4: "four"}

MAX_LATENESS_MS = 20.0
"""A driver that is later than this at p99 makes the figures doubtful."""


@dataclass(frozen=True)
class Targets:
    """Where the results go.

    Attributes:
        folder: Folder for picture and page.
        json_file: File for all figures and curves; None for none.
    """

    folder: Path
    json_file: Path | None = None


def show_comparison(
    console: Console, plan: Plan, policy: str, results: Sequence[ArmResult], targets: Targets
) -> None:
    """Print the table and the doubts, and write the files.

    Args:
        console: Terminal for everything but the table, which goes to standard output.
        plan: Fleet and traffic of the run.
        policy: Policy of the Wardrop arm.
        results: The arms, in the order of the columns.
        targets: Where the files go.

    Raises:
        PlotMissingError: matplotlib is not installed. The table and the JSON file exist then.
        OSError: A file cannot be written.
    """
    labels = [result.arm.label for result in results]
    numbers = [result.figures for result in results]
    lines = [result.curves for result in results]
    note = footnote(results[0].dynamo_version)
    title = f"One workload, {_COUNTS[len(results)]} routers"
    lead = _lead(plan, len(results))
    console.print()
    Console().print(table(labels, numbers, pools(plan.spec)))
    for doubt in doubts(labels, numbers):
        console.print(f"[yellow]doubt:[/yellow] {doubt}", highlight=False)
    settings = [*plan.settings, ("Wardrop's policy", policy)]
    if targets.json_file is not None:
        content = _json(plan, policy, settings, results)
        targets.json_file.parent.mkdir(parents=True, exist_ok=True)
        targets.json_file.write_text(json.dumps(content, indent=1))
        console.print(f"figures: {targets.json_file}", highlight=False)
    targets.folder.mkdir(parents=True, exist_ok=True)
    picture, page = targets.folder / "demo.png", targets.folder / "demo.html"
    draw_png(picture, labels, lines, title, f"{lead} {note}")
    content = Page(
        title=title,
        lead=lead,
        labels=labels,
        figures=numbers,
        curves=lines,
        pools=pools(plan.spec),
        settings=settings,
        footnote=note,
    )
    page.write_text(html(content), encoding="utf-8")
    console.print(f"picture: {picture}\nreport:  {page}", highlight=False)


def doubts(labels: Sequence[str], numbers: Sequence[Figures]) -> list[str]:
    """Reasons to doubt the figures, one sentence each; empty when there are none."""
    found: list[str] = []
    for label, arm in zip(labels, numbers, strict=True):
        late_ms = max(arm.lateness_p99_ms or 0.0, arm.loop_lag_p99_ms or 0.0)
        if late_ms > MAX_LATENESS_MS:
            found.append(
                f"{label}: the load driver itself was up to {late_ms:.0f} ms late (p99); this "
                "machine is too busy for the rate, lower --rate"
            )
        if arm.itl_p50_ms is not None and arm.itl_p50_ms < STEP_MS / 2:
            found.append(
                f"{label}: tokens came in bundles (gap p50 {arm.itl_p50_ms:.1f} ms, but a step of "
                f"an engine takes {STEP_MS} ms); engines or frontend lacked CPU time, so latencies "
                "show this machine and not the router"
            )
        if arm.errors:
            kinds = {k: n for k, n in arm.outcomes.items() if k not in ("ok", "unsent")}
            found.append(f"{label}: {arm.errors} requests failed {kinds}: {arm.first_error}")
        if arm.outcomes.get("unsent"):
            found.append(f"{label}: {arm.outcomes['unsent']} requests were never sent")
    return found


def _lead(plan: Plan, arms: int) -> str:
    count = plan.facts["requests"]
    return (
        f"The same {count:,.0f} requests, {_COUNTS[arms]} times, each with cold caches, through a "
        f"real Dynamo: {dict(plan.settings)['fleet']}."
    )


def _json(
    plan: Plan,
    policy: str,
    settings: Sequence[tuple[str, str]],
    results: Sequence[ArmResult],
) -> dict[str, Any]:
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **description(results[0].dynamo_version),
        "command": sys.argv[1:],
        "settings": dict(settings),
        "workload": plan.facts,
        "policy": policy,
        "arms": {
            result.arm.key: {
                "label": result.arm.label,
                "figures": asdict(result.figures),
                "curves": _plain(result.curves),
            }
            for result in results
        },
    }


def _plain(curves: Curves) -> dict[str, Any]:
    """Curves as lists, rounded to the resolution of the measurement; NaN becomes null."""
    plain: dict[str, Any] = {}
    for name, value in vars(curves).items():
        if isinstance(value, list):
            plain[name] = value
        else:
            plain[name] = json.loads(json.dumps(value.round(4).tolist()).replace("NaN", "null"))
    return plain
