"""The limit of glibc's arenas, each check in a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wardrop.service.arenas import ARENAS_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
THREADS = 3 * (os.cpu_count() or 1) + 3
BLOCK_BYTES = 65536
"""Larger than the blocks that glibc keeps for each thread, so that each thread needs an arena."""

ARENA_BYTES = 64 << 20
"""Address space that glibc reserves for each arena of a thread, at a multiple of this size."""

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)


def count_arenas() -> int:
    """Arenas of this process while `THREADS` threads hold memory."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.fdopen.restype = ctypes.c_void_p
    libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.fclose.argtypes = [ctypes.c_void_p]
    all_hold, counted = threading.Barrier(THREADS + 1), threading.Event()

    def hold() -> None:
        block = libc.malloc(BLOCK_BYTES)
        all_hold.wait()
        counted.wait()
        libc.free(block)

    threads = [threading.Thread(target=hold) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    all_hold.wait()
    read_end, write_end = os.pipe()
    reader = os.fdopen(read_end)
    text: list[str] = []
    reading = threading.Thread(target=lambda: text.append(reader.read()))
    reading.start()
    stream = libc.fdopen(write_end, b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    reading.join()
    reader.close()
    counted.set()
    for thread in threads:
        thread.join()
    return text[0].count("<heap nr=")


def in_process(code: str, **variables: str) -> str:
    environment = {
        k: v for k, v in os.environ.items() if k not in (ARENAS_VARIABLE, "GLIBC_TUNABLES")
    }
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tests.service.test_arenas import count_arenas\n"
            f"from wardrop.service.arenas import limit_arenas\n{code}",
        ],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_threads_share_one_arena_for_each_core():
    limit = max(2, len(os.sched_getaffinity(0)))
    assert int(in_process("print(count_arenas())")) > limit, "the check must see glibc's default"
    assert int(in_process("limit_arenas(); print(count_arenas())")) <= limit


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_ARENA_MAX": "5"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=5"}],
    ids=["variable", "tunable"],
)
def test_limit_of_the_operator_stays(variables: dict[str, str]):
    assert in_process("print(limit_arenas())", **variables) == "None"
    assert int(in_process("limit_arenas(); print(count_arenas())", **variables)) == 5


def test_limit_is_reported_and_at_least_two():
    assert int(in_process("print(limit_arenas())")) == max(2, len(os.sched_getaffinity(0)))


def thread_arenas(pid: int) -> int:
    """Arenas of another process beside its main arena, by their reserved address space."""
    arenas, last_end, was_used = 0, 0, False
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, access = line.split()[:2]
        begin, end = (int(address, 16) for address in span.split("-"))
        if access == "---p" and was_used and begin == last_end and end % ARENA_BYTES == 0:
            arenas += 1
        was_used = access == "rw-p" and begin % ARENA_BYTES == 0
        last_end = end
    return arenas


@pytest.mark.parametrize(
    ("arguments", "ready"),
    [
        (["select", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"], "gRPC on"),
        (
            ["serve", "--http-port", "0", "--admin-port", "0", "--worker", "http://127.0.0.1:9"],
            "listening on",
        ),
    ],
    ids=["select", "serve"],
)
def test_door_starts_with_few_arenas(arguments: list[str], ready: str):
    def arenas_of_door(**variables: str) -> int:
        environment = {k: v for k, v in os.environ.items() if k != ARENAS_VARIABLE}
        with subprocess.Popen(
            [sys.executable, "-m", "wardrop", *arguments],
            env=environment | variables,
            stderr=subprocess.PIPE,
            text=True,
        ) as door:
            try:
                assert door.stderr is not None
                assert any(ready in line for line in door.stderr), "the door must start"
                return thread_arenas(door.pid)
            finally:
                door.terminate()

    # A door on many cores may have fewer threads than cores, so the check uses two cores.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:2]))
    try:
        without, with_limit = arenas_of_door(MALLOC_ARENA_MAX="64"), arenas_of_door()
    finally:
        os.sched_setaffinity(0, cores)
    assert without >= 2, "the check must see more arenas than the limit allows"
    assert with_limit <= 1, "one arena beside the main arena"
