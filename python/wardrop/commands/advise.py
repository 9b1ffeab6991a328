"""`wardrop advise`: which policy, settings, number of workers and split serve a trace best."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from wardrop.advise import OBJECTIVES, Question, advise, deployment, gather, page
from wardrop.advise.advice import sentences
from wardrop.commands import simulation
from wardrop.commands.simulation import run_with_bar
from wardrop.errors import InputError
from wardrop.replay.fleet import Engine
from wardrop.replay.run import Policy
from wardrop.replay.runners import RayRunner, ThreadRunner
from wardrop.replay.source import TraceSource, parse_part
from wardrop.slo import Slo
from wardrop.timing import load_timing

app = typer.Typer(add_completion=False, no_args_is_help=True)
_out = Console()
_err = Console(stderr=True)


@app.command("advise")
def advise_command(
    trace: simulation.Trace,
    running: Annotated[
        str, typer.Option(help="The policy in use: NAME or NAME(parameter=value,…)+queue(…).")
    ] = "dynamo",
    objective: Annotated[
        str, typer.Option(help=f"What to improve: {', '.join(OBJECTIVES)}.")
    ] = "ttft",
    workers: simulation.Workers = 8,
    disagg: simulation.Disagg = None,
    timing: simulation.Timing = "polynomial",
    loads: Annotated[
        str, typer.Option(help="Loads that are tried, relative to the trace; 1 must be among them.")
    ] = "0.5,1,1.5",
    seeds: Annotated[int, typer.Option(min=2, help="Repetitions, for the intervals.")] = 3,
    part: simulation.Part = None,
    model: simulation.Model = None,
    trace_block_size: simulation.TraceBlockSize = None,
    spread_ticks: simulation.SpreadTicks = True,
    block_size: simulation.BlockSize = 64,
    num_blocks: simulation.NumBlocks = 16_384,
    max_num_seqs: simulation.MaxNumSeqs = 256,
    max_num_batched_tokens: simulation.MaxNumBatchedTokens = 8_192,
    kv_gbps: simulation.KvGbps = 64.0,
    ttft_slo_s: simulation.TtftSlo = 2.0,
    itl_slo_ms: simulation.ItlSlo = 50.0,
    share: Annotated[
        float,
        typer.Option(min=0.01, max=0.999, help="Share of requests that must keep both limits."),
    ] = 0.95,
    try_workers: Annotated[bool, typer.Option(help="Try other numbers of workers.")] = True,
    try_split: Annotated[
        bool, typer.Option(help="Try splits into prefill and decode workers.")
    ] = True,
    try_limits: Annotated[
        bool,
        typer.Option(help="Try a shared cache, more memory, one more worker and other orders."),
    ] = True,
    out: Annotated[
        Path, typer.Option(help="Folder for the page, the configuration and the simulations.")
    ] = Path("out/advise"),
    threads: simulation.Threads = 0,
    ray: simulation.Ray = None,
) -> None:
    """Advise on TRACE: policy, settings, workers and split, with what each changes.

    Writes advice.html, wardrop.yaml and cells.jsonl into the folder of --out. An interrupted run
    continues where it stopped when it is started again with the same options.
    """
    try:
        engine = Engine(
            block_size=block_size,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            timing=load_timing(timing),
        )
        # Reports of the engines teach the router its latency curves, as in production.
        fleet = replace(simulation.fleet(workers, disagg, engine, kv_gbps), metrics=True)
        question = Question(
            TraceSource(
                trace,
                trace_block_size,
                spread_ticks,
                parse_part(part),
                redraws=True,
                model=model,
            ),
            fleet,
            Policy.parse(running),
            objective,
            Slo(ttft_slo_s, itl_slo_ms / 1e3),
            seeds,
            _loads(loads),
            share,
            try_workers,
            try_split,
            try_limits,
        )
        question.workload(0)
        out.mkdir(parents=True, exist_ok=True)
        with closing(RayRunner(ray) if ray else ThreadRunner(threads or None)) as runner:
            evidence = run_with_bar(
                _err,
                lambda bar: gather(
                    question,
                    resume=out / "cells.jsonl",
                    runner=runner,
                    progress=lambda stage, done, total: bar.show(done, total, stage),
                ),
            )
        advice = advise(question, evidence)
        config = deployment(question, advice)
        (out / "wardrop.yaml").write_text(config, encoding="utf-8")
        (out / "advice.html").write_text(page(question, evidence, advice, config), encoding="utf-8")
    except (InputError, ValueError, OSError) as error:
        _err.print(
            f"[red]wardrop advise:[/red] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from error
    for text in sentences(question, evidence, advice):
        _out.print(f"• {escape(text)}", highlight=False, soft_wrap=True)
    _out.print(f"Page: {out / 'advice.html'}   Configuration: {out / 'wardrop.yaml'}")


def _loads(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"got --loads {text!r}; expected numbers with commas between") from error
