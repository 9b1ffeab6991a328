"""Rounds in which every arm runs once, each round in another order."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TypeVar

Arm = TypeVar("Arm")

Round = dict[str, dict[str, dict[str, float]]]
"""Arm → phase → figures."""


def rotated(arms: Sequence[Arm], number: int) -> list[Arm]:
    """The arms with another one first in each round."""
    at = number % max(1, len(arms))
    return [*arms[at:], *arms[:at]]


def medians(rounds: Sequence[Round]) -> Round:
    """Median over rounds of every figure."""
    return {
        arm: {
            phase: {name: median(each[arm][phase][name] for each in rounds) for name in numbers}
            for phase, numbers in phases.items()
        }
        for arm, phases in rounds[0].items()
    }
