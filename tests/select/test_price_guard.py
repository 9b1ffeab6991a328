"""The price guard behind a client of the selection service that reports no first tokens."""

from __future__ import annotations

from itertools import count
from typing import Any

from tests.select.conftest import Serve, Served
from tests.waiting import wait_until

HELD = 4
"""Reservations that stay open, so that the first token of the oldest one is due when it ends."""


def guard(service: Served) -> dict[str, Any]:
    (pool,) = service.status()["models"][0]["pools"]
    return pool["price_guard"]


def series(service: Served, name: str) -> dict[str, float]:
    """Values of a metric by its labels."""
    rows = [line for line in service.server.metrics().splitlines() if line.startswith(name)]
    return {labels: float(value) for labels, value in (row.rsplit(" ", 1) for row in rows)}


def end_unreported(service: Served, numbers: count[int]) -> None:
    """Reserve once more, and end the oldest reservation without a report of its first token."""
    number = next(numbers)
    first = 1_000 * number
    service.client.reserve(f"r{number}", "m", list(range(first, first + 100)))
    if number >= HELD:
        assert service.client.free(f"r{number - HELD}") is True


def test_first_tokens_that_go_unreported_make_the_guard_fall_and_status_and_metrics_say_so(
    serve: Serve,
) -> None:
    with serve(routing={"policy": {"name": "toll"}}) as service:
        numbers = count()
        assert guard(service)["is_on"] is True

        def fell() -> bool:
            end_unreported(service, numbers)
            return guard(service)["misfit"] is not None

        wait_until(fell, "a fall of the price guard")
        assert guard(service)["misfit"] == "first_tokens_unreported"
        assert guard(service)["falls"] == 1
        end_unreported(service, numbers)
        misfits = series(service, "wardrop_price_misfit")
        assert sum(misfits.values()) == 1, misfits
        (shown,) = [labels for labels, value in misfits.items() if value == 1]
        assert 'misfit="first_tokens_unreported"' in shown
        assert sum(series(service, "wardrop_price_falls_total").values()) == 1
        assert sum(series(service, "wardrop_static_decisions_total").values()) >= 1


def test_guard_that_is_off_measures_and_lets_the_price_decide(serve: Serve) -> None:
    routing = {"policy": {"name": "toll"}, "price_guard": False}
    with serve(routing=routing) as service:
        numbers = count()

        def seen() -> bool:
            end_unreported(service, numbers)
            return guard(service)["reported_share"] < 0.1

        wait_until(seen, "the share of reported first tokens")
        assert guard(service)["misfit"] is None
        assert guard(service)["is_on"] is False
        assert sum(series(service, "wardrop_static_decisions_total").values()) == 0
