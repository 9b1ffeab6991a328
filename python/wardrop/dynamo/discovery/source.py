"""The interface of a discovery backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from wardrop.dynamo.discovery.fleet_view import FleetView


class Source(Protocol):
    """A discovery backend: yields the present view, then a view whenever it may have changed.

    A backend that cannot be reached yields nothing and sets `last_error`: an outage of discovery
    must not empty the fleet.
    """

    @property
    def name(self) -> str:
        """The place that the backend reads, for logs."""
        ...

    @property
    def last_error(self) -> str | None:
        """Why the last reading failed; None after a reading that succeeded."""
        ...

    @property
    def answered_unix_s(self) -> float | None:
        """Up to when the view is known to be fresh, in seconds since 1970.

        None before the first answer, and for a backend that does not say.
        """
        ...

    def frontends_restarted(self) -> None:
        """Report to the backend that a frontend started again, without memory of earlier views."""
        ...

    def views(self) -> AsyncIterator[FleetView]:
        """Views without end. The first view comes at once, even when it is empty."""
        ...
