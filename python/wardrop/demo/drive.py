"""Sends a workload to a running stack with the native driver."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from wardrop import _core
from wardrop.demo.processes import cpu_s

Row = tuple[float, int | None, bytes]
"""Departure (or think time) in seconds, index of the request to follow, JSON body."""

_POLL_S = 0.1


@dataclass(frozen=True)
class Driven:
    """One driven workload.

    Attributes:
        columns: the driver's (see `wardrop._core.Drive.report`).
        first_error: text of the first failure.
        router_cpu_s: CPU time of each routing process, in the order given.
        driver_cpu_s: CPU time of this process, which holds the driver.
    """

    columns: dict[str, Any]
    first_error: str | None
    router_cpu_s: tuple[float, ...]
    driver_cpu_s: float


def drive(
    url: str,
    rows: Sequence[Row],
    *,
    router_pids: Sequence[int],
    duration_s: float,
    timeout_s: float,
    concurrency: int | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> Driven:
    """Send all rows and wait for the answers.

    Args:
        url: `http://host:port/path`.
        rows: what to send when; ignored times with a `concurrency`.
        router_pids: processes whose CPU time is counted.
        duration_s: nothing leaves after this.
        timeout_s: longest time for one answer.
        concurrency: None for an open loop, else so many requests in flight.
        on_progress: called about ten times a second.

    Raises:
        ValueError: rows that can not be driven.
    """
    before_s, own_before_s = [cpu_s([pid]) for pid in router_pids], time.process_time()
    run = _core.Drive(
        url,
        list(rows),
        duration_s=duration_s,
        timeout_s=timeout_s,
        concurrency=concurrency,
    )
    try:
        while not run.wait(_POLL_S):
            if on_progress is not None:
                on_progress(cast(dict[str, Any], run.progress()))
    except BaseException:
        run.stop()
        raise
    spent_s = tuple(cpu_s([p]) - s for p, s in zip(router_pids, before_s, strict=True))
    report = cast(dict[str, Any], json.loads(run.report()))
    return Driven(
        report["report"], report["first_error"], spent_s, time.process_time() - own_before_s
    )
