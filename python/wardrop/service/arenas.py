"""Limits the number of arenas of the C library's allocator.

glibc gives threads up to eight arenas for each core, and freed memory stays in its arena. Each
arena keeps pages for a few blocks that are still in use. So the resident memory of a long-running
router grows with the number of its arenas. One arena for each core is enough: no more threads than
cores allocate at the same time.

`docs/reports/reliability.md` has the measurements. Other C libraries have no such limit.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

ARENAS_VARIABLE = "MALLOC_ARENA_MAX"
"""Environment variable of glibc with the number of arenas, for a program that starts."""

_M_ARENA_MAX = -8
"""Number of the parameter in glibc's `malloc.h`."""
_FEWEST = 2
_TUNABLE = "glibc.malloc.arena_max"


def limit_arenas(environment: Mapping[str, str] = os.environ) -> int | None:
    """Limit the arenas of this process. Call it before the process starts threads.

    Args:
        environment: Environment of the process. A limit that an operator set in it stays.

    Returns:
        Arenas at most; None when the operator set a limit, or without glibc.
    """
    if _is_limited(environment):
        return None
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return None
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    arenas = _arena_limit()
    return arenas if mallopt(_M_ARENA_MAX, arenas) else None


def _is_limited(environment: Mapping[str, str]) -> bool:
    """Whether an operator limited the arenas by one of glibc's variables."""
    return ARENAS_VARIABLE in environment or _TUNABLE in environment.get("GLIBC_TUNABLES", "")


def _arena_limit() -> int:
    """Arenas for this machine: one for each core that the process may use, and at least two."""
    return max(len(os.sched_getaffinity(0)), _FEWEST)
