"""`wardrop replay`: traces through the production router, in a simulated fleet."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wardrop.calls import split_outside
from wardrop.replay.anarchy import POA_WINDOW
from wardrop.replay.fleet import Engine, Fleet, Transfer
from wardrop.replay.generate import GENERATORS, generate
from wardrop.replay.report import write_html
from wardrop.replay.run import Policy
from wardrop.replay.sweep import Cell, Plan, sweep
from wardrop.replay.table import tables, write_csv
from wardrop.replay.traces import load
from wardrop.replay.tune import OBJECTIVES, tune
from wardrop.replay.workload import ReplayError, Workload
from wardrop.slo import Slo
from wardrop.timing import load_timing

app = typer.Typer(add_completion=False, no_args_is_help=True)
_out = Console()
_err = Console(stderr=True)

_UNBROKEN_WIDTH = 100_000
"""Width in characters of output that is not a terminal: wider than every table."""

_TRACE_HELP = (
    "Trace (Mooncake or Dynamo .jsonl, Azure .csv; plain, .gz, .zst) or generator: "
    f"{', '.join(GENERATORS)}, each with (parameter=value,…)."
)


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


def _fleet(workers: int, disagg: str | None, engine: Engine, transfer: Transfer) -> Fleet:
    if disagg is None:
        return Fleet(workers=workers, engine=engine)
    prefill, cross, decode = disagg.lower().partition("x")
    if (
        not cross
        or not prefill.isdigit()
        or not decode.isdigit()
        or not int(prefill)
        or not int(decode)
    ):
        raise ReplayError(f"got --disagg {disagg!r}; expected PREFILLxDECODE, for instance 1x5")
    return Fleet.split(int(prefill), int(decode), engine=engine, transfer=transfer)


def _workloads(
    trace: str, block_size: int | None, ticks: bool, part: tuple[float, float] | None
) -> Any:
    def make(seed: int) -> Workload:
        name = trace.partition("(")[0]
        made = (
            generate(trace, seed)
            if name in GENERATORS and not Path(trace).exists()
            else load(trace, block_size=block_size, spread_ticks=ticks, seed=seed)
        )
        return made.part(*part) if part else made

    return make


def _part(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        return (float(start or 0), float(stop or 1)) if colon else (0.0, float(start))
    except ValueError as error:
        raise ReplayError(
            f"got --part {text!r}; expected START:STOP, for instance 0:0.5"
        ) from error


def _run(plan: Plan, resume: Path | None, threads: int) -> list[Cell]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=_err)
    task = bar.add_task("simulations", total=None)

    def show(done: int, total: int) -> None:
        # The sweep checks its policies first: the bar appears only when simulations begin.
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        return sweep(plan, resume=resume, threads=threads or None, progress=show)
    finally:
        if bar.live.is_started:
            bar.stop()


def _write_json(path: Path, setting: dict[str, Any], cells: list[Cell]) -> None:
    path.write_text(
        json.dumps({"setting": setting, "cells": [asdict(cell) for cell in cells]}),
        encoding="utf-8",
    )


@app.command()
def replay(
    trace: Annotated[str, typer.Argument(help=_TRACE_HELP)],
    policy: Annotated[
        str,
        typer.Option(
            envvar="WARDROP_REPLAY_POLICY",
            help="Policies: NAME or NAME(parameter=value,…), with commas between.",
        ),
    ] = "round_robin,least_loaded,dynamo",
    workers: Annotated[int, typer.Option(min=1, help="Aggregated workers.")] = 8,
    disagg: Annotated[
        str | None, typer.Option(help="A split fleet instead: PREFILLxDECODE workers.")
    ] = None,
    timing: Annotated[
        str,
        typer.Option(
            envvar="WARDROP_REPLAY_TIMING",
            help="Timing table (.npz), or `polynomial`: Dynamo's mock default.",
        ),
    ] = "polynomial",
    rate: Annotated[
        str, typer.Option(help="Loads: every gap of the trace is divided by each.")
    ] = "1",
    concurrency: Annotated[
        str | None, typer.Option(help="Closed loop: requests in flight, instead of --rate.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 1,
    part: Annotated[
        str | None, typer.Option(help="Only this part of the trace, as shares START:STOP.")
    ] = None,
    trace_block_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens per hash id; by default as the rows imply.")
    ] = None,
    spread_ticks: Annotated[
        bool, typer.Option(help="Spread requests that share a timestamp up to the next one.")
    ] = True,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per KV block.")] = 64,
    num_blocks: Annotated[int, typer.Option(min=1, help="KV blocks per worker.")] = 16_384,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences per engine iteration.")] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens per engine iteration.")
    ] = 8_192,
    kv_gbps: Annotated[
        float,
        typer.Option(min=0.001, help="KV link of a split fleet, gigabytes per second and worker."),
    ] = 64.0,
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
    poa: Annotated[bool, typer.Option(help="Measure the price of anarchy and its parts.")] = False,
    ttft_slo_s: Annotated[
        float, typer.Option(min=0, help="Goodput: limit of the time to first token.")
    ] = 2.0,
    itl_slo_ms: Annotated[
        float, typer.Option(min=0, help="Goodput: limit of a request's mean time between tokens.")
    ] = 50.0,
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
    resume: Annotated[
        Path | None,
        typer.Option(help="JSON-lines file of finished simulations, which are not run again."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Simulations at once; 0: all cores.")] = 0,
) -> None:
    """Replay TRACE through the production router, in front of simulated workers."""
    try:
        engine = Engine(
            block_size=block_size,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            timing=load_timing(timing),
        )
        fleet = _fleet(workers, disagg, engine, Transfer(bandwidth_bytes_per_s=kv_gbps * 1e9))
        fleet = replace(
            fleet,
            feed_delay_ms=feed_delay_ms,
            feed_loss=feed_loss,
            metrics=metrics,
            metrics_delay_ms=metrics_delay_ms,
            metrics_loss=metrics_loss,
            anarchy_window=POA_WINDOW if poa else 0,
        )
        make = _workloads(trace, trace_block_size, spread_ticks, _part(part))
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
            cells = _run(plan, resume, threads)
        _print_tables(cells, closed=plan.closed)
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
    except (ReplayError, ValueError) as error:
        _err.print(
            f"[red]wardrop replay:[/red] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from error
