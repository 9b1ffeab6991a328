"""Simulations and their figures in one file, so that an interrupted run can go on."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from bench.adapt.cells import Cell, workload
from bench.adapt.settings import changes

from wardrop.control.sample import Sample
from wardrop.replay import Policy
from wardrop.replay.controlled import ControlledRun
from wardrop.replay.run import Result, result_of

THEN = " > "
"""Between the settings of a schedule, one per phase. A static setting stands alone."""

Row = dict[str, Any]


def play(
    cell: Cell, arm: str, seed: int, seen: list[tuple[float, Sample]] | None = None
) -> tuple[Result, ControlledRun]:
    """Run one arm: a setting, a setting with a controller, or a schedule of settings.

    Args:
        cell: the traffic.
        arm: text of `Policy.parse`, or one per phase with `THEN` between.
        seed: seed of requests and ties.
        seen: takes time and sample of every poll.
    """
    schedule = arm.split(THEN)
    first, fleet, drawn = Policy.parse(schedule[0]), cell.fleet(), workload(cell, seed)
    parameters = {"acts": False} if first.controller is None else first.controller
    kept: list[tuple[float, Sample]] = [] if seen is None else seen

    def take(at_s: float, sample: Sample) -> None:
        kept.append((at_s, sample))

    run = ControlledRun(drawn, fleet, first.routers(fleet, seed), seed, parameters, take)
    for start_s, before, after in zip(cell.starts_s[1:], schedule, schedule[1:], strict=False):
        run.advance(start_s)
        if after != before:
            run.door.change(changes(after), "hand", "the schedule")
    run.advance()
    return result_of(drawn, fleet, run.finish(), run.audit), run


def figures(cell: Cell, arm: str, seed: int) -> Row:
    """Figures of one run; times in seconds.

    `segments` has per phase the count and the sum of E2E of the requests that arrived in it.
    `regimes` are those that the detector entered, and `moves` the controller's own changes.
    """
    result, _ = play(cell, arm, seed)
    done, e2e_s = result.complete, result.e2e_ms / 1e3
    summary = result.summary()
    phase = np.searchsorted(1e3 * np.array(cell.starts_s[1:-1]), result.arrival_ms, side="right")
    own = [record for record in result.audit if record.by == "controller"]
    return {
        "e2e": summary["e2e_mean_s"],
        "ttft": summary["ttft_mean_s"],
        "p99": summary["ttft_p99_s"],
        "itl": summary["itl_mean_ms"] / 1e3,
        "lost": 1 - summary["attainment"],
        "refused": float(1 - done.mean()),
        "segments": [
            [int(here.sum()), float(e2e_s[here].sum())]
            for here in (done & (phase == at) for at in range(len(cell.phases)))
        ],
        "regimes": [str(r.after) for r in own if r.event == "regime"],
        "moves": [
            [r.at_s, r.event, r.setting, r.after]
            for r in own
            if r.event in ("change", "kept", "rolled_back")
        ],
    }


@dataclass
class Runs:
    """The finished simulations.

    Attributes:
        path: JSON file, one row per simulation, written after each.
        minutes: minutes after which no further simulation begins.
        found: rows by cell, arm and seed.
    """

    path: Path
    minutes: float = float("inf")
    found: dict[tuple[str, str, int], Row] = field(default_factory=dict[tuple[str, str, int], Row])

    def __post_init__(self) -> None:
        self._end = time.monotonic() + 60 * self.minutes
        if self.path.is_file():
            for row in json.loads(self.path.read_text(encoding="utf-8")):
                self.found[row.pop("cell"), row.pop("arm"), row.pop("seed")] = row

    def run(self, cell: Cell, arm: str, seed: int) -> bool:
        """Run a missing simulation; False once time is up."""
        if (cell.name, arm, seed) in self.found:
            return True
        if time.monotonic() > self._end:
            return False
        row = _rounded(figures(cell, arm, seed))
        self.found[cell.name, arm, seed] = row
        rows = (
            json.dumps({"cell": cell, "arm": arm, "seed": seed, **row}, ensure_ascii=False)
            for (cell, arm, seed), row in self.found.items()
        )
        written = self.path.with_suffix(".tmp")
        written.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
        written.replace(self.path)
        return True

    def arms(self, cell: Cell, seeds: int) -> list[str]:
        """Arms that ran on all seeds."""
        names = dict.fromkeys(arm for name, arm, _ in self.found if name == cell.name)
        return [a for a in names if all((cell.name, a, s) in self.found for s in range(seeds))]

    def values(self, cell: Cell, arm: str, metric: str, seeds: int) -> list[float]:
        """One figure per seed."""
        return [self.found[cell.name, arm, seed][metric] for seed in range(seeds)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in cast(Row, value).items()}
    if isinstance(value, list):
        return [_rounded(one) for one in cast(list[Any], value)]
    return float(f"{value:.6g}") if isinstance(value, float) else value
