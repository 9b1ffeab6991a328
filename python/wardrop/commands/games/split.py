"""`wardrop games split`: how many workers prefill and how many decode."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wardrop.commands.games.report import Report, bar, exits_cleanly
from wardrop.games.errors import GameError
from wardrop.games.resource.queueing import Engine, QueueingSource
from wardrop.games.resource.split import SplitChoice, choose_split, every_split
from wardrop.games.trace import Trace, Workload, generate_trace, read_trace
from wardrop.slo import Slo
from wardrop.timing import TimingCurves, builtin_timing, read_timing

_ASSUMPTIONS = (
    "a queueing model: no routing, KV transfer, chunked prefill or preemption",
    "ITL is a request's mean over its tokens, waiting for KV room included",
    "goodput counts requests within both limits, over the time in which requests arrive",
)


@exits_cleanly
def split(
    gpus: Annotated[int, typer.Option(envvar="WARDROP_GPUS", help="GPUs to share out.")],
    trace: Annotated[
        Path | None, typer.Option(envvar="WARDROP_TRACE", help="Mooncake JSONL; else generated.")
    ] = None,
    ttft: Annotated[
        float, typer.Option(envvar="WARDROP_TTFT_S", help="TTFT limit, seconds.")
    ] = 0.5,
    itl: Annotated[
        float, typer.Option(envvar="WARDROP_ITL_S", help="ITL limit, seconds a token.")
    ] = 0.03,
    gpus_per_worker: Annotated[
        int, typer.Option(envvar="WARDROP_GPUS_PER_WORKER", help="Tensor-parallel width.")
    ] = 4,
    timing: Annotated[
        Path | None,
        typer.Option(envvar="WARDROP_TIMING", help="Timing table; else built-in."),
    ] = None,
    speed: Annotated[
        float, typer.Option(envvar="WARDROP_SPEED", help="Load: divides all gaps by this.")
    ] = 1.0,
    reuse: Annotated[
        float, typer.Option(envvar="WARDROP_REUSE", help="Share of ideal prefix reuse, 0 to 1.")
    ] = 0.0,
    requests: Annotated[
        int | None, typer.Option(envvar="WARDROP_REQUESTS", help="Only the first so many.")
    ] = None,
    seed: Annotated[int, typer.Option(envvar="WARDROP_SEED", help="Of a generated trace.")] = 1,
    brute_force: Annotated[
        bool,
        typer.Option(
            "--brute-force", envvar="WARDROP_BRUTE_FORCE", help="Run every split and compare."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(envvar="WARDROP_PLOT_FILE", help="Write the picture here (.png).")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", envvar="WARDROP_JSON", help="Print one JSON object.")
    ] = False,
) -> None:
    """How many workers should prefill and how many decode.

    Each pool has an attainment curve: the share of requests within the TTFT limit by prefill
    workers, within the ITL limit by decode workers. Every split that leaves no useful worker idle
    is an equilibrium. The search starts from the equilibrium with equal marginal gains and runs the
    whole splits around it. Of the splits within 0.5 % of the best goodput, the command chooses the
    split nearest to that equilibrium.

    Example: `wardrop games split --trace T.jsonl.gz --gpus 24 --ttft 0.5 --itl 0.03`
    """
    workers = _workers(gpus, gpus_per_worker)
    source = QueueingSource(
        trace_or_generated(trace, seed, speed, requests),
        Engine(timing_or_builtin(timing)),
        Slo(ttft, itl),
        reuse,
    )
    choice = choose_split(source, workers)
    shown = every_split(source, workers) if brute_force else choice.neighbours
    values: dict[str, object] = {
        "prefill_workers": choice.prefill_workers,
        "decode_workers": choice.decode_workers,
        "gpus_per_worker": gpus_per_worker,
        "attainment": asdict(choice.attainment),
        "splits": {str(p): asdict(at) for p, at in shown.items()},
        "variational_prefill_workers": choice.variational.prefill_workers,
        "marginal_gain": choice.gain,
        "marginal_loss": choice.loss,
        "equilibria": choice.equilibria,
        "ttft_ceiling": source.ceiling,
        "requests": source.trace.requests,
        "offered_rps": source.trace.requests / source.trace.span_s,
    }
    report = Report(_title(choice, gpus_per_worker), values, assumptions=_ASSUMPTIONS)
    _describe(report, source, choice)
    offered = source.trace.requests / source.trace.span_s
    report.table(
        ("split P:D", "TTFT ok", "ITL ok", "both", "goodput/s", "TTFT p99 s", "ITL p99 s"),
        [
            (
                f"{'>' if p == choice.prefill_workers else ' '} {p}:{workers - p}",
                f"{at.ttft:.3f}",
                f"{at.itl:.3f}",
                f"{at.both:.3f}",
                f"{at.goodput_rps:.3f}",
                f"{at.ttft_p99_s:.3f}",
                f"{at.itl_p99_s:.4f}",
            )
            for p, at in shown.items()
        ],
    )
    report.lines.append(f"goodput, full bar = {offered:.3f} requests/s offered")
    for p, at in shown.items():
        report.lines.append(f"  {p:>3}:{workers - p:<3} {bar(at.goodput_rps / offered)}")
    if brute_force:
        best = max(at.goodput_rps for at in shown.values())
        share = choice.attainment.goodput_rps / best if best > 0 else 1.0
        values["share_of_best"] = share
        report.lines.append(f"brute force: the chosen split gives {100 * share:.2f} % of the best")
    if plot is not None:
        from wardrop.games.plots import plot_split

        plot_split(shown, choice, plot)
        values["plot"] = str(plot)
    report.show(json)


def _workers(gpus: int, gpus_per_worker: int) -> int:
    if gpus_per_worker < 1 or gpus // gpus_per_worker < 2:
        raise GameError(
            f"got {gpus} GPUs at {gpus_per_worker} a worker; expected at least 2 workers, one for "
            "each pool. Raise --gpus or lower --gpus-per-worker"
        )
    return gpus // gpus_per_worker


def trace_or_generated(
    path: Path | None, seed: int, speed: float, requests: int | None = None
) -> Trace:
    """The trace at `path`, or a seeded one (6 requests/s for 200 s), at the given load."""
    if path is None:
        trace = generate_trace(Workload(rate_rps=6.0, seconds=200.0, input_mean=4_000), seed)
        return (trace if requests is None else trace.first(requests)).faster(speed)
    return read_trace(path, limit=requests).faster(speed)


def timing_or_builtin(path: Path | None) -> TimingCurves:
    """The table at `path`, or the coarse built-in one."""
    return builtin_timing() if path is None else read_timing(path)


def _title(choice: SplitChoice, gpus_per_worker: int) -> str:
    p, d = choice.prefill_workers, choice.decode_workers
    return (
        f"split: {p} prefill + {d} decode workers "
        f"({p * gpus_per_worker} + {d * gpus_per_worker} GPUs)"
    )


def _describe(report: Report, source: QueueingSource, choice: SplitChoice) -> None:
    trace = source.trace
    report.lines += [
        f"workload {trace.name}: {trace.requests} requests, "
        f"{trace.requests / trace.span_s:.3f}/s, mean {trace.input_tokens.mean():.0f} in and "
        f"{trace.output_tokens.mean():.0f} out tokens",
        f"limits: TTFT {source.slo.ttft_s} s, ITL {source.slo.itl_s} s; an idle worker keeps "
        f"the TTFT limit for {100 * source.ceiling:.1f} % of requests: no split does better",
        f"game: {choice.equilibria} splits are equilibria; marginal gains meet at "
        f"{choice.variational.prefill_workers:g} prefill workers; one more there would gain "
        f"{choice.gain:.4f} TTFT attainment and cost {choice.loss:.4f} ITL attainment",
    ]
