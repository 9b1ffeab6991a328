"""Sends a workload to a running arm with the native load driver."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from wardrop import _core
from wardrop.demo.processes import cpu_s

Row = tuple[float, int | None, bytes]
"""One request: departure in seconds, index of the previous turn or None, and JSON body.

For a request with a previous turn, the first number is the think time after that turn's answer.
"""

_POLL_S = 0.1


@dataclass(frozen=True)
class Driven:
    """The outcome of a driven workload.

    Attributes:
        columns: One list per column of the driver; see `wardrop._core.Drive.report`.
        first_error: Text of the first failure, or None.
        router_cpu_s: CPU seconds of each routing process, in the order of the arguments.
        driver_cpu_s: CPU seconds of this process, which contains the driver.
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
        rows: The requests. With `concurrency`, their times are ignored.
        router_pids: Processes whose CPU time is counted.
        duration_s: No request is sent after this time.
        timeout_s: Longest time for one answer.
        concurrency: Requests in flight of a closed loop; None for an open loop.
        on_progress: Called about ten times a second with counts and latencies.

    Raises:
        ValueError: The rows or the options cannot be driven; the text says why.
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
