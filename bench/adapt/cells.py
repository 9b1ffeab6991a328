"""The cells: traffic that changes within a run, on 8 workers, and steady traffic beside it.

A cell is a row of phases. Loads are shares of the rate at the knee, as `bench.price` defines it.
Phases of one kind in a row share one workload, so that prefixes live on from phase to phase.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, zip_longest

import numpy as np
from bench.price.cells import SHARED, knees

from wardrop.replay import Engine, Fleet, Workload, load_timing
from wardrop.replay.fleet import Fault
from wardrop.replay.generate import generate
from wardrop.replay.kinds import merge

WORKERS, NUM_BLOCKS = 8, 4096
PHASE_S = 40.0
SLOW_SPEED = 0.3
SLOW_WORKERS = (0, 1)
TABLE = "llama70b_tp4_b200.npz"

GENERATORS = {
    "support": ("support(requests={n})", 10.0),
    "documents": ("documents(count={n})", 0.5),
    "crowds": ("crowds(requests={n})", 10.0),
}
"""By kind: a call of its generator, and the arrivals (of requests or documents) per second of it.

The agents of `bench.price` are left out: they never load this fleet.
"""


@dataclass(frozen=True)
class Phase:
    """A stretch of steady traffic.

    Attributes:
        kind: a key of `GENERATORS`.
        load: share of the kind's rate at the knee.
        seconds: length.
        slow: whether the workers of `SLOW_WORKERS` run at `SLOW_SPEED`.
    """

    kind: str
    load: float
    seconds: float = PHASE_S
    slow: bool = False


@dataclass(frozen=True)
class Cell:
    """Phases in a row.

    Attributes:
        name: name of the cell; the part before the colon is its group.
        phases: the phases.
        table: timing table of the engines; None for the simulator's own timing.
    """

    name: str
    phases: tuple[Phase, ...]
    table: str | None = TABLE

    @property
    def group(self) -> str:
        """`ramp`, `shift`, `slow` or `steady`."""
        return self.name.partition(":")[0]

    @property
    def starts_s(self) -> list[float]:
        """Start of each phase, and the end of the last."""
        return np.cumsum([0.0, *(phase.seconds for phase in self.phases)]).tolist()

    def fleet(self) -> Fleet:
        """The fleet, with its slow phases as faults."""
        faults: list[Fault] = []
        slow = False
        for start_s, phase in zip(self.starts_s, self.phases, strict=False):
            if phase.slow != slow:
                speed = SLOW_SPEED if phase.slow else 1.0
                faults += [Fault(1e3 * start_s, w, "speed", speed) for w in SLOW_WORKERS]
            slow = phase.slow
        engine = Engine(num_blocks=NUM_BLOCKS)
        if self.table is not None:
            engine = replace(engine, timing=load_timing(SHARED / "timing" / self.table))
        return Fleet(workers=WORKERS, engine=engine, faults=tuple(faults))


@cache
def workload(cell: Cell, seed: int) -> Workload:
    """The requests of a cell; a seed draws every request anew."""
    parts: list[Workload] = []
    start_s = 0.0
    for at, (kind, group) in enumerate(groupby(cell.phases, lambda phase: phase.kind)):
        phases = list(group)
        drawn = stretch(kind, phases, seed=1000 * at + seed)
        parts.append(replace(drawn, arrival_ms=drawn.arrival_ms + 1e3 * start_s))
        start_s += sum(phase.seconds for phase in phases)
    return parts[0] if len(parts) == 1 else merge(cell.name, parts)


def stretch(kind: str, phases: list[Phase], seed: int) -> Workload:
    """One kind of traffic whose rate follows the loads of `phases`, from time 0.

    Times at load 1 become times at which the integral of the load has the same value.
    """
    call, per_s = GENERATORS[kind]
    done = np.cumsum([0.0, *(phase.load * phase.seconds for phase in phases)])
    ends = np.cumsum([0.0, *(phase.seconds for phase in phases)])
    drawn = generate(call.format(n=round(per_s * rate(kind) * done[-1])), seed=seed)
    # What the generator draws beyond the last phase comes at the load of the last phase.
    done, ends = np.append(done, done[-1] + 1e3 * phases[-1].load), np.append(ends, ends[-1] + 1e3)
    at_ms = 1e3 * np.interp(drawn.arrival_ms / rate(kind) / 1e3, done, ends)
    return replace(drawn, arrival_ms=at_ms)


@cache
def rate(kind: str) -> float:
    """Times the generator's own rate at which this fleet is at its knee."""
    return next(r for f, r in knees().items() if f.trace.startswith(kind) and f.workers == WORKERS)


def cells() -> list[Cell]:
    """The suite. Groups alternate, so that a run that is cut short has cells of every group."""
    climb, slows = (0.5, 1.0, 1.3, 1.0, 0.5), (False, True, False)
    kinds = ("documents", "support", "crowds")
    orders = {
        "at the knee": (("support", "documents", "crowds"), 1.0),
        "over the knee": (("documents", "crowds", "support"), 1.2),
    }
    ramps = [Cell(f"ramp: {k}", tuple(Phase(k, share) for share in climb)) for k in kinds]
    shifts = [
        Cell(f"shift: {name}", tuple(Phase(kind, share) for kind in order))
        for name, (order, share) in orders.items()
    ]
    slow = [Cell(f"slow: {k}", tuple(Phase(k, 0.9, slow=slow) for slow in slows)) for k in kinds]
    steady = [Cell(f"steady: {k}", (Phase(k, 1.0, seconds=60.0),)) for k in kinds]
    groups = zip_longest(slow, steady, ramps, shifts)
    return [cell for group in groups for cell in group if cell is not None]


def small() -> list[Cell]:
    """Two cells of a few seconds, which need no timing table; for tests."""
    up = (Phase("crowds", 0.5, seconds=4.0), Phase("crowds", 1.5, seconds=8.0))
    slows = tuple(Phase("documents", 0.9, seconds=4.0, slow=slow) for slow in (False, True, False))
    return [Cell("ramp: small", up, table=None), Cell("slow: small", slows, table=None)]
