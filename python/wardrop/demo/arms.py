"""The arms of a comparison: a cold fleet, one frontend, and Wardrop in front of it or inside it."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from urllib.error import HTTPError
from urllib.request import urlopen

from wardrop.demo.processes import children
from wardrop.dynamo.child_process import ChildProcess
from wardrop.dynamo.embedded import Fleet, FleetError, FleetSpec
from wardrop.dynamo.ports import free_port
from wardrop.frontend.launch import FrontendMissingError, find_binary

_GATEWAY_READY_S = 120.0
_SETTLE_TIMEOUT_S = 15.0
_QUIET_S = 1.5
"""The gateway counts as settled after this time without a child process."""


@dataclass(frozen=True)
class Arm:
    """One way to route.

    Attributes:
        key: Short name in files.
        label: Name for people.
        frontend_mode: `--router-mode` of the frontend.
        gateway: Whether `wardrop dynamo` runs in front of the frontend.
        native: Whether the frontend is `wardrop frontend` instead of `dynamo.frontend`.
    """

    key: str
    label: str
    frontend_mode: str
    gateway: bool
    native: bool = False


ROUND_ROBIN = Arm("round_robin", "Dynamo, round robin", "round-robin", gateway=False)
DYNAMO_KV = Arm("dynamo_kv", "Dynamo, KV router", "kv", gateway=False)
WARDROP = Arm("wardrop", "Wardrop", "kv", gateway=True)
WARDROP_DIRECT = Arm("wardrop_direct", "Wardrop, direct", "direct", gateway=True)
WARDROP_FRONTEND = Arm(
    "wardrop_frontend", "Wardrop in the frontend", "round-robin", gateway=False, native=True
)
DOORS = {
    "gateway": (WARDROP,),
    "frontend": (WARDROP_FRONTEND,),
    "both": (WARDROP, WARDROP_FRONTEND),
}
"""Arms of Wardrop by the value of `--door`."""


def arms_of(door: str) -> tuple[Arm, ...]:
    """Arms of a comparison: Dynamo's, then Wardrop's.

    Args:
        door: `gateway`, `frontend`, `both`, or `auto`: the frontend where it is installed.

    Raises:
        ValueError: Another value.
        FrontendMissingError: The frontend is asked for and not installed.
    """
    if door == "auto":
        door = "frontend" if has_native() else "gateway"
    if door not in DOORS:
        raise ValueError(f"--door: got {door!r}, expected auto, {', '.join(DOORS)}")
    arms = DOORS[door]
    if any(arm.native for arm in arms):
        find_binary()
    return (ROUND_ROBIN, DYNAMO_KV, *arms)


def has_native() -> bool:
    """Whether the native frontend is installed."""
    try:
        find_binary()
    except FrontendMissingError:
        return False
    return True


@dataclass(frozen=True)
class Stack:
    """A running arm.

    Attributes:
        url: Base address for clients.
        router_pids: Processes that route: the frontend, then the gateway where the arm has one.
        workers: Dynamo's instance ids by pool, ascending.
        version: Dynamo's version.
        admin_port: Port of the gateway's admin API and live page; None without a gateway.
    """

    url: str
    router_pids: tuple[int, ...]
    workers: dict[str, list[int]]
    version: str
    admin_port: int | None = None


@contextlib.contextmanager
def running(
    arm: Arm,
    spec: FleetSpec,
    gateway_flags: tuple[str, ...] = (),
    frontend_flags: tuple[str, ...] = (),
) -> Generator[Stack]:
    """Start an arm with new, empty workers; stop and remove everything at the end.

    Args:
        arm: The arm to start.
        spec: The workers.
        gateway_flags: Flags for `wardrop dynamo`, such as `("--policy", "dynamo")`. The native
            frontend gets them with its prefix: `--wardrop-policy`.
        frontend_flags: Further flags for `dynamo.frontend`.

    Raises:
        FleetError: A part did not start; the text ends with the part's log.
    """
    with Fleet(spec) as fleet:
        module = "wardrop.frontend" if arm.native else "dynamo.frontend"
        if arm.native:
            frontend_flags += tuple(re.sub("^--", "--wardrop-", flag) for flag in gateway_flags)
        front = fleet.add_frontend(arm.frontend_mode, arguments=frontend_flags, module=module)
        pools: dict[str, list[int]] = {}
        for worker in fleet.workers:
            pools.setdefault(worker.role, []).extend(worker.instances)
        workers = {role: sorted(instances) for role, instances in pools.items()}
        if arm.native:
            _await_available(front.child, front.url, sum(map(len, workers.values())))
        if not arm.gateway:
            yield Stack(front.url, (front.child.pid,), workers, fleet.version)
            return
        port, admin_port = free_port(), free_port()
        command = [sys.executable, "-m", "wardrop", "dynamo", "--upstream", front.url]
        command += ["--http-port", str(port), "--admin-port", str(admin_port), *gateway_flags]
        gateway = ChildProcess("gateway", command, fleet.environment, fleet.home / "gateway.log")
        try:
            url = f"http://127.0.0.1:{port}"
            _await_ready(gateway, url)
            _await_settled(gateway)
            pids = (front.child.pid, gateway.pid)
            yield Stack(url, pids, workers, fleet.version, admin_port)
        finally:
            gateway.stop()


def _await_settled(gateway: ChildProcess) -> None:
    """Wait until the gateway has read the blocks of the workers.

    A child process of the gateway, with a Dynamo runtime, reads them once and ends after a second
    or two. Its CPU time belongs to no request. After a timeout the run begins regardless.
    """
    deadline_s = time.monotonic() + _SETTLE_TIMEOUT_S
    quiet_since_s = time.monotonic()
    while time.monotonic() < deadline_s and time.monotonic() - quiet_since_s < _QUIET_S:
        if children(gateway.pid):
            quiet_since_s = time.monotonic()
        time.sleep(0.05)


def _await_available(frontend: ChildProcess, url: str, workers: int) -> None:
    """Wait until Wardrop, inside the frontend, may choose every worker."""
    deadline_s = time.monotonic() + _GATEWAY_READY_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urlopen(f"{url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
            rows = [line for line in lines if line.startswith("wardrop_worker_available{")]
            if sum(float(row.rpartition(" ")[2]) for row in rows) == workers:
                return
        time.sleep(0.05)
    raise FleetError(
        f"not every worker was available within {_GATEWAY_READY_S:g} s; the log of the frontend "
        f"ends:\n{frontend.tail()}"
    )


def _await_ready(gateway: ChildProcess, url: str) -> None:
    deadline_s = time.monotonic() + _GATEWAY_READY_S
    while time.monotonic() < deadline_s:
        if gateway.exit_code is not None:
            raise FleetError(
                f"`wardrop dynamo` ended with code {gateway.exit_code}; its log ends:\n"
                f"{gateway.tail()}"
            )
        with contextlib.suppress(OSError, HTTPError), urlopen(f"{url}/ready", timeout=5):
            return
        time.sleep(0.05)
    raise FleetError(
        f"`wardrop dynamo` was not ready within {_GATEWAY_READY_S:g} s; its log ends:\n"
        f"{gateway.tail()}"
    )
