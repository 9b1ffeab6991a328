"""Waiting in tests: for an event with a generous deadline, never for a duration.

A test that fails here names the event that did not come. The deadline only bounds a broken run,
so it is far above what a busy machine needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

DEADLINE_S = 60.0
"""Seconds after which an awaited event counts as missing."""

_POLL_S = 0.01


def wait_until(
    check: Callable[[], object], what: str = "the awaited state", timeout_s: float = DEADLINE_S
) -> None:
    """Poll `check` until it returns a true value.

    Args:
        check: reads the state under test; it has no side effect that matters.
        what: the awaited event, named in the failure.
        timeout_s: seconds before the test fails.

    Raises:
        AssertionError: the event did not come within `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(_POLL_S)


async def wait_until_async(
    check: Callable[[], object], what: str = "the awaited state", timeout_s: float = DEADLINE_S
) -> None:
    """Poll `check` on the running event loop, as `wait_until` does in a thread."""
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(_POLL_S)
