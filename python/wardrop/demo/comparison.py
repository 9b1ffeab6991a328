"""Runs every arm of the demo one after the other, each with new workers and empty caches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from wardrop.demo.arms import DYNAMO_KV, Arm, running
from wardrop.demo.drive import Row, drive
from wardrop.demo.figures import Curves, Figures, curves, figures
from wardrop.demo.live_page import HOST, LivePage, take_picture
from wardrop.demo.plan import MODEL, Plan
from wardrop.workload import completion_body

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Routers:
    """The routers to compare.

    Attributes:
        arms: The arms, in the order of the columns.
        policy: Policy of the Wardrop arms.
        dynamo_flags: Further flags for the frontend of Dynamo's KV router, which tune it.
    """

    arms: tuple[Arm, ...]
    policy: str
    dynamo_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Watch:
    """How a person watches the run.

    Attributes:
        page: Leads to the admin port of the running router.
        picture: File for a picture of the live page at the end of the gateway's arm.
    """

    page: LivePage
    picture: Path


@dataclass(frozen=True)
class ArmResult:
    """One arm after its run."""

    arm: Arm
    figures: Figures
    curves: Curves
    dynamo_version: str


def run_comparison(console: Console, plan: Plan, routers: Routers, watch: Watch) -> list[ArmResult]:
    """Run all arms and show their progress.

    Args:
        console: Terminal for the progress.
        plan: Fleet and traffic.
        routers: The routers to compare.
        watch: Where a person sees the running router.

    Raises:
        FleetError: A part of an arm did not start; the text ends with the part's log.
    """
    rows: list[Row] = [
        (turn.time_s, turn.follows, completion_body(MODEL, turn)) for turn in plan.turns
    ]
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        tasks = [
            progress.add_task(arm.label, total=1, start=False, state="") for arm in routers.arms
        ]
        return [
            _ArmRun(plan, routers, rows, watch, progress, task).run(arm)
            for arm, task in zip(routers.arms, tasks, strict=True)
        ]


@dataclass(frozen=True)
class _ArmRun:
    """What the run of one arm needs."""

    plan: Plan
    routers: Routers
    rows: list[Row]
    watch: Watch
    progress: Progress
    task: TaskID

    def run(self, arm: Arm) -> ArmResult:
        self.progress.start_task(self.task)
        self._show("starting Dynamo, 0 cached blocks")
        tuning = self.routers.dynamo_flags if arm is DYNAMO_KV else ()
        flags = ("--policy", self.routers.policy)
        with (
            running(arm, self.plan.spec, flags, tuning) as stack,
            self.watch.page.showing(stack.admin_port),
        ):
            driven = drive(
                f"{stack.url}/v1/completions",
                self.rows,
                router_pids=stack.router_pids,
                duration_s=4 * self.plan.seconds + _TIMEOUT_S,
                timeout_s=_TIMEOUT_S,
                on_progress=self._show_progress,
            )
            numbers = figures(driven, stack.workers)
            result = ArmResult(arm, numbers, curves(driven, stack.workers), stack.version)
            if stack.admin_port is not None:
                # Only now, with the load over, can a browser not disturb the figures.
                self._show("taking a picture of the live page")
                take_picture(f"http://{HOST}:{stack.admin_port}/", self.watch.picture)
        self.progress.update(self.task, completed=1, total=1)
        self._show(_ended(numbers))
        self.progress.stop_task(self.task)
        return result

    def _show(self, state: str) -> None:
        self.progress.update(self.task, state=state)

    def _show_progress(self, now: dict[str, Any]) -> None:
        self.progress.update(self.task, completed=now["ended"], total=now["planned"])
        self._show(_state(now))


def _state(now: dict[str, Any]) -> str:
    failed = now["ended"] - now["ok"]
    parts = [f"{now['ended']:>5,}/{now['planned']:,}", f"{now['sent'] - now['ended']:>3} in flight"]
    if now["ttft_p50_s"] is not None:
        parts.append(
            f"TTFT p50 {1e3 * now['ttft_p50_s']:,.0f} p95 {1e3 * now['ttft_p95_s']:,.0f} ms"
        )
    if failed:
        parts.append(f"[red]{failed} failed[/red]")
    return ", ".join(parts)


def _ended(numbers: Figures) -> str:
    if numbers.errors:
        return f"[red]{numbers.errors} of {numbers.requests} requests failed[/red]"
    return f"{numbers.requests:,} requests answered"
