"""Gives memory that the process has freed back to the operating system.

The C library keeps freed memory for the next use, in one arena for each thread. A fleet whose
models come and go is read by many short threads, so the arenas reach their largest size one after
the other. The resident memory then grows for hours, although the bytes in use stay the same.
`FreedMemory.run` is a part of the control plane. It compares the resident memory with the memory
after the last return, and returns what is free after some growth. A further return comes later,
because the memory behind the growth may still be in use. Without growth it does nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import resource
import time
from collections.abc import Callable
from pathlib import Path

from wardrop.dynamo.daemon_thread import run_in_thread

log = logging.getLogger("wardrop.control")

_STATM = Path("/proc/self/statm")
_LOOK_EVERY_S = 5.0
"""Time between two looks. A return takes 0.2 to 20 ms, and allocations in its arena wait."""
_GROWTH_BYTES = 8 << 20
"""Growth of the resident memory after which free memory is returned."""
_GROWTH_SHARE = 1 / 16
"""The same as a share, so that a large process is not searched after each 8 MiB."""

_FOLLOW_UP_S = 30.0
"""Time after a return, caused by growth, for the memory that was in use then."""


class FreedMemory:
    """Returns free memory after some growth.

    Attributes:
        returns: Returns since the start.
    """

    def __init__(self) -> None:
        self.returns = 0
        self._trim = _find_trim()
        self._settled_bytes: int | None = None
        self._follow_up_s: float | None = None

    async def run(self) -> None:
        """Look every 5 s until cancelled; end at once where the C library cannot return."""
        if self._trim is None or resident_bytes() is None:
            return
        while True:
            await self.look(time.monotonic())
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self, now_s: float) -> None:
        """Return free memory where the resident memory has grown enough, or a while after it grew.

        Args:
            now_s: Time on a monotonic clock.
        """
        now_bytes, settled_bytes = resident_bytes(), self._settled_bytes
        if now_bytes is None or self._trim is None:
            return
        if settled_bytes is None:
            self._settled_bytes = now_bytes
            return
        enough_bytes = max(_GROWTH_BYTES, int(settled_bytes * _GROWTH_SHARE))
        has_grown = now_bytes - settled_bytes >= enough_bytes
        is_follow_up = self._follow_up_s is not None and now_s >= self._follow_up_s
        if not has_grown and not is_follow_up:
            self._settled_bytes = min(now_bytes, settled_bytes)
            return
        await run_in_thread(self._trim)
        self.returns += 1
        after_bytes = resident_bytes() or now_bytes
        self._settled_bytes = after_bytes
        # After a return that freed much, more may become free: models may still be leaving.
        is_open = has_grown or now_bytes - after_bytes >= enough_bytes
        self._follow_up_s = now_s + _FOLLOW_UP_S if is_open else None
        log.debug("free memory returned: resident %d bytes, then %d", now_bytes, after_bytes)


def resident_bytes() -> int | None:
    """Resident memory of this process; None where the system does not show it."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None


def _find_trim() -> Callable[[], None] | None:
    """The call that returns free memory of all arenas; None without glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes = [ctypes.c_size_t]
    trim.restype = ctypes.c_int

    def return_all() -> None:
        trim(0)

    return return_all
