"""The wiring of a router that a test serves without Dynamo."""

from __future__ import annotations

import time
from collections.abc import Callable

import wardrop
from wardrop.service.wiring import SCHEMA, Wiring


def wiring_with(receipts: int = 0, **switches: str) -> Callable[[], Wiring]:
    """A function that returns the wiring, as `Admin` takes it."""

    def wiring() -> Wiring:
        version = wardrop.__version__
        return Wiring(SCHEMA, time.time(), version, None, None, "file", switches, receipts)

    return wiring
