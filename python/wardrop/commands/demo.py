"""`wardrop demo`: compare routers on a real Dynamo with mock workers."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wardrop.charts import PlotMissingError
from wardrop.config import check_policy
from wardrop.demo.arms import Arm, arms_of
from wardrop.demo.comparison import Routers, Watch, run_comparison
from wardrop.demo.live_page import LivePage, open_port
from wardrop.demo.output import Targets, show_comparison
from wardrop.demo.plan import Options, make_plan
from wardrop.demo.ramp.output import show_ramp
from wardrop.demo.ramp.profile import Profile
from wardrop.demo.ramp.run import RampPlan, choose_arms, run_ramp
from wardrop.dynamo.embedded import FleetError
from wardrop.dynamo.install import DynamoMissingError
from wardrop.dynamo.namespace import NamespaceRefusedError, enter_or_reexec
from wardrop.timing import write_table

DEFAULT_POLICY = "toll"

RAMP_RATE_PER_WORKER = 1.5
"""Requests/s per worker at both ends of the ramp; the middle has five times as many."""

LIVE_PICTURE = "live.png"
"""File, in the folder of the results, with a picture of the live page."""

_IMPORTS = ("aiohttp", "matplotlib")
"""Packages of the extras `dynamo` and `plot`. Without them the demo would fail after minutes."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("demo")
def demo(
    workers: Annotated[int, typer.Option(help="mock workers")] = 8,
    seconds: Annotated[float, typer.Option(help="planned length of each arm")] = 36.0,
    rate: Annotated[
        float | None,
        typer.Option(
            help="requests/s [default: 5 per worker that prefills; with --trace the trace's rate]"
        ),
    ] = None,
    disagg: Annotated[
        str | None, typer.Option(help="a split fleet: PREFILLxDECODE workers, such as 2x4")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="requests of a recorded trace (.jsonl, .gz, .zst)")
    ] = None,
    policy: Annotated[str, typer.Option(help="policy of the Wardrop arm")] = DEFAULT_POLICY,
    door: Annotated[
        str,
        typer.Option(help="how Wardrop joins Dynamo: gateway, frontend, both; auto takes the best"),
    ] = "auto",
    dynamo_flags: Annotated[
        str, typer.Option(help="flags for the frontend of Dynamo's KV router, to tune it")
    ] = "",
    system_prompts: Annotated[
        int, typer.Option(help="number of system prompts; 0: one per conversation")
    ] = 32,
    turns: Annotated[float, typer.Option(help="mean turns of a conversation")] = 6.0,
    seed: Annotated[int, typer.Option(help="seed of the requests")] = 0,
    ramp: Annotated[
        bool,
        typer.Option("--ramp", help="load across the knee and back: six arms, about ten minutes"),
    ] = False,
    arms: Annotated[
        str, typer.Option(help="with --ramp: some arms only, such as dynamo_kv,toll_queue")
    ] = "",
    out: Annotated[Path, typer.Option(help="folder for picture and report")] = Path("out/demo"),
    json_file: Annotated[Path | None, typer.Option("--json", help="file for all figures")] = None,
) -> None:
    """Drive the same traffic through Dynamo's round robin, Dynamo's KV router, and Wardrop.

    Starts a real Dynamo with mock workers for each, with cold caches, in a private network, and
    leaves a table, a picture and a report. Takes about three minutes. While the gateway of Wardrop
    runs, a browser on this machine can open its live page at the address that the demo prints.
    """
    console = Console(stderr=True)
    targets = Targets(out, json_file)
    try:
        _require_packages()
        check_policy(policy, {}, "--policy")
        ramp_arms = choose_arms(arms)
        compared_arms = arms_of(door)
        listener = open_port()
        _enter_network(console)
        with LivePage(listener) as page, _timing_table() as timing:
            if any(arm.gateway for arm in compared_arms):
                console.print(f"live page, while Wardrop runs: {page.url}", highlight=False)
            if ramp:
                low_per_s = RAMP_RATE_PER_WORKER * workers if rate is None else rate
                ramp_plan = RampPlan(Profile(seconds, low_per_s), workers, seed)
                results = run_ramp(ramp_plan, timing, page, ramp_arms, _printer(console))
                show_ramp(console, ramp_plan, results, targets)
                return
            options = Options(workers, disagg, seconds, rate, seed, trace, system_prompts, turns)
            plan = make_plan(options, timing)
            routers = Routers(compared_arms, policy, tuple(shlex.split(dynamo_flags)))
            if routers.dynamo_flags:
                plan.settings.append(("Dynamo's flags", " ".join(routers.dynamo_flags)))
            for name, value in plan.settings:
                console.print(f"[dim]{name:>13}[/dim]  {value}", highlight=False)
            watch = Watch(page, out / LIVE_PICTURE)
            compared = run_comparison(console, plan, routers, watch)
        show_comparison(console, plan, policy, compared, targets)
        if (out / LIVE_PICTURE).is_file():
            console.print(f"live page: {out / LIVE_PICTURE}", highlight=False)
        _name_other_door(console, compared_arms)
    except ValueError as error:
        _print_error(console, error)
        raise typer.Exit(2) from error
    except (FleetError, DynamoMissingError, PlotMissingError, RuntimeError, OSError) as error:
        _print_error(console, error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("wardrop: interrupted; everything is stopped and removed")
        raise typer.Exit(130) from None


def _require_packages() -> None:
    """Fail at once when a package of the demo's extras is missing, with the package's name."""
    for package in _IMPORTS:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(name=package)


def _name_other_door(console: Console, arms: tuple[Arm, ...]) -> None:
    """Say how the other way into Dynamo is compared."""
    if not any(arm.native for arm in arms):
        console.print(
            "Wardrop ran in front of Dynamo's frontend. `make demo-frontend` also builds and shows "
            "Wardrop inside the frontend, which needs less CPU time.",
            highlight=False,
        )
    elif not any(arm.gateway for arm in arms):
        console.print(
            "Wardrop ran inside Dynamo's frontend. `--door both` adds the gateway in front of it.",
            highlight=False,
        )


def _enter_network(console: Console) -> None:
    """Enter a private network; where the kernel refuses, warn and go on without."""
    try:
        enter_or_reexec()
    except NamespaceRefusedError as error:
        _print_error(console, error)


def _print_error(console: Console, error: Exception) -> None:
    console.print(f"wardrop: {error}", markup=False, highlight=False)


def _printer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False)


@contextlib.contextmanager
def _timing_table() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="wardrop-demo-") as folder:
        yield write_table(Path(folder) / "b200.npz")
