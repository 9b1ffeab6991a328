"""`wardrop replay`: traces through the production router, in a simulated fleet."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from wardrop.calls import split_outside
from wardrop.commands import simulation
from wardrop.commands.simulation import run_with_bar
from wardrop.replay.anarchy import POA_WINDOW
from wardrop.replay.best import find_best
from wardrop.replay.fleet import Engine, Fleet
from wardrop.replay.limits import what_is_lost
from wardrop.replay.report import write_html
from wardrop.replay.run import Policy
from wardrop.replay.runners import RayRunner, ThreadRunner
from wardrop.replay.source import TraceSource, parse_part
from wardrop.replay.sweep import Cell, Plan, sweep
from wardrop.replay.table import tables, write_csv
from wardrop.replay.tune import OBJECTIVES, tune
from wardrop.replay.workload import ReplayError
from wardrop.slo import Slo
from wardrop.timing import load_timing

app = typer.Typer(add_completion=False, no_args_is_help=True)
_out = Console()
_err = Console(stderr=True)

_UNBROKEN_WIDTH = 100_000
"""Width in characters of output that is not a terminal: wider than every table."""


def _print_tables(cells: list[Cell], *, closed: bool) -> None:
    """Print the comparison: in a terminal within its width, elsewhere without breaking a line."""
    width = _out.width if _out.is_terminal else None
    console = _out if width else Console(width=_UNBROKEN_WIDTH, force_terminal=False)
    for part in tables(cells, closed=closed, width=width):
        console.print(part)


def _policies(text: str) -> list[Policy]:
    return [Policy.parse(part) for part in split_outside(text, ",")]


def _numbers(text: str, flag: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ReplayError(f"got {flag} {text!r}; expected numbers with commas between") from error


def _run(plan: Plan, resume: Path | None, threads: int, ray: str | None) -> list[Cell]:
    with closing(RayRunner(ray) if ray else ThreadRunner(threads or None)) as runner:
        # The sweep checks its policies first: the bar appears only when simulations begin.
        return run_with_bar(
            _err, lambda bar: sweep(plan, resume=resume, runner=runner, progress=bar.show)
        )


def _loaded(plan: Plan, load_factor: float) -> Fleet:
    return plan.fleet.with_load(
        rate=1.0 if plan.closed else load_factor,
        concurrency=round(load_factor) if plan.closed else None,
    )


def _print_best(plan: Plan, seconds: float, threads: int) -> None:
    """Print between which figures the price of anarchy of the best policy lies, per load."""
    if plan.closed:
        raise ReplayError(
            "got --best-s with --concurrency; expected arrival times: a plan places each request"
        )
    requests = plan.workload(plan.seeds[0])
    for load_factor in plan.loads:
        best = find_best(
            requests,
            _loaded(plan, load_factor),
            plan.policies,
            e2e=1.0,
            seconds=seconds,
            threads=threads or None,
        )
        low, high = best.price(best.policy_cost_s)
        _out.print(
            f"load {load_factor:g}: best policy {best.policy}, price of anarchy by E2E "
            f"{low:.3f} to {high:.3f}; best found {best.cost_s / len(requests):.3f} s per request, "
            f"lower bound {best.lower_s / len(requests):.3f} s, {best.evaluations} plans",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _print_lost(plan: Plan) -> None:
    """Print what relaxing each limit saves, per load and policy."""
    for load_factor in plan.loads:
        for policy in plan.policies:
            found = what_is_lost(plan.workload, _loaded(plan, load_factor), policy, plan.seeds)
            for saving in found:
                _out.print(
                    f"load {load_factor:g}, {policy.label}: {saving.limit} saves "
                    f"{saving.e2e:.1%} of E2E ({saving.e2e_low:.1%} to {saving.e2e_high:.1%}), "
                    f"{saving.ttft:.1%} of TTFT ({saving.ttft_low:.1%} to {saving.ttft_high:.1%})",
                    highlight=False,
                    soft_wrap=True,
                    markup=False,
                )


def _require_folders(*files: Path | None) -> None:
    """Refuse a file whose folder does not exist, before minutes of simulation are lost.

    Raises:
        ReplayError: the folder of a file is missing.
    """
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ReplayError(f"got the file {file}; expected a file in a folder that exists")


def _write_json(path: Path, setting: dict[str, Any], cells: list[Cell]) -> None:
    path.write_text(
        json.dumps({"setting": setting, "cells": [asdict(cell) for cell in cells]}),
        encoding="utf-8",
    )


@app.command()
def replay(
    trace: simulation.Trace,
    policy: Annotated[
        str,
        typer.Option(
            envvar="WARDROP_REPLAY_POLICY",
            help="Policies: NAME or NAME(parameter=value,…), with commas between.",
        ),
    ] = "round_robin,least_loaded,dynamo",
    workers: simulation.Workers = 8,
    disagg: simulation.Disagg = None,
    timing: simulation.Timing = "polynomial",
    rate: Annotated[
        str, typer.Option(help="Loads: every gap of the trace is divided by each.")
    ] = "1",
    concurrency: Annotated[
        str | None, typer.Option(help="Closed loop: requests in flight, instead of --rate.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 1,
    part: simulation.Part = None,
    model: simulation.Model = None,
    trace_block_size: simulation.TraceBlockSize = None,
    spread_ticks: simulation.SpreadTicks = True,
    block_size: simulation.BlockSize = 64,
    num_blocks: simulation.NumBlocks = 16_384,
    max_num_seqs: simulation.MaxNumSeqs = 256,
    max_num_batched_tokens: simulation.MaxNumBatchedTokens = 8_192,
    kv_gbps: simulation.KvGbps = 64.0,
    feed_delay_ms: Annotated[
        float, typer.Option(min=0, help="Age of KV events when they reach the router.")
    ] = 0.0,
    feed_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Share of KV events that are lost.")
    ] = 0.0,
    metrics: Annotated[
        bool, typer.Option(help="Workers report every iteration, and the router learns its curves.")
    ] = False,
    metrics_delay_ms: Annotated[
        float, typer.Option(min=0, help="Age of a worker's report when it reaches the router.")
    ] = 0.0,
    metrics_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the workers' reports that are lost.")
    ] = 0.0,
    poa: Annotated[
        bool,
        typer.Option(help="Measure the price of anarchy: cost over the bound of any routing."),
    ] = False,
    best_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="Search this many seconds per load for the best routing of seed 0, by E2E.",
        ),
    ] = 0.0,
    lost: Annotated[
        bool,
        typer.Option(help="Show what a shared cache, memory, order or one more worker would save."),
    ] = False,
    ttft_slo_s: simulation.TtftSlo = 2.0,
    itl_slo_ms: simulation.ItlSlo = 50.0,
    tune_policy: Annotated[
        str | None,
        typer.Option(
            "--tune",
            help="Search this policy's parameters on the first half, score them on the second.",
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(help=f"What --tune minimises: {', '.join(OBJECTIVES)} (goodput: maximises)."),
    ] = "ttft",
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write every cell's figures and curves.")
    ] = None,
    csv_out: Annotated[
        Path | None, typer.Option("--csv", help="Write every cell's figures.")
    ] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", help="Write a self-contained report.")
    ] = None,
    resume: simulation.Resume = None,
    threads: simulation.Threads = 0,
    ray: simulation.Ray = None,
) -> None:
    """Replay TRACE through the production router, in front of simulated workers."""
    try:
        _require_folders(json_out, csv_out, html_out, resume)
        engine = Engine(
            block_size=block_size,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            timing=load_timing(timing),
        )
        fleet = simulation.fleet(workers, disagg, engine, kv_gbps)
        fleet = replace(
            fleet,
            feed_delay_ms=feed_delay_ms,
            feed_loss=feed_loss,
            metrics=metrics,
            metrics_delay_ms=metrics_delay_ms,
            metrics_loss=metrics_loss,
            anarchy_window=POA_WINDOW if poa else 0,
        )
        make = TraceSource(trace, trace_block_size, spread_ticks, parse_part(part), model=model)
        span_s = make(0).span_s
        if html_out or json_out:
            fleet = replace(fleet, sample_ms=max(span_s * 1e3 / 240, 50.0) if span_s else 1_000.0)
        loads = _numbers(concurrency, "--concurrency") if concurrency else _numbers(rate, "--rate")
        plan = Plan(
            make,
            fleet,
            _policies(tune_policy or policy),
            loads,
            range(seeds),
            concurrency is not None,
            Slo(ttft_slo_s, itl_slo_ms / 1e3),
        )
        if tune_policy:
            found = tune(plan, objective=objective, progress=lambda text: _err.print(text))
            cells = list(found.cells)
            _out.print(
                f"[bold]{found.policy.label}[/bold] ({found.tried} parameter sets tried): "
                f"{objective} {found.searched:.3f} of the defaults where searched, "
                f"[bold]{found.held_out:.3f}[/bold] on the part held out"
            )
        else:
            cells = _run(plan, resume, threads, ray)
        _print_tables(cells, closed=plan.closed)
        if best_s > 0:
            _print_best(plan, best_s, threads)
        if lost:
            _print_lost(plan)
        setting = {
            "trace": trace if not Path(trace).exists() else Path(trace).name,
            "part": part,
            "fleet": disagg or f"{workers} workers",
            "timing": Path(timing).name,
            "num_blocks": num_blocks,
            "block_size": block_size,
            "seeds": seeds,
            "closed_loop": plan.closed,
            "ttft_slo_s": ttft_slo_s,
            "itl_slo_ms": itl_slo_ms,
            "spread_ticks": spread_ticks,
        }
        if json_out:
            _write_json(json_out, setting, cells)
        if csv_out:
            write_csv(cells, csv_out)
        if html_out:
            write_html(html_out, setting, cells, plan.slo)
    except (ReplayError, ValueError, OSError) as error:
        _err.print(
            f"[red]wardrop replay:[/red] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from error
