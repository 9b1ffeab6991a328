"""Sweeps: simulations of policies × loads × seeds, on all cores or on a Ray cluster, resumable.

A cell is one simulation. Its figures go to a JSON-lines file as soon as they are known. A sweep
skips every cell that it finds in the file. Under every policy, equal seeds give the same
requests at the same times, so policies are compared in pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardrop.replay.fleet import Fleet
from wardrop.replay.run import Policy, Result, simulate
from wardrop.replay.runners import Runner, ThreadRunner
from wardrop.replay.workload import ReplayError, Workload, from_lists
from wardrop.slo import Slo

_CDF_POINTS = 101
_HEAT_COLUMNS = 120
_VERSION = 2
"""Version of the figures of a cell. A resumed file keeps cells of its own version only."""


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
        head = hashlib.sha256(f"{_VERSION}{self.fleet.to_json(0)}".encode())
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


@dataclass(frozen=True)
class Job:
    """What one cell needs besides its workload. Runners send a job to another process.

    Attributes:
        fleet: the fleet at load 1.
        policy: the policy.
        load: rate factor, or requests in flight in a closed loop.
        seed: seed of the repetition.
        closed: whether `load` is requests in flight.
        slo: limits for goodput.
    """

    fleet: Fleet
    policy: Policy
    load: float
    seed: int
    closed: bool
    slo: Slo


def run_cell(job: Job, workload: Workload) -> Cell:
    """Simulate one cell and keep its figures."""
    fleet = job.fleet.with_load(
        rate=1.0 if job.closed else job.load, concurrency=round(job.load) if job.closed else None
    )
    result = simulate(workload, fleet, job.policy, seed=job.seed)
    return Cell(job.policy.label, job.load, job.seed, result.summary(job.slo), _curves(result))


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
    runner: Runner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """Run every cell of a plan.

    Args:
        plan: the simulations.
        resume: JSON-lines file of finished cells; it is read first, then appended to.
        threads: simulations at once; all cores by default. Not used with a `runner`.
        runner: runs the simulations; by default threads of this process. The caller closes it.
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
    jobs = [
        Job(plan.fleet, plan.policies[p], load, seed, plan.closed, plan.slo)
        for p, load, seed in todo
    ]
    with closing(ThreadRunner(threads)) as own:
        for count, cell in enumerate(_cells(jobs, workloads, runner or own), 1):
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


def _cells(
    jobs: Sequence[Job], workloads: Mapping[int, Workload], runner: Runner
) -> Iterator[Cell]:
    """The cells of all jobs, in the order in which they end."""
    queue = iter(jobs)
    running: set[Future[Cell]] = set()

    def feed() -> None:
        # Only a few cells are submitted at a time, so that an error ends the sweep soon.
        while len(running) <= runner.width and (job := next(queue, None)) is not None:
            running.add(runner.submit(run_cell, job, workloads[job.seed]))

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
