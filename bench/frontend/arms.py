"""The frontends that are compared, each alone before a fleet of its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from wardrop.demo.arms import Stack
from wardrop.dynamo.embedded import Fleet, FleetSpec

_NATIVE = "wardrop.frontend"
_STOCK = "dynamo.frontend"


@dataclass(frozen=True)
class Arm:
    """One frontend.

    Attributes:
        key: Name in the result.
        label: Name for people.
        module: Module that starts the frontend.
        mode: `--router-mode`.
        arguments: Further flags.
    """

    key: str
    label: str
    module: str
    mode: str
    arguments: tuple[str, ...] = ()

    @property
    def decides(self) -> bool:
        """Whether Wardrop decides in this frontend."""
        return self.module == _NATIVE and "--no-wardrop-decide" not in self.arguments


ROUND_ROBIN = Arm("round_robin", "Dynamo's frontend, round robin", _STOCK, "round-robin")
KV = Arm("kv", "Dynamo's frontend, KV router", _STOCK, "kv")
OFF = Arm("off", "ours, Dynamo's round robin", _NATIVE, "round-robin", ("--no-wardrop-decide",))
WARDROP = Arm("wardrop", "ours, `toll` and queue", _NATIVE, "round-robin")
ARMS = {arm.key: arm for arm in (ROUND_ROBIN, KV, OFF, WARDROP)}


@dataclass(frozen=True)
class Running:
    """A running arm.

    Attributes:
        stack: Address and process of the frontend.
        fleet: The workers.
    """

    stack: Stack
    fleet: Fleet

    def memory_mib(self) -> float:
        """Resident memory of the frontend."""
        with open(f"/proc/{self.stack.router_pids[0]}/status") as status:
            (line,) = [line for line in status if line.startswith("VmRSS:")]
        return int(line.split()[1]) / 1024


@contextmanager
def running(arm: Arm, spec: FleetSpec, *arguments: str) -> Generator[Running]:
    """Start new, empty workers and the frontend of an arm; stop them at the end."""
    with Fleet(spec) as fleet:
        flags = (*arm.arguments, *arguments)
        front = fleet.add_frontend(arm.mode, arguments=flags, module=arm.module)
        instances = [each for worker in fleet.workers for each in worker.instances]
        workers = {"aggregated": sorted(instances)}
        yield Running(Stack(front.url, (front.child.pid,), workers, fleet.version), fleet)
