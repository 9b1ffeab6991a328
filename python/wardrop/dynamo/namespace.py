"""A private network namespace with the loopback only, which no other machine can reach.

Dynamo's event plane binds its ZMQ sockets to 0.0.0.0, and no option changes that. In a namespace
whose only interface is the loopback this is harmless: client, gateway and fleet run in the same
namespace and reach each other.

There are two ways in:

* `python -m wardrop.dynamo.namespace -- COMMAND…` (or `enter_or_reexec`) leaves the current
  network, brings `lo` up and then becomes the command. It uses ioctl and needs no `ip` binary. It
  works for root, and for other users through a user namespace.
* `enter()` moves the calling thread; threads and children that start afterwards are inside too. The
  kernel lets only a process with one thread enter a user namespace. Users other than root must
  therefore call it before any other thread starts.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1

MARKER = "WARDROP_PRIVATE_NETWORK"
"""Environment variable of every process inside a private namespace."""

EXPOSURE = (
    "Dynamo's event plane (ZMQ) listens on 0.0.0.0 on random ports without authentication: anybody "
    "who reaches this machine can read block hashes and load figures while the fleet runs. "
    "Dynamo's HTTP, request plane (TCP) and system ports are bound to 127.0.0.1"
)
"""What a Dynamo outside a private namespace opens to the network."""


class NamespaceRefusedError(RuntimeError):
    """The kernel, or a sandbox around the process, refuses a private network namespace."""


def is_private() -> bool:
    """Whether this thread sees no network interface but the loopback."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def enter() -> None:
    """Move this thread, and all it starts later, into a namespace with the loopback only.

    In a private network this only brings `lo` up.

    Raises:
        NamespaceRefusedError: The kernel refuses. The text names the call, the reason, and what a
            fleet exposes outside a namespace.
    """
    if not is_private():
        _leave_network()
    _bring_loopback_up()
    os.environ[MARKER] = "1"


def enter_or_reexec() -> None:
    """Enter a private network, by executing this command again inside where that is necessary.

    Call it before any work is done: a second execution keeps the arguments of the interpreter
    (`sys.orig_argv`) and nothing else.

    Raises:
        NamespaceRefusedError: The kernel refuses both ways.
    """
    if is_private():
        _bring_loopback_up()
        return
    if os.geteuid() == 0:
        enter()
        return
    if os.environ.get(MARKER) == "refused":
        raise NamespaceRefusedError(_refusal("unshare", errno.EPERM))
    # The child has one thread, so that a refusal is the kernel's and not due to other threads.
    probe = os.fork()
    if probe == 0:
        try:
            _leave_network()
            _bring_loopback_up()
        except (NamespaceRefusedError, OSError):
            os._exit(1)
        os._exit(0)
    if os.waitpid(probe, 0)[1] != 0:
        raise NamespaceRefusedError(_refusal("unshare", errno.EPERM))
    argv = [sys.executable, "-m", "wardrop.dynamo.namespace", "--", *sys.orig_argv]
    os.execv(sys.executable, argv)


def _leave_network() -> None:
    root = os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _CLONE_NEWNET if root else _CLONE_NEWUSER | _CLONE_NEWNET
    if libc.unshare(flags) != 0:
        raise NamespaceRefusedError(_refusal("unshare", ctypes.get_errno()))
    if not root:
        # The user's id maps to itself, so that files keep their owner. The right to bring `lo` up
        # lasts until the next exec.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags: int = struct.unpack("16xh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[0]
        if flags & _IFF_UP:
            return
        try:
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
        except OSError as error:
            raise NamespaceRefusedError(_refusal("bringing lo up", error.errno or 0)) from error


def _refusal(call: str, code: int) -> str:
    reason = os.strerror(code)
    hint = (
        "this process has several threads: start it with `python -m wardrop.dynamo.namespace -- "
        "COMMAND`"
        if code == errno.EINVAL
        else "run as root, allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0), or start the container with --cap-add "
        "SYS_ADMIN"
    )
    return f"no private network: {call} failed with {reason!r}; {hint}. Without it: {EXPOSURE}."


def main(argv: Sequence[str]) -> NoReturn:
    """Enter a private network and become a command; exit with 125 when the kernel refuses."""
    command = list(argv[1:] if argv[:1] == ["--"] else argv)
    if not command:
        print("usage: python -m wardrop.dynamo.namespace -- COMMAND [ARGUMENT…]", file=sys.stderr)
        raise SystemExit(2)
    try:
        enter()
    except NamespaceRefusedError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise SystemExit(125) from None
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"wardrop: cannot run {command[0]!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127) from None


if __name__ == "__main__":
    main(sys.argv[1:])
