"""The errors of the games; each text names received, expected and what to do."""

from __future__ import annotations

from wardrop.errors import InputError


class GameError(InputError):
    """Input from which no game can be built; the text says how to correct the input."""


class NotConvexError(GameError):
    """n·ℓ(n) is not convex, so the slot expansion would not give the optimum."""


class NoPotentialError(GameError):
    """The game has no exact potential: some Monderer-Shapley 4-cycle does not close.

    Attributes:
        residual: the largest |sum of the deviators' cost changes| over all 4-cycles, seconds.
    """

    def __init__(self, residual: float) -> None:
        self.residual = residual
        super().__init__(
            f"no exact potential: a 4-cycle of deviations does not close by {residual:.6g} s; "
            "expected 0 on every cycle. Freeze the overlap at decision time, or share it pairwise "
            "(`rule='sum'`), if a potential is needed"
        )
