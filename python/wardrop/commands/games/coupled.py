"""`wardrop games coupled`: does the planner's loop oscillate, and which settings prevent it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from wardrop.commands.games.report import Report, exits_cleanly
from wardrop.commands.games.split import timing_or_builtin
from wardrop.games.coupled.advice import Advice, StabilityMap, advise, rest_point, stability_map
from wardrop.games.coupled.loop import Fleet
from wardrop.games.errors import GameError
from wardrop.slo import Slo


@exits_cleanly
def coupled(
    workers: Annotated[int, typer.Option(envvar="WARDROP_WORKERS", help="Both pools.")] = 12,
    rate: Annotated[float, typer.Option(envvar="WARDROP_RATE", help="Requests/s at first.")] = 22.0,
    step: Annotated[
        float, typer.Option(envvar="WARDROP_STEP", help="Load factor from second 300 on.")
    ] = 1.25,
    families: Annotated[
        int, typer.Option(envvar="WARDROP_FAMILIES", help="Prompt families, Zipf popularity.")
    ] = 6,
    prefix: Annotated[
        float, typer.Option(envvar="WARDROP_PREFIX", help="Shared tokens of a family.")
    ] = 6_000.0,
    private: Annotated[
        float, typer.Option(envvar="WARDROP_PRIVATE", help="Unshared tokens of a prompt.")
    ] = 2_000.0,
    output: Annotated[
        float, typer.Option(envvar="WARDROP_OUTPUT", help="Output tokens of a request.")
    ] = 500.0,
    cache: Annotated[
        float, typer.Option(envvar="WARDROP_CACHE", help="Reusable tokens a prefill worker holds.")
    ] = 30_000.0,
    ttft: Annotated[float, typer.Option(envvar="WARDROP_TTFT_S", help="TTFT limit, s.")] = 0.5,
    itl: Annotated[float, typer.Option(envvar="WARDROP_ITL_S", help="ITL limit, s.")] = 0.03,
    delay: Annotated[
        float, typer.Option(envvar="WARDROP_DELAY_S", help="From signal to a serving worker, s.")
    ] = 90.0,
    show_map: Annotated[
        bool, typer.Option("--map", envvar="WARDROP_MAP", help="Also run gain × delay.")
    ] = False,
    timing: Annotated[
        Path | None,
        typer.Option(envvar="WARDROP_TIMING", help="Timing table; else built-in."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", envvar="WARDROP_JSON", help="Print one JSON object.")
    ] = False,
) -> None:
    """Cache → overlap → routing → pressure → split, with the planner's delay.

    The command holds each split to find where the loop would rest. The linear theory gives the gain
    at which the loop starts to ring at this delay. A run of the loop checks the recommendation.
    `--json` is what a planner can read.

    Example: `wardrop games coupled --delay 90 --json > planner.json`
    """
    if families < 1 or rate <= 0:
        raise GameError(f"got {families} families at {rate} requests/s; expected both above 0")
    weights = 1.0 / np.arange(1, families + 1)
    fleet = Fleet(
        workers=workers,
        rates=rate * weights / weights.sum(),
        prefix_tokens=np.full(families, prefix),
        private_tokens=private,
        output_tokens=output,
        cache_tokens=cache,
        timing=timing_or_builtin(timing),
        slo=Slo(ttft, itl),
        step=step,
    )
    rest = rest_point(fleet)
    advice = advise(fleet, delay, rest)
    values = advice.as_dict() | {"slope_per_worker": rest.slope}
    del values["assumptions"]
    report = Report(_title(advice), values, assumptions=advice.assumptions)
    report.lines += _lines(advice, rest.slope)
    if show_map:
        gains = [factor / rest.slope for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
        chart = stability_map(fleet, gains, (0.0, 30.0, 60.0, 120.0), rest)
        values["map"] = chart.__dict__
        _tabulate(report, chart)
    report.show(json)


def _title(advice: Advice) -> str:
    state = "at rest" if advice.verified_stable else "NOT at rest: do not let it run"
    split = f"{advice.prefill_workers} prefill + {advice.decode_workers} decode workers"
    return f"coupled: {split}, {state}"


def _lines(advice: Advice, slope: float) -> list[str]:
    naive = "oscillates" if advice.default_oscillates else "comes to rest"
    return [
        f"one prefill worker more lowers the signal by {slope:.3f}",
        f"at {advice.delay_s:g} s delay the linear loop rings from a gain of "
        f"{advice.critical_gain:.3f} workers per unit of log error",
        f"a planner that moves 1/{slope:.3f} = {1 / slope:.3f} workers per unit {naive}",
        f"use a gain of {advice.gain_workers_per_log_error:.3f}: move one worker when the signal "
        f"passes ±{advice.dead_band_log_error:.3f}, every {advice.interval_s:g} s"
        + (", never while a move is under way" if advice.wait_for_moves else ""),
    ]


def _tabulate(report: Report, chart: StabilityMap) -> None:
    report.lines.append("swing of the prefill pool in workers (~ still turning), gain by delay")
    report.table(
        ("gain", *(f"{delay:g} s" for delay in chart.delays_s)),
        [
            (
                f"{gain:.3f}",
                *(
                    f"{swing}{'~' if turning else ' '}"
                    for swing, turning in zip(swings, turns, strict=True)
                ),
            )
            for gain, swings, turns in zip(chart.gains, chart.swing, chart.oscillates, strict=True)
        ]
        + [("rings from", *(f"{gain:.3f} " for gain in chart.critical))],
    )
