"""Sweeps: simulations of policies × loads × seeds, on all cores, resumable.

A cell is one simulation. Its figures go to a JSON-lines file as soon as they are known. A sweep
skips every cell that it finds in the file. Under every policy, equal seeds give the same
requests at the same times, so policies are compared in pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardrop.replay.fleet import Fleet
from wardrop.replay.run import Policy, Result, simulate
from wardrop.replay.workload import ReplayError, Workload, from_lists
from wardrop.slo import Slo

_CDF_POINTS = 101
_HEAT_COLUMNS = 120


@dataclass(frozen=True)
class Cell:
    """One simulation.

    Attributes:
        policy: label of the policy.
        load: rate factor, or requests in flight in a closed loop.
        seed: seed of the repetition.
        figures: figures by name, as from `Result.summary`.
        curves: percentiles 0 to 100 of TTFT (s) and ITL (ms), and the load of workers over time.
    """

    policy: str
    load: float
    seed: int
    figures: dict[str, float]
    curves: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)


@dataclass(frozen=True)
class Plan:
    """The simulations of a sweep.

    Attributes:
        workload: makes the workload of a seed. Repetitions differ in the workload (new spread of
            ticks, new draws of a generator) and in the seed of the routers.
        fleet: the fleet at load 1.
        policies: the policies to compare.
        loads: rate factors, or requests in flight.
        seeds: one repetition per seed.
        closed: whether `loads` are requests in flight.
        slo: limits for goodput.
    """

    workload: Callable[[int], Workload]
    fleet: Fleet
    policies: Sequence[Policy]
    loads: Sequence[float]
    seeds: Sequence[int]
    closed: bool = False
    slo: Slo = field(default_factory=Slo)

    def keys(self) -> list[tuple[int, float, int]]:
        """(policy index, load, seed) of every cell, cheapest load first."""
        return [
            (p, load, seed)
            for load in self.loads
            for seed in self.seeds
            for p in range(len(self.policies))
        ]

    def fingerprint(self, workload: Workload) -> str:
        """A hash of everything that a cell depends on, except its policy, load and seed."""
        head = hashlib.sha256(self.fleet.to_json(0).encode())
        head.update(
            json.dumps([asdict(self.slo), self.closed, workload.name, len(workload)]).encode()
        )
        for column in (
            workload.arrival_ms,
            workload.input_tokens,
            workload.output_tokens,
            workload.blocks,
        ):
            head.update(np.ascontiguousarray(column).tobytes())
        return head.hexdigest()[:16]


def run_cell(plan: Plan, workload: Workload, policy: Policy, load: float, seed: int) -> Cell:
    """Simulate one cell and keep its figures."""
    fleet = plan.fleet.with_load(
        rate=1.0 if plan.closed else load, concurrency=round(load) if plan.closed else None
    )
    result = simulate(workload, fleet, policy, seed=seed)
    return Cell(policy.label, load, seed, result.summary(plan.slo), _curves(result))


def _curves(result: Result) -> dict[str, Any]:
    percents = np.linspace(0, 100, _CDF_POINTS)
    done = result.complete
    curves: dict[str, Any] = {}
    if done.any():
        curves["ttft_s"] = np.percentile(result.ttft_ms[done] / 1e3, percents).round(6).tolist()
        itl = result.itl_ms[~np.isnan(result.itl_ms)]
        curves["itl_ms"] = np.percentile(itl, percents).round(4).tolist() if itl.size else []
    if result.sample_ms.size:
        # Mean sequences in the engine (running and waiting), per worker and stretch of time.
        load = (result.running + result.waiting).astype(float)
        columns = min(_HEAT_COLUMNS, load.shape[0])
        parts: list[NDArray[np.int64]] = np.array_split(np.arange(int(load.shape[0])), columns)
        curves["heat"] = [load[part].mean(axis=0).round(2).tolist() for part in parts]
        curves["heat_end_s"] = float(result.sample_ms[-1] / 1e3)
    return curves


def _read(path: Path, fingerprints: dict[int, str]) -> dict[tuple[str, float, int], Cell]:
    cells: dict[tuple[str, float, int], Cell] = {}
    if not path.is_file():
        return cells
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of an interrupted run
        if row.get("fingerprint") == fingerprints.get(row.get("seed")):
            cell = Cell(row["policy"], row["load"], row["seed"], row["figures"], row["curves"])
            cells[cell.policy, cell.load, cell.seed] = cell
    return cells


def sweep(
    plan: Plan,
    *,
    resume: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """Run every cell of a plan.

    Args:
        plan: the simulations.
        resume: JSON-lines file of finished cells; it is read first, then appended to.
        threads: simulations at once; all cores by default.
        progress: called with (finished, all) after each cell.

    Returns:
        Cells in the order of `Plan.keys`.

    Raises:
        ReplayError: the plan has no policy, no load or no seed.
        ValueError: a policy or field is not known; cells finished before it stay in `resume`.
    """
    if not plan.policies or not plan.loads or not plan.seeds:
        raise ReplayError("got an empty plan; expected at least one policy, one load and one seed")
    workloads = {seed: plan.workload(seed) for seed in plan.seeds}
    fingerprints = {seed: plan.fingerprint(workload) for seed, workload in workloads.items()}
    done = _read(resume, fingerprints) if resume else {}
    keys = plan.keys()
    labels = [policy.label for policy in plan.policies]
    todo = [key for key in keys if (labels[key[0]], key[1], key[2]) not in done]
    if todo:
        _check_policies(plan, workloads[plan.seeds[0]].block_size)
    if progress:
        progress(len(keys) - len(todo), len(keys))
    cells = _parallel(plan, workloads, todo, threads or os.cpu_count() or 1)
    for count, cell in enumerate(cells, 1):
        done[cell.policy, cell.load, cell.seed] = cell
        if resume:
            row = {"fingerprint": fingerprints[cell.seed], **asdict(cell)}
            with resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if progress:
            progress(len(keys) - len(todo) + count, len(keys))
    return [done[labels[p], load, seed] for p, load, seed in keys]


def _check_policies(plan: Plan, block_size: int) -> None:
    """Simulate one request per policy, so that a bad policy is refused before the sweep begins.

    Raises:
        ValueError: a policy or field is not known or out of range; the text names it.
    """
    one = np.ones(1, dtype=np.int64)
    request = from_lists("check", np.zeros(1), one, one, one, one, block_size)
    for policy in plan.policies:
        simulate(request, plan.fleet, policy)


def _parallel(
    plan: Plan, workloads: dict[int, Workload], todo: list[tuple[int, float, int]], threads: int
) -> Iterator[Cell]:
    with ThreadPoolExecutor(threads) as pool:
        queue = iter(todo)
        running: set[Future[Cell]] = set()

        def feed() -> None:
            # Only a few cells are submitted at a time, so that an error ends the sweep soon.
            for p, load, seed in queue:
                running.add(
                    pool.submit(run_cell, plan, workloads[seed], plan.policies[p], load, seed)
                )
                if len(running) > threads:
                    return

        feed()
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                running.discard(future)
                yield future.result()
            feed()


def mean_and_range(cells: Sequence[Cell], figure: str) -> tuple[float, float, float]:
    """Mean, smallest and largest value of a figure over cells."""
    values = np.asarray([cell.figures[figure] for cell in cells], dtype=float)
    return float(values.mean()), float(values.min()), float(values.max())
