"""Runs a command that dies with its parent, also when the parent is killed with SIGKILL.

`child_process` starts this file as a script: it sets PR_SET_PDEATHSIG, checks that the parent is
still alive, and becomes the command. The kernel keeps the setting over `exec`. It is a script
because running Python between `fork` and `exec` in a process with native threads can deadlock.

Caution: the kernel sends the signal when the *thread* that started the child ends. A child must be
started by a thread that lives as long as the child should.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become `argv[2:]`, bound to the parent whose process id is `argv[1]`."""
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(f"die_with_parent: the parent {parent_pid} has ended")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"die_with_parent: cannot run {command[0]!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None


if __name__ == "__main__":
    main()
