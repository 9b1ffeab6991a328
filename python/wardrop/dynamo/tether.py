"""Run a command that dies with its parent, also when the parent is killed with SIGKILL.

Started as a script by `child.Child`: sets PR_SET_PDEATHSIG, checks that the parent did not die in
between, becomes the command. The kernel keeps the setting over `exec`. A script of its own, because
running Python between `fork` and `exec` in a process that has native threads can deadlock.

Caution: the signal comes when the *thread* that started the child ends, so children must be started
    by a thread that lives as long as they should.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become `argv[2:]`, tied to the parent whose process id is `argv[1]`."""
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(f"tether: the parent {parent_pid} is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"tether: cannot run {command[0]!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None


if __name__ == "__main__":
    main()
