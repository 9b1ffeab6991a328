"""The simulations behind an advice, in stages: policies, numbers of workers, splits, limits.

Each stage reads what the stage before it found. All stages keep their cells in one file, so an
interrupted run continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wardrop.advise.comparison import choose
from wardrop.advise.optimum import Optimum, find_optimum
from wardrop.advise.question import Question, candidates
from wardrop.games.resource import Attainment, SplitChoice, choose_split
from wardrop.replay.fleet import Fleet
from wardrop.replay.run import Policy
from wardrop.replay.runners import Runner
from wardrop.replay.sweep import Cell, Plan, sweep

_SIZES = (0.5, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5)
"""Numbers of workers that are tried, relative to the fleet of the question."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, its finished simulations, and all its simulations."""


@dataclass(frozen=True)
class Evidence:
    """What the simulations found.

    Attributes:
        policies: every candidate at every load.
        best: the candidate with the lowest cost at load 1.
        workers: (number of workers, cell) at load 1, under the policy in use and the best one.
        split: the choice of the resource game; None where no split was asked for or possible.
        splits: the chosen split under the best policy, at load 1.
        optimum: how far the policies are from the optimum; None where that was not asked.
    """

    policies: tuple[Cell, ...]
    best: Policy
    workers: tuple[tuple[int, Cell], ...] = ()
    split: SplitChoice | None = None
    splits: tuple[Cell, ...] = field(default=(), repr=False)
    optimum: Optimum | None = None


class _Simulator:
    """Runs plans for one question, with one file of cells and one runner."""

    def __init__(
        self, question: Question, resume: Path | None, runner: Runner | None, progress: Progress
    ) -> None:
        self.question = question
        self._resume = resume
        self._runner = runner
        self._progress = progress

    def cells(
        self,
        stage: str,
        fleet: Fleet,
        policies: Sequence[Policy],
        loads: Sequence[float] = (1.0,),
        seeds: int | None = None,
    ) -> list[Cell]:
        """Simulate policies × loads × seeds on a fleet."""
        asked = self.question
        plan = Plan(
            asked.workload,
            fleet,
            policies,
            loads,
            range(asked.seeds if seeds is None else seeds),
            slo=asked.slo,
        )
        return sweep(
            plan,
            resume=self._resume,
            runner=self._runner,
            progress=lambda done, total: self._progress(stage, done, total),
        )


@dataclass(frozen=True)
class _SplitAttainment:
    """An `AttainmentSource` of the resource game: one resumable simulation per split."""

    simulator: _Simulator
    policy: Policy

    def attainment(self, prefill_workers: int, decode_workers: int) -> Attainment:
        fleet = replace(
            self.simulator.question.fleet,
            workers=0,
            prefill=prefill_workers,
            decode=decode_workers,
            speeds=(),
        )
        stage = f"split {prefill_workers}x{decode_workers}"
        figures = self.simulator.cells(stage, fleet, [self.policy], seeds=1)[0].figures
        return Attainment(
            ttft=figures["attainment_ttft"],
            itl=figures["attainment_itl"],
            both=figures["attainment"],
            goodput_rps=figures["goodput_per_s"],
        )


def gather(
    question: Question,
    *,
    resume: Path | None = None,
    runner: Runner | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Evidence:
    """Simulate everything that the question asks for.

    Args:
        question: what is asked.
        resume: JSON-lines file of finished simulations; read first, then appended to.
        runner: runs the simulations; by default threads of this process.
        progress: called after each simulation.

    Raises:
        ReplayError: the trace or the fleet cannot be simulated; the text names the reason.
    """
    simulator = _Simulator(question, resume, runner, progress)
    tried = candidates(question)
    cells = simulator.cells("policies", question.fleet, tried, question.loads)
    label = choose(question, cells)
    best = next(policy for policy in tried if policy.label == label)
    found = Evidence(tuple(cells), best)
    if question.asks_workers and not question.fleet.is_split:
        found = replace(found, workers=tuple(_workers(simulator, best)))
    if question.asks_split and question.fleet.size >= 2:
        choice = choose_split(_SplitAttainment(simulator, best), question.fleet.size)
        fleet = replace(
            question.fleet,
            workers=0,
            prefill=choice.prefill_workers,
            decode=choice.decode_workers,
            speeds=(),
        )
        split = simulator.cells("the chosen split", fleet, [best])
        found = replace(found, split=choice, splits=tuple(split))
    if question.asks_limits:
        here = [cell for cell in found.policies if cell.load == 1.0]
        found = replace(found, optimum=find_optimum(question, here, best, simulator.cells))
    return found


def _workers(simulator: _Simulator, best: Policy) -> list[tuple[int, Cell]]:
    question = simulator.question
    policies = list({p.label: p for p in (question.running, best)}.values())
    here = question.fleet.size
    sizes = sorted({max(round(here * share), 1) for share in _SIZES} | {max(here - 1, 1), here + 1})
    return [
        (size, cell)
        for size in sizes
        for cell in simulator.cells(
            f"{size} workers", replace(question.fleet, workers=size, speeds=()), policies
        )
    ]
