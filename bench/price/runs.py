"""Simulations and their figures as JSON lines, so that an interrupted run can go on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench.price.cells import Cell, Family, cells, workload
from bench.price.rules import KNOWN, OURS, static_rules

from wardrop.replay import Policy, simulate

METRICS = {
    "ttft": "mean TTFT",
    "p99": "p99 TTFT",
    "itl": "ITL",
    "e2e": "E2E",
    "goodput": "goodput loss",
    "long": "p99 of the longest 10 %",
}
LOSS_FLOOR = 0.01
"""Shares of missed requests below this count as this: a ratio of two tiny shares says nothing."""

Key = tuple[Cell, str, int]


def figures(cell: Cell, policy: str, seed: int) -> dict[str, float]:
    """Simulate one policy in one cell: one figure per metric, lower is better."""
    drawn = workload(cell.family.trace, seed)
    result = simulate(drawn, cell.fleet(), Policy.parse(policy), seed=seed)
    summary = result.summary()
    done = result.complete
    ttft = result.ttft_ms[done] / 1e3
    long = ttft[result.input_tokens[done] >= np.quantile(result.input_tokens[done], 0.9)]
    return {
        "ttft": summary["ttft_mean_s"],
        "p99": summary["ttft_p99_s"],
        "itl": summary["itl_mean_ms"],
        "e2e": summary["e2e_mean_s"],
        "goodput": max(1.0 - summary["attainment"], LOSS_FLOOR),
        "long": float(np.percentile(long, 99)),
        "reuse": summary["reuse"],
        "complete": float(done.mean()),
    }


@dataclass
class Runs:
    """The finished simulations.

    Attributes:
        path: JSON-lines file, appended to. Static rules in an exported .json file of the same name
            count as run, because they do not depend on the price.
        minutes: minutes after which no further simulation begins.
        found: the figures.
        grid_done: names of cells whose whole grid ran before; only its winners are stored.
    """

    path: Path
    minutes: float = float("inf")
    found: dict[Key, dict[str, float]] = field(default_factory=dict[Key, dict[str, float]])
    grid_done: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self._end = time.monotonic() + 60 * self.minutes
        self.path.parent.mkdir(parents=True, exist_ok=True)
        exported = self.path.with_suffix(".json")
        if exported.is_file() or self.path == exported:
            self._read(json.loads(exported.read_text(encoding="utf-8")))
        if self.path == exported:
            return
        self.found = {key: row for key, row in self.found.items() if not key[1].startswith("toll")}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                cell = Cell(Family(**row["family"]), row["load"])
                self.found[cell, row["policy"], row["seed"]] = row["figures"]

    def run(self, cell: Cell, policies: Iterable[str], seeds: Iterable[int]) -> None:
        """Run the missing simulations, within `minutes`."""
        for policy in policies:
            for seed in seeds:
                if self.path.suffix == ".json":
                    raise ValueError(f"{self.path} is read only: give a .jsonl file to run into")
                if (cell, policy, seed) in self.found or time.monotonic() > self._end:
                    continue
                figure = self.found[cell, policy, seed] = figures(cell, policy, seed)
                row = {
                    "family": asdict(cell.family),
                    "load": cell.load,
                    "policy": policy,
                    "seed": seed,
                    "figures": figure,
                }
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")

    def tuned(self, cell: Cell, policies: Iterable[str], seed: int = 0) -> dict[str, str]:
        """Per metric the best of `policies` on one seed, among the policies that have run."""
        ran = [policy for policy in policies if (cell, policy, seed) in self.found]
        return {
            metric: min(ran, key=lambda policy: self.found[cell, policy, seed][metric])
            for metric in (METRICS if ran else ())
        }

    def _read(self, record: dict[str, Any]) -> None:
        names: list[str] = record["figures"]
        self.grid_done = set(record["tuned"])
        for cell in cells():
            for policy, by_seed in record["cells"].get(cell.name, {}).items():
                for seed, values in by_seed.items():
                    self.found[cell, policy, int(seed)] = dict(zip(names, values, strict=True))

    def export(self, path: Path) -> None:
        """Write the figures of the tables in one compact file, to five digits.

        Of the grid, the file holds the winners, the well-known rules, and the names of the cells
        whose whole grid has run.
        """
        names = list(METRICS)
        kept: dict[str, dict[str, dict[int, list[float]]]] = {}
        needed = {cell: {*OURS, *self.contenders(cell)} for cell in cells()}
        for (cell, policy, seed), figure in self.found.items():
            if policy not in needed[cell]:
                continue
            values = [float(f"{figure[name]:.5g}") for name in names]
            kept.setdefault(cell.name, {}).setdefault(policy, {})[seed] = values
        text = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in kept.items())
        tuned = [cell.name for cell in cells() if self.is_tuned(cell)]
        head = f'{{"figures": {json.dumps(names)},\n"tuned": {json.dumps(tuned)},\n"cells": {{\n'
        path.write_text(f"{head}{text}\n}}}}\n", encoding="utf-8")

    def is_tuned(self, cell: Cell) -> bool:
        """Whether the whole grid has run in the cell on seed 0."""
        grid = static_rules(cell.family.is_kind)
        return cell.name in self.grid_done or all((cell, rule, 0) in self.found for rule in grid)

    def contenders(self, cell: Cell) -> list[str]:
        """The static rules judged on all seeds: the best of each metric on seed 0, and `KNOWN`."""
        best = self.tuned(cell, static_rules(cell.family.is_kind)).values()
        return list(dict.fromkeys([*KNOWN, *best]))

    def mean(self, cell: Cell, policy: str, metric: str, seeds: int) -> float | None:
        """Mean over the seeds; None unless every seed has run."""
        rows = [self.found.get((cell, policy, seed)) for seed in range(seeds)]
        values = [row[metric] for row in rows if row is not None]
        return float(np.mean(values)) if len(values) == seeds else None
