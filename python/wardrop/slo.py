"""The limits that a request must keep to count as goodput."""

from __future__ import annotations

from dataclasses import dataclass

from wardrop.errors import InputError


@dataclass(frozen=True)
class Slo:
    """Latency limits of a request, both in seconds.

    Attributes:
        ttft_s: limit of the time to first token, above 0.
        itl_s: limit of the request's mean time between tokens, above 0.

    Raises:
        InputError: a limit is not above 0.
    """

    ttft_s: float = 2.0
    itl_s: float = 0.05

    def __post_init__(self) -> None:
        if not (self.ttft_s > 0 and self.itl_s > 0):
            raise InputError(
                f"got SLO limits of {self.ttft_s} s (TTFT) and {self.itl_s} s (ITL); "
                "expected both > 0 seconds"
            )
