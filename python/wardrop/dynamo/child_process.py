"""A child process with a process group of its own, output in a file, and its parent's lifetime."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
_TAIL_BYTES = 4096


def bound_to_parent(command: Sequence[str]) -> list[str]:
    """A command line that runs `command` and ends it when this process ends."""
    return [sys.executable, "-IS", str(_DIE_WITH_PARENT), str(os.getpid()), *command]


@contextmanager
def signals_deferred() -> Generator[None]:
    """Hold SIGINT and SIGTERM back until the block ends.

    An interrupt between the start of a child and the moment at which its owner knows the child
    would leave a process that nothing stops. Outside the main thread the block does nothing:
    Python delivers signals to the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    previous = {
        number: signal.signal(number, lambda got, _frame: caught.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for got in caught:
            signal.raise_signal(got)


class ChildProcess:
    """A running child process.

    A signal goes to the whole process group, so it also reaches what the child started.

    Args:
        name: Name in messages.
        command: Program and arguments.
        environment: All variables of the child.
        log: File to which output and errors are appended.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                bound_to_parent(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code as in `subprocess` (negative for a signal), or None while the child runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child's group; do nothing when the child has ended."""
        if self._process.poll() is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """Send SIGKILL and wait until the child has ended."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def suspend(self) -> None:
        """Send SIGSTOP and wait until the child is stopped: alive, but silent for its peers."""
        self.signal(signal.SIGSTOP)
        deadline_s = time.monotonic() + 5
        while self.state() != "T" and time.monotonic() < deadline_s:
            time.sleep(0.002)

    def resume(self) -> None:
        """Send SIGCONT after `suspend`."""
        self.signal(signal.SIGCONT)

    def state(self) -> str:
        """The kernel's state letter (R, S, T, Z, …); empty when the process does not exist."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return ""
        return stat.rpartition(")")[2].split()[0]

    def stop(self, timeout_s: float = 5.0) -> int:
        """Send SIGTERM, then SIGKILL after `timeout_s`; return the exit code."""
        stop_all([self], timeout_s)
        return self._process.wait()

    def tail(self) -> str:
        """The last 4 kB of the child's output."""
        try:
            with self.log.open("rb") as output:
                output.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                return output.read().decode(errors="replace")
        except OSError:
            return ""


def stop_all(children: Sequence[ChildProcess], timeout_s: float = 5.0) -> None:
    """Stop all children: SIGTERM and SIGCONT to each, then SIGKILL after one common deadline.

    SIGCONT lets a suspended child handle SIGTERM.
    """
    for child in children:
        child.signal(signal.SIGTERM)
        child.signal(signal.SIGCONT)
    deadline_s = time.monotonic() + timeout_s
    while any(child.exit_code is None for child in children) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    for child in children:
        child.kill()
