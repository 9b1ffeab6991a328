"""`wardrop demo`: plan, run the arms one after the other, show."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from wardrop.demo import ramp_picture
from wardrop.demo.arms import ARMS, DYNAMO_KV, Arm, running
from wardrop.demo.drive import Driven, Row, drive
from wardrop.demo.figures import Curves, Figures, curves, figures
from wardrop.demo.picture import PlotMissingError, draw_png
from wardrop.demo.plan import MODEL, Options, Plan, make_plan, pools
from wardrop.demo.ramp import RAMP_ARMS, Profile, as_json, run_ramp
from wardrop.demo.report import html
from wardrop.demo.table import table
from wardrop.demo.timing import STEP_MS, write_table
from wardrop.dynamo.embedded import FleetError
from wardrop.dynamo.install import DynamoMissingError, dynamo_version
from wardrop.dynamo.namespace import NamespaceRefusedError, enter_or_reexec
from wardrop.workload import completion_body

TITLE = "One workload, three routers"
DEFAULT_POLICY = "toll"

RAMP_RATE_PER_WORKER = 1.5
"""Requests/s per worker at the ends of the ramp; five times that in its middle."""

LATE_MS = 20.0
"""Above this at p99 the driver itself was late and the comparison is marked as doubtful."""

_TIMEOUT_S = 120.0

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("demo")
def demo(
    workers: Annotated[int, typer.Option(help="mock workers")] = 8,
    seconds: Annotated[float, typer.Option(help="planned length of each arm")] = 36.0,
    rate: Annotated[
        float | None,
        typer.Option(help="requests/s [default: 5 per worker that prefills; a trace's own]"),
    ] = None,
    disagg: Annotated[
        str | None, typer.Option(help="prefill and decode workers apart, such as 2x4")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="drive the rows of a Mooncake trace (.jsonl, .gz, .zst)")
    ] = None,
    policy: Annotated[str, typer.Option(help="policy of the Wardrop arm")] = DEFAULT_POLICY,
    dynamo_flags: Annotated[
        str, typer.Option(help="flags for the frontend of the KV router's arm, to tune it")
    ] = "",
    system_prompts: Annotated[
        int, typer.Option(help="how many; 0 gives every conversation its own")
    ] = 32,
    turns: Annotated[float, typer.Option(help="mean turns of a conversation")] = 6.0,
    seed: Annotated[int, typer.Option(help="same seed, same requests")] = 0,
    ramp: Annotated[
        bool,
        typer.Option("--ramp", help="load across the knee and back: six arms, about ten minutes"),
    ] = False,
    arms: Annotated[
        str, typer.Option(help="with --ramp: only these, by key, such as dynamo_kv,toll_queue")
    ] = "",
    out: Annotated[Path, typer.Option(help="folder for picture and report")] = Path("out/demo"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write all figures here")
    ] = None,
) -> None:
    """Drive the same traffic through Dynamo's round robin, Dynamo's KV router, and Wardrop.

    Starts a real Dynamo with mock workers three times, with cold caches, in a private network, and
    leaves a table, a picture and a report. Takes about three minutes.
    """
    console = Console(stderr=True)
    try:
        _enter_network(console)
        with _timing_table() as timing:
            if ramp:
                _ramp(console, workers, seconds, rate, seed, timing, arms, out, json_file)
                return
            options = Options(workers, disagg, seconds, rate, seed, trace, system_prompts, turns)
            plan = make_plan(options, timing)
            results = _run_arms(console, plan, policy, shlex.split(dynamo_flags))
        _show(console, plan, policy, results, out, json_file)
    except (ValueError, FleetError, DynamoMissingError, RuntimeError, OSError) as error:
        console.print(f"wardrop: {error}", markup=False, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("wardrop: interrupted; everything is stopped and removed")
        raise typer.Exit(130) from None


def _ramp(
    console: Console,
    workers: int,
    seconds: float,
    rate: float | None,
    seed: int,
    timing: Path,
    keys: str,
    out: Path,
    json_file: Path | None,
) -> None:
    profile = Profile(seconds, RAMP_RATE_PER_WORKER * workers if rate is None else rate)
    known = {one.arm.key: one for one in RAMP_ARMS}
    wanted = [key for key in keys.split(",") if key] or list(known)
    unknown = [key for key in wanted if key not in known]
    if unknown:
        raise ValueError(f"--arms: got {unknown[0]!r}, expected some of {', '.join(known)}")
    results = run_ramp(
        profile,
        workers,
        seed,
        timing,
        [known[key] for key in wanted],
        lambda text: console.print(text, highlight=False),
    )
    late_ms = max(result.driver_late_ms for result in results)
    note = (
        f"{workers} mock workers, {profile.low_per_s:g} to {profile.peak * profile.low_per_s:g} "
        f"requests/s in {seconds:g} s, seed {seed}; driver at most {late_ms:.0f} ms late (p99). "
        f"{_foot(dynamo_version(sys.executable))}"
    )
    view = Table(pad_edge=False)
    head, *body = ramp_picture.rows(results)
    for name in head:
        view.add_column(name, justify="right" if name else "left")
    for row in body:
        view.add_row(*row)
    Console(width=190).print(view)
    if late_ms > LATE_MS:
        console.print(
            f"[yellow]doubt:[/yellow] the driver was {late_ms:.0f} ms late", highlight=False
        )
    out.mkdir(parents=True, exist_ok=True)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(as_json(profile, workers, seed, results))
    picture = out / "ramp.png"
    ramp_picture.draw(profile, results, picture, note)
    (out / "ramp.html").write_text(ramp_picture.page(results, picture, note), encoding="utf-8")
    console.print(f"picture: {picture}\nreport:  {out / 'ramp.html'}", highlight=False)


Result = tuple[Arm, Figures, Curves, str]
"""An arm, its numbers, its curves, and Dynamo's version."""


def _enter_network(console: Console) -> None:
    try:
        enter_or_reexec()
    except NamespaceRefusedError as error:
        console.print(f"wardrop: {error}", markup=False, highlight=False)


@contextlib.contextmanager
def _timing_table() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="wardrop-demo-") as folder:
        yield write_table(Path(folder) / "b200.npz")


def _run_arms(
    console: Console, plan: Plan, policy: str, dynamo_flags: Sequence[str]
) -> list[Result]:
    if dynamo_flags:
        plan.settings.append(("Dynamo's flags", " ".join(dynamo_flags)))
    for name, value in plan.settings:
        console.print(f"[dim]{name:>13}[/dim]  {value}", highlight=False)
    rows: list[Row] = [
        (turn.time_s, turn.follows, completion_body(MODEL, turn)) for turn in plan.turns
    ]
    results: list[Result] = []
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        tasks = [progress.add_task(arm.label, total=1, start=False, state="") for arm in ARMS]
        for arm, task in zip(ARMS, tasks, strict=True):
            progress.start_task(task)
            progress.update(task, state="starting Dynamo, 0 cached blocks")
            tuning = tuple(dynamo_flags) if arm is DYNAMO_KV else ()
            with running(arm, plan.spec, ("--policy", policy), tuning) as stack:

                def on_progress(now: dict[str, Any], task: Any = task) -> None:
                    progress.update(
                        task, completed=now["ended"], total=now["planned"], state=_state(now)
                    )

                driven = drive(
                    f"{stack.url}/v1/completions",
                    rows,
                    router_pids=stack.router_pids,
                    duration_s=4 * plan.seconds + _TIMEOUT_S,
                    timeout_s=_TIMEOUT_S,
                    on_progress=on_progress,
                )
                numbers = figures(driven, stack.workers)
                lines = curves(driven, stack.workers)
                results.append((arm, numbers, lines, stack.version))
            progress.update(task, completed=1, total=1, state=_ended(driven, numbers))
            progress.stop_task(task)
    return results


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


def _ended(driven: Driven, numbers: Figures) -> str:
    if numbers.errors:
        return f"[red]{numbers.errors} of {numbers.requests} requests failed[/red]"
    return f"{numbers.requests:,} requests answered"


def _show(
    console: Console,
    plan: Plan,
    policy: str,
    results: Sequence[Result],
    out: Path,
    json_file: Path | None,
) -> None:
    labels = [arm.label for arm, *_ in results]
    numbers = [figures for _, figures, *_ in results]
    lines = [curves for _, _, curves, _ in results]
    console.print()
    Console().print(table(labels, numbers, pools(plan.spec)))
    for doubt in doubts(labels, numbers):
        console.print(f"[yellow]doubt:[/yellow] {doubt}", highlight=False)
    settings = [*plan.settings, ("Wardrop's policy", policy)]
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(_as_json(settings, plan, policy, results), indent=1))
        console.print(f"figures: {json_file}", highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    try:
        note = f"{_lead(plan)} {_foot(results[0][3])}"
        draw_png(out / "demo.png", labels, lines, TITLE, note)
        page = html(
            TITLE,
            _lead(plan),
            labels,
            numbers,
            lines,
            pools(plan.spec),
            settings,
            _foot(results[0][3]),
        )
        (out / "demo.html").write_text(page, encoding="utf-8")
        console.print(f"picture: {out / 'demo.png'}\nreport:  {out / 'demo.html'}", highlight=False)
    except PlotMissingError as error:
        console.print(f"wardrop: {error}", markup=False, highlight=False)


def doubts(labels: Sequence[str], numbers: Sequence[Figures]) -> list[str]:
    """What a reader must know before believing the figures; empty when all is well."""
    found: list[str] = []
    for label, arm in zip(labels, numbers, strict=True):
        late_ms = max(arm.lateness_p99_ms or 0.0, arm.loop_lag_p99_ms or 0.0)
        if late_ms > LATE_MS:
            found.append(
                f"{label}: the load driver itself was up to {late_ms:.0f} ms late (p99); this "
                "machine is too busy for the rate, lower --rate"
            )
        if arm.itl_p50_ms is not None and arm.itl_p50_ms < STEP_MS / 2:
            found.append(
                f"{label}: tokens came in bundles (gap p50 {arm.itl_p50_ms:.1f} ms, an engine's "
                f"step takes {STEP_MS} ms); engines or frontend did not get their CPU time, so "
                "latencies are this machine's and not the router's"
            )
        if arm.errors:
            what = {k: n for k, n in arm.outcomes.items() if k not in ("ok", "unsent")}
            found.append(f"{label}: {arm.errors} requests failed {what}: {arm.first_error}")
        if arm.outcomes.get("unsent"):
            found.append(f"{label}: {arm.outcomes['unsent']} requests were never sent")
    return found


def _lead(plan: Plan) -> str:
    count = plan.facts["requests"]
    return (
        f"The same {count:,.0f} requests, three times, each with cold caches, through a real "
        f"Dynamo: {dict(plan.settings)['fleet']}."
    )


def _foot(dynamo: str) -> str:
    return (
        f"Wardrop {version('wardrop')}, Dynamo {dynamo}, Python {platform.python_version()}, "
        f"{_cpu_model()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}."
    )


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """Commit of a checkout that this package lies in, or None."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return answer.stdout.strip()
    return None


def _as_json(
    settings: Sequence[tuple[str, str]], plan: Plan, policy: str, results: Sequence[Result]
) -> dict[str, Any]:
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "wardrop": version("wardrop"),
            "commit": _commit(),
            "dynamo": results[0][3],
            "python": platform.python_version(),
        },
        "command": sys.argv[1:],
        "settings": dict(settings),
        "workload": plan.facts,
        "policy": policy,
        "arms": {
            arm.key: {"label": arm.label, "figures": asdict(numbers), "curves": _plain(lines)}
            for arm, numbers, lines, _ in results
        },
    }


def _plain(lines: Curves) -> dict[str, Any]:
    """Curves as lists, rounded to what was measured; NaN becomes null."""
    plain: dict[str, Any] = {}
    for name, value in vars(lines).items():
        if isinstance(value, list):
            plain[name] = value
        else:
            plain[name] = json.loads(json.dumps(value.round(4).tolist()).replace("NaN", "null"))
    return plain
