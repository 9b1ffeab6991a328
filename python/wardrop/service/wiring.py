"""Facts about the wiring of one router that only the router's process knows, for `wardrop doctor`.

The environment is an allow-list of switches of Dynamo. Addresses, keys and names stay out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

SCHEMA = "wardrop.wiring.v1"

SWITCHES = (
    "DYN_DISABLE_FRONTEND_NVEXT",
    "DYN_EVENT_PLANE",
    "DYN_REQUEST_PLANE",
    "DYN_DISCOVERY_BACKEND",
)
"""Variables of Dynamo that decide whether pins and KV events work."""


DoorName = Literal["dynamo", "serve", "picker", "select", "frontend"]
"""Command that runs a router, which decides the checks that apply to it."""


class Wiring(msgspec.Struct):
    """The wiring of one router.

    Attributes:
        schema: Name and version of this form.
        at_s: Unix time of the answer, in seconds.
        wardrop_version: Version of the router's package.
        dynamo_version: Version of the frontends that the router starts; None if it starts none.
        frontend_mode: `--router-mode` of the frontends that the router starts; None if none.
        discovery: Source of the fleet: for example `file`, `etcd` or `frontend`.
        switches: Variables of Dynamo in the router's environment, by name; absent where not set.
        receipts: Receipts that the router keeps.
        door: Command that runs the router.
    """

    schema: str
    at_s: float
    wardrop_version: str
    dynamo_version: str | None = None
    frontend_mode: str | None = None
    discovery: str = ""
    switches: dict[str, str] = {}
    receipts: int = 0
    door: DoorName = "dynamo"


def switches_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The switches that an environment sets."""
    return {name: environment[name] for name in SWITCHES if name in environment}
