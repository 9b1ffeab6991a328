"""Growing pauses between attempts at something that fails."""

from __future__ import annotations


class Backoff:
    """Pauses that double from a first length to a longest one.

    Args:
        first_s: The first pause, in seconds.
        longest_s: The longest pause, in seconds.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = min(first_s, longest_s)
        self._longest_s = longest_s
        self._next_s = self._first_s

    def next_s(self) -> float:
        """The pause before the next attempt, in seconds."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._longest_s)
        return pause_s

    def reset(self) -> None:
        """Start again with the first pause, after an attempt that succeeded."""
        self._next_s = self._first_s
