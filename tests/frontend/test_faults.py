"""Workers that die or stop in mid-stream: the answer goes on elsewhere, with every token once."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.frontend.native import Native, running
from tests.frontend.test_live import prompt
from tests.live.client import stream
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network", "binary")]

TOKENS = 400
STREAMS = 12
FLAGS = ("--migration-limit", "3", "--wardrop-policy", "dynamo")


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(FleetSpec(workers=3, speedup_ratio=2)) as fleet:
        yield fleet


class Client(threading.Thread):
    """One streamed completion, with the time of each token."""

    def __init__(self, native: Native, number: int) -> None:
        super().__init__()
        self.native, self.number = native, number
        self.times_s: list[float] = []
        self.end: dict[str, Any] = {}
        self.error: object = None
        self.done = False

    def run(self) -> None:
        fields = {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
        body = self.native.body(prompt(self.number), TOKENS, **fields)
        try:
            connection, lines = stream(self.native.url, "/v1/completions", body)
            for line in lines:
                if line.startswith(b"data: [DONE]"):
                    self.done = True
                elif line.startswith(b"data: "):
                    self.take(json.loads(line[6:]))
                elif line.startswith(b"event: error"):
                    self.error = line
            connection.close()
        except (OSError, AssertionError) as error:
            self.error = error

    def take(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            self.error = event["error"]
        if event.get("usage"):
            self.end = event["usage"]
        if event.get("choices") and event["choices"][0].get("text"):
            self.times_s.append(time.monotonic())

    @property
    def longest_silence_s(self) -> float:
        pairs = zip(self.times_s, self.times_s[1:], strict=False)
        return max((later - earlier for earlier, later in pairs), default=0.0)


def serving(native: Native) -> dict[str, float]:
    """Requests under way, by worker instance."""
    return native.metrics().by("wardrop_worker_active_requests", "worker_id")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_of_a_worker_that_fails_go_on_elsewhere_with_every_token_once(
    fleet: Fleet, sent: signal.Signals
):
    with running(fleet, *FLAGS) as native:
        clients = [Client(native, number) for number in range(STREAMS)]
        for client in clients:
            client.start()
        wait_until(lambda: all(len(c.times_s) > 20 for c in clients), "streams under way")
        victim = fleet.workers[0]
        (instance,) = victim.instances
        assert serving(native)[str(instance)] > 0, "the fault hits nobody"
        os.kill(victim.child.pid, sent)
        try:
            for client in clients:
                client.join(120)
            assert [c.error for c in clients] == [None] * STREAMS
            assert all(c.done for c in clients)
            assert [c.end.get("completion_tokens") for c in clients] == [TOKENS] * STREAMS
            moved = native.metrics().total("dynamo_frontend_model_migration_total")
            assert moved > 0, "nothing moved"
            after = [native.complete(prompt(100 + n), 4) for n in range(12)]
            assert [answer.status for answer in after] == [200] * 12
            wait_until(lambda: native.bookings() == 0, "the release of all bookings")
            if sent == signal.SIGSTOP:
                # The health rule alone notices the stop, after 2 s; the machine may be busy.
                assert 1.0 < max(c.longest_silence_s for c in clients) < 5.0
        finally:
            if sent == signal.SIGSTOP:
                os.kill(victim.child.pid, signal.SIGCONT)


def test_without_migration_a_fault_ends_only_the_streams_of_its_worker(fleet: Fleet):
    with running(fleet, "--wardrop-policy", "dynamo") as native:
        clients = [Client(native, number) for number in range(STREAMS)]
        for client in clients:
            client.start()
        wait_until(lambda: all(len(c.times_s) > 20 for c in clients), "streams under way")
        victim = fleet.workers[0]
        (instance,) = victim.instances
        hit = serving(native)[str(instance)]
        assert 0 < hit < STREAMS
        os.kill(victim.child.pid, signal.SIGKILL)
        for client in clients:
            client.join(120)
        failed = [client for client in clients if client.error is not None]
        assert len(failed) == hit, [client.error for client in clients]
        assert all(c.end.get("completion_tokens") == TOKENS for c in clients if c not in failed)
        after = [native.complete(prompt(100 + n), 4) for n in range(12)]
        assert [answer.status for answer in after] == [200] * 12
        wait_until(lambda: native.bookings() == 0, "the release of all bookings")


def test_stopped_worker_is_chosen_again_only_after_it_proved_itself(fleet: Fleet):
    with running(fleet, *FLAGS) as native:
        victim = fleet.workers[0]
        # Silence is a fault only of a worker that has sent heartbeats before.
        wait_until(
            lambda: (
                len(native.metrics().by("wardrop_worker_heartbeat_age_seconds", "worker_id")) == 3
            ),
            "a heartbeat of every worker",
        )
        os.kill(victim.child.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: native.available() == 2, "the silence of the stopped worker")
            before = native.decisions()
            answers = [native.complete(prompt(n), 4) for n in range(12)]
            assert [answer.status for answer in answers] == [200] * 12
            assert native.decisions() == before + 12
        finally:
            os.kill(victim.child.pid, signal.SIGCONT)
        wait_until(lambda: native.available() == 3, "the return of the worker")
