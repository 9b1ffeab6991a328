"""Child processes: an interrupt never leaves one behind that its owner does not know."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from wardrop.dynamo.child_process import signals_deferred


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """An interrupt raises, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_held_back_until_the_block_ends() -> None:
    owned: list[str] = []

    def start_and_register() -> None:
        with signals_deferred():
            signal.raise_signal(signal.SIGINT)
            owned.append("the child is known")

    with pytest.raises(KeyboardInterrupt):
        start_and_register()
    assert owned == ["the child is known"]


def test_the_handlers_are_as_before_after_the_block() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with signals_deferred():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
