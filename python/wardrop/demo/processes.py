"""CPU time of processes and their children, user and system, from /proc.

The kernel counts in clock ticks, usually of 10 ms. A difference of two readings is therefore exact
to about 20 ms.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of the processes, their living descendants and their reaped children."""
    return sum(_tree_cpu_s(pid) for pid in pids)


def children(pid: int) -> list[int]:
    """Living children of a process; empty when the process does not exist."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    return [child for task in tasks for child in _children(task)]


def _tree_cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # Fields 14 to 17 of proc(5): utime and stime, then both for the children that were reaped.
    own_s = sum(int(ticks) for ticks in fields[11:15]) * _TICK_S
    return own_s + sum(_tree_cpu_s(child) for child in children(pid))


def _children(task: Path) -> list[int]:
    try:
        return [int(pid) for pid in (task / "children").read_text().split()]
    except OSError:
        return []
