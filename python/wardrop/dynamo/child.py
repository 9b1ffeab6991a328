"""One child process: own process group, output in a file, and it cannot outlive us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_TETHER = Path(__file__).with_name("tether.py")
_TAIL_BYTES = 4096


def tethered(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` so that it dies with this process."""
    return [sys.executable, "-IS", str(_TETHER), str(os.getpid()), *command]


class Child:
    """A running child process.

    Signals go to the whole group, so what the child started goes with it, and by number, never by
    name.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                tethered(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, and id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code as `subprocess` gives it (negative: the signal), or None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child's group; nothing when it has ended."""
        if self._process.poll() is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """SIGKILL, and wait until the child is gone."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def hang(self) -> None:
        """SIGSTOP: alive for the kernel, silent for its peers; returns once it has stopped."""
        self.signal(signal.SIGSTOP)
        deadline_s = time.monotonic() + 5
        while self.state() != "T" and time.monotonic() < deadline_s:
            time.sleep(0.002)

    def resume(self) -> None:
        """SIGCONT after `hang`."""
        self.signal(signal.SIGCONT)

    def state(self) -> str:
        """The kernel's state letter (R, S, T, Z, …); empty when the process is gone."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return ""
        return stat.rpartition(")")[2].split()[0]

    def stop(self, timeout_s: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after `timeout_s`; returns the exit code."""
        stop_all([self], timeout_s)
        return self._process.wait()

    def tail(self) -> str:
        """The end of its output."""
        try:
            with self.log.open("rb") as output:
                output.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                return output.read().decode(errors="replace")
        except OSError:
            return ""


def stop_all(children: Sequence[Child], timeout_s: float = 5.0) -> None:
    """SIGTERM (and SIGCONT) to all at once, one common deadline, SIGKILL for who is left."""
    for child in children:
        child.signal(signal.SIGTERM)
        child.signal(signal.SIGCONT)
    deadline_s = time.monotonic() + timeout_s
    while any(child.exit_code is None for child in children) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    for child in children:
        child.kill()
