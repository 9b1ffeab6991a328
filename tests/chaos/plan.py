"""Which fault comes when: a pure function of a seed.

Two lanes run beside each other. The lane of processes is serial, because a fleet of three workers
with two of them away shows nothing about the router. The lane of wires holds everything else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Lane = Literal["process", "wire"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: Name in reports; the injector's method has the same name.
        lane: The lane that injects it.
        weight: Relative frequency in its lane.
        spares: No client request may fail because of this kind.
    """

    name: str
    lane: Lane
    weight: float
    spares: bool


KINDS = (
    Kind("kill_worker", "process", 2, spares=False),
    Kind("stop_worker", "process", 3, spares=False),
    Kind("slow_worker", "process", 3, spares=True),
    Kind("kill_frontend", "process", 1, spares=False),
    Kind("stop_frontend", "process", 2, spares=False),
    Kind("cut_upstream", "wire", 3, spares=False),
    Kind("half_open_upstream", "wire", 1, spares=False),
    Kind("slow_upstream", "wire", 2, spares=True),
    Kind("cut_feed", "wire", 4, spares=True),
    Kind("half_open_feed", "wire", 2, spares=True),
    Kind("malformed_entries", "wire", 4, spares=True),
    Kind("store_away", "wire", 2, spares=True),
    Kind("same_id_restart", "wire", 3, spares=True),
    Kind("garbage_events", "wire", 3, spares=True),
    Kind("flood_of_ranks", "wire", 2, spares=True),
    Kind("flood_of_models", "wire", 2, spares=True),
    Kind("flood_of_tenants", "wire", 2, spares=True),
    Kind("full_descriptors", "wire", 2, spares=False),
    Kind("clients_abort", "wire", 4, spares=True),
    Kind("clients_stall", "wire", 2, spares=True),
    Kind("clients_garbage", "wire", 4, spares=True),
)


@dataclass(frozen=True)
class Planned:
    """One fault to inject.

    Attributes:
        kind: What.
        pause_s: Time after the end of the lane's previous fault.
        draw: A number below 2**32 from which the injector takes its choices.
    """

    kind: Kind
    pause_s: float
    draw: int


def lane_plan(seed: int, lane: Lane, without: frozenset[str] = frozenset()) -> Iterator[Planned]:
    """The endless plan of one lane; each kind comes once before any kind comes twice.

    Args:
        seed: Seed of the whole run.
        lane: The lane.
        without: Names of kinds to leave out.
    """
    dice = random.Random(f"{seed}/{lane}")
    kinds = [kind for kind in KINDS if kind.lane == lane and kind.name not in without]
    if not kinds:
        return
    order = kinds[:]
    dice.shuffle(order)
    pause_s = 0.8 if lane == "process" else 0.2
    while True:
        for kind in order:
            yield Planned(kind, dice.expovariate(1 / pause_s), dice.getrandbits(32))
        order = dice.choices(kinds, [kind.weight for kind in kinds], k=64)
