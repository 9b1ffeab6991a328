"""Options of the commands that simulate: the trace, the fleet, its engines and its limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wardrop.replay.fleet import Engine, Fleet, Transfer
from wardrop.replay.generate import GENERATORS
from wardrop.replay.workload import ReplayError

T = TypeVar("T")

Trace = Annotated[
    str,
    typer.Argument(
        help="Trace (decision records of --records, Mooncake or Dynamo .jsonl, Azure .csv; plain, "
        ".gz, .zst), a folder of decision records, or generator: "
        f"{', '.join(GENERATORS)}, each with (parameter=value,…)."
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Aggregated workers.")]
Disagg = Annotated[str | None, typer.Option(help="A split fleet instead: PREFILLxDECODE workers.")]
Timing = Annotated[
    str,
    typer.Option(
        envvar="WARDROP_REPLAY_TIMING",
        help="Timing table (.npz), or `polynomial`: Dynamo's mock default.",
    ),
]
Part = Annotated[
    str | None, typer.Option(help="Only this part of the trace, as shares START:STOP.")
]
Model = Annotated[
    str | None, typer.Option(help="Model of the decision records, where they hold several models.")
]
TraceBlockSize = Annotated[
    int | None, typer.Option(min=1, help="Tokens per hash id; by default as the rows imply.")
]
SpreadTicks = Annotated[
    bool, typer.Option(help="Spread requests that share a timestamp up to the next one.")
]
BlockSize = Annotated[int, typer.Option(min=1, help="Tokens per KV block.")]
NumBlocks = Annotated[int, typer.Option(min=1, help="KV blocks per worker.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Sequences per engine iteration.")]
MaxNumBatchedTokens = Annotated[int, typer.Option(min=1, help="Tokens per engine iteration.")]
KvGbps = Annotated[
    float,
    typer.Option(min=0.001, help="KV link of a split fleet, gigabytes per second and worker."),
]
TtftSlo = Annotated[float, typer.Option(min=0, help="Goodput: limit of the time to first token.")]
ItlSlo = Annotated[
    float,
    typer.Option(min=0, help="Goodput: limit of a request's mean time between tokens."),
]
Resume = Annotated[
    Path | None,
    typer.Option(help="JSON-lines file of finished simulations, which are not run again."),
]
Threads = Annotated[int, typer.Option(min=0, help="Simulations at once; 0: all cores.")]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run the simulations on the Ray cluster at ADDRESS (`auto` or HOST:PORT) instead.",
    ),
]


def fleet(workers: int, disagg: str | None, engine: Engine, kv_gbps: float) -> Fleet:
    """The fleet that the options describe.

    Raises:
        ReplayError: the text of a split is not PREFILLxDECODE.
    """
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
    transfer = Transfer(bandwidth_bytes_per_s=kv_gbps * 1e9)
    return Fleet.split(int(prefill), int(decode), engine=engine, transfer=transfer)


class SimulationBar:
    """A progress bar on standard error. It appears with the first simulation."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("simulations", total=None)

    def show(self, done: int, total: int, stage: str = "simulations") -> None:
        """Show finished and all simulations of a stage."""
        self._bar.start()
        self._bar.update(self._task, description=stage, completed=done, total=total)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar.live.is_started:
            self._bar.stop()


def run_with_bar(console: Console, work: Callable[[SimulationBar], T]) -> T:
    """Run `work` with a progress bar that ends with it."""
    bar = SimulationBar(console)
    try:
        return work(bar)
    finally:
        bar.close()
