"""The seam of Γ_PD: the interface to everything that evaluates a split.

Where it stands: between the split chooser and an evaluator. The chooser knows only
`AttainmentSource`. The queueing evaluator of this package and the discrete-event simulator
implement it; `FromCallable` makes one of a plain function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Attainment:
    """The attainment of a split of workers on a workload.

    Attributes:
        ttft: share of requests within the TTFT limit, 0 to 1: U_P.
        itl: share within the ITL limit: U_D.
        both: share within both.
        goodput_rps: requests per second within both, over the time that requests arrive.
        ttft_p99_s: 99th percentile TTFT, seconds.
        itl_p99_s: 99th percentile of the requests' mean ITL, seconds.
    """

    ttft: float
    itl: float
    both: float
    goodput_rps: float
    ttft_p99_s: float = float("nan")
    itl_p99_s: float = float("nan")


class AttainmentSource(Protocol):
    """The interface of the resource game to a fleet, real or simulated."""

    def attainment(self, prefill_workers: int, decode_workers: int) -> Attainment:
        """Attainment of a split; the same split must give the same answer."""
        ...


@dataclass(frozen=True)
class FromCallable:
    """Any function of (prefill_workers, decode_workers); each split is evaluated once.

    Attributes:
        evaluate: the function, for example a run of the discrete-event simulator.
    """

    evaluate: Callable[[int, int], Attainment]
    _seen: dict[tuple[int, int], Attainment] = field(
        default_factory=dict[tuple[int, int], Attainment], repr=False
    )

    def attainment(self, prefill_workers: int, decode_workers: int) -> Attainment:
        """The attainment that the function returns."""
        key = (prefill_workers, decode_workers)
        if key not in self._seen:
            self._seen[key] = self.evaluate(*key)
        return self._seen[key]

    @property
    def evaluations(self) -> int:
        """Number of distinct splits evaluated."""
        return len(self._seen)
