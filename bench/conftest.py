"""Options and fixtures of the Python benchmarks: `pytest bench/`.

Each group of pytest-benchmark holds Wardrop and its baseline, measured in one process on the same
inputs. Every test asserts the answer before it measures. The process is pinned to one CPU: Dynamo's
index answers on a thread of its own, and is slower when the scheduler moves both.

`--grid full` measures every size of `bench/results/core.json`; `--rounds` sets calls per figure.
`--benchmark-save NAME` and `pytest-benchmark compare` compare two runs.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from bench.machine import machine

os.environ.setdefault("DYN_LOG", "error")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--grid", choices=("small", "full"), default="small", help="sizes to measure")
    parser.addoption("--rounds", type=int, default=500, help="calls per figure")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["wardrop"] = machine()


@pytest.fixture(autouse=True, scope="session")
def one_cpu() -> Iterator[None]:
    """Pin the process to one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--rounds")


Measure = Callable[..., None]


@pytest.fixture
def measure(benchmark: Any, rounds: int) -> Measure:
    """Times single calls of `target(argument)`, `arguments` in turns, then the CPU time of a loop.

    `key` names the argument, for targets that take it by keyword only. The wall times are
    pytest-benchmark's; `extra_info["cpu_us"]` is processor time per call of an untimed loop.
    """

    def run(
        target: Callable[..., Any],
        arguments: Sequence[Any],
        key: str | None = None,
        **info: Any,
    ) -> None:
        calls = [((), {key: each}) if key else ((each,), {}) for each in arguments]
        turns = itertools.cycle(calls)
        benchmark.pedantic(target, setup=lambda: next(turns), rounds=rounds, warmup_rounds=50)
        before = time.thread_time_ns()
        for positional, named in itertools.islice(turns, rounds):
            target(*positional, **named)
        spent_ns = time.thread_time_ns() - before
        benchmark.extra_info.update(info, cpu_us=round(spent_ns / rounds / 1000, 2))

    return run
