"""Faults on a real fleet. Each test shows that its fault fired, and waits for watermarks only."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.live.client import Answer, get, stream
from tests.live.router import SPREADING, Router, cached_tokens, instance, running, served_by
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(FleetSpec(workers=3, speedup_ratio=20)) as fleet:
        yield fleet


class Load:
    """Clients that send one completion after another until the test stops them."""

    def __init__(self, router: Router, clients: int, max_tokens: int = 20) -> None:
        self.answers: list[tuple[float, float, Answer | Exception]] = []
        self._router = router
        self._max_tokens = max_tokens
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            prompt = [1000 + (number * 977 + i * 31) % 7000 for i in range(96)]
            sent_s = time.monotonic()
            try:
                answer: Answer | Exception = self._router.complete(prompt, self._max_tokens)
            except OSError as error:
                answer = error
            self.answers.append((sent_s, time.monotonic(), answer))

    def ok(self, answer: Answer | Exception) -> bool:
        return isinstance(answer, Answer) and answer.status == 200

    def failed_of_those_sent_after(self, moment_s: float) -> list[Answer | Exception]:
        return [a for sent, _, a in self.answers if sent > moment_s and not self.ok(a)]

    def served_after(self, moment_s: float) -> dict[int, int]:
        """Answers per decode worker, of requests sent after a moment."""
        counts: dict[int, int] = {}
        for sent, _, answer in list(self.answers):
            if sent > moment_s and isinstance(answer, Answer) and answer.status == 200:
                worker = served_by(answer)[1]
                counts[worker] = counts.get(worker, 0) + 1
        return counts


def instance_of(fleet: Fleet, at: int) -> int:
    (only,) = fleet.workers[at].instances
    return only


def test_worker_that_joins_gets_traffic(fleet: Fleet):
    with running(fleet) as router, Load(router, 4) as load:
        wait_until(lambda: len(load.answers) > 20, "traffic")
        new = fleet.add_worker()
        joined_s = time.monotonic()
        (number,) = new.instances
        wait_until(lambda: load.served_after(joined_s).get(number, 0) >= 5, "traffic for the new")
        load.stop()
        assert not load.failed_of_those_sent_after(0)


def test_worker_that_leaves_is_forgotten_and_no_request_fails(fleet: Fleet):
    with running(fleet) as router, Load(router, 4) as load:
        wait_until(lambda: len(load.answers) > 20, "traffic")
        leaver = instance_of(fleet, 0)
        assert load.served_after(0).get(leaver), "it must serve before it leaves"
        fleet.workers[0].child.signal(signal.SIGTERM)
        wait_until(
            lambda: str(leaver) not in router.metrics().by("wardrop_worker_available", "worker_id"),
            "the router to forget it",
        )
        gone_s = time.monotonic()
        wait_until(lambda: sum(load.served_after(gone_s).values()) > 30, "traffic without it")
        load.stop()
        assert leaver not in load.served_after(gone_s)
        assert not load.failed_of_those_sent_after(gone_s)


def test_killed_worker_costs_no_new_request_after_the_first_refusal(fleet: Fleet):
    with running(fleet) as router, Load(router, 12) as load:
        wait_until(lambda: len(load.answers) > 60, "traffic")
        victim = instance_of(fleet, 1)
        assert load.served_after(0).get(victim), "it must serve before it dies"
        fleet.workers[1].child.kill()
        killed_s = time.monotonic()

        # By a refused request or by the end of its feed, whichever comes first.
        wait_until(lambda: router.passes_over(victim), "the dead worker to be passed over")
        refused_s = time.monotonic()
        wait_until(lambda: sum(load.served_after(refused_s).values()) > 150, "traffic after it")
        load.stop()
        assert fleet.workers[1].child.exit_code == -signal.SIGKILL
        assert load.failed_of_those_sent_after(refused_s) == []
        assert victim not in load.served_after(refused_s)
        late = [done - sent for sent, done, _ in load.answers if sent > killed_s]
        assert max(late) < 10, f"slowest request after the kill: {max(late):.2f} s"


def test_hung_worker_is_passed_over_and_comes_back(fleet: Fleet):
    with running(fleet) as router, Load(router, 6) as load:
        wait_until(lambda: len(load.answers) > 40, "traffic")
        hung = instance_of(fleet, 2)
        assert load.served_after(0).get(hung), "it must serve before it hangs"
        fleet.workers[2].child.suspend()
        assert fleet.workers[2].child.state() == "T"

        wait_until(lambda: router.passes_over(hung), "the silent worker to be passed over")
        silent_s = time.monotonic()
        wait_until(lambda: sum(load.served_after(silent_s).values()) > 60, "traffic without it")
        assert hung not in load.served_after(silent_s)
        assert not load.failed_of_those_sent_after(silent_s)

        # Among three idle workers the price prefers the one with the least learned seconds, which
        # need not be the one that slept. It has to serve once it is the last that can.
        fleet.workers[2].child.resume()
        wait_until(lambda: not router.passes_over(hung), "it to be seen alive")
        back_s = time.monotonic()
        for other in fleet.workers[:2]:
            other.child.kill()
        wait_until(lambda: load.served_after(back_s).get(hung, 0) >= 3, "traffic for it again")
        load.stop()


def test_no_worker_is_503_in_openais_shape():
    with Fleet(FleetSpec(workers=1, speedup_ratio=20)) as fleet, running(fleet) as router:
        assert router.complete("one two").status == 200
        assert router.status("/ready") == 200
        fleet.workers[0].child.kill()
        wait_until(lambda: router.status("/ready") == 503, "not ready without a worker")
        answer = router.complete("one two")
        assert answer.status == 503
        assert answer.json()["error"]["code"] == "no_worker"
        assert answer.headers["retry-after"] == "1"
        assert router.status("/live") == 200
        fleet.add_worker()
        wait_until(lambda: router.status("/ready") == 200, "ready again")
        wait_until(lambda: router.complete("one two").status == 200, "served again")


def test_client_that_leaves_frees_its_worker():
    with Fleet(FleetSpec(workers=1, speedup_ratio=1)) as fleet, running(fleet) as router:
        body = {"model": "tiny", "prompt": "one two", "max_tokens": 20_000, "stream": True}
        body["ignore_eos"] = True
        connection, lines = stream(router.url, "/v1/completions", body)
        for _ in range(10):
            assert next(lines)
        assert router.metrics().total("wardrop_worker_active_requests") > 0
        assert router.metrics().total("wardrop_requests_in_flight") == 1
        connection.close()
        del lines
        wait_until(lambda: router.metrics().total("wardrop_requests_in_flight") == 0, "its end")
        wait_until(
            lambda: router.metrics().total("wardrop_worker_active_requests") == 0,
            "its booking's end",
        )
        assert router.metrics().total("wardrop_client_disconnects_total") == 1
        frontend = frontend_url(router)
        wait_until(lambda: dynamo_in_flight(frontend) == 0, "Dynamo to have cancelled it")


def frontend_url(router: Router) -> str:
    line = next(line for line in router.log.splitlines() if "in front of" in line)
    return line.partition("in front of ")[2].partition(",")[0]


def dynamo_in_flight(url: str) -> float:
    from tests.live.client import Metrics

    metrics = Metrics(get(url, "/metrics").body.decode())
    assert "dynamo_frontend_inflight_requests" in metrics.names()
    return metrics.total("dynamo_frontend_inflight_requests")


def test_stop_lets_a_running_stream_end_and_takes_no_new_request(fleet: Fleet):
    with running(fleet) as router:
        body = {"model": "tiny", "prompt": "one two", "max_tokens": 400, "stream": True}
        connection, lines = stream(router.url, "/v1/completions", body)
        assert next(lines)
        children = frontend_pids(router.child.pid)
        assert children, "the frontend must run"
        router.child.signal(signal.SIGTERM)
        wait_until(lambda: router.status("/ready") in (0, 503), "not ready while draining")
        rest = b"".join(lines)
        connection.close()
        assert rest.rstrip().endswith(b"data: [DONE]"), "the stream must end whole"
        wait_until(lambda: router.child.exit_code is not None, "its end")
        assert router.child.exit_code == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "children")


def test_killed_router_takes_its_frontends_with_it(fleet: Fleet):
    with running(fleet) as router:
        children = frontend_pids(router.child.pid)
        assert len(children) == 1
        router.child.kill()
        wait_until(lambda: not any(alive(pid) for pid in children), "the frontend's end")


def frontend_pids(pid: int) -> list[int]:
    """Children of a process that are frontends (a block reader may run beside them).

    A child has the command line of the router, `--frontends` included, until it starts its program.
    """
    children = [
        child
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    name = b"dynamo.frontend"
    return [int(child) for child in children if name in command_line(child)]


def command_line(pid: str) -> bytes:
    """Arguments of a process, with a zero byte after each; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_killed_frontend_is_replaced_and_requests_go_on(fleet: Fleet):
    with running(fleet) as router:
        (pid,) = frontend_pids(router.child.pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "ended with code -9" in router.log, "the fault to be seen")
        wait_until(lambda: router.complete("one two").status == 200, "service again")


def test_new_router_knows_the_blocks_that_the_workers_hold(fleet: Fleet):
    prompts = {n: [1000 + (n * 977 + i * 31) % 7000 for i in range(160)] for n in range(8)}
    with running(fleet, *SPREADING) as first:
        holders = {n: instance(first.complete(prompt)) for n, prompt in prompts.items()}
    assert len(set(holders.values())) == 3
    with running(fleet, *SPREADING) as second:
        wait_until(
            lambda: second.metrics().total("wardrop_worker_held_blocks") >= 8 * 9, "the bootstrap"
        )
        for number, prompt in prompts.items():
            answer = second.complete(prompt + prompt[:40])
            assert instance(answer) == holders[number]
            assert int(answer.headers["x-wardrop-overlap-blocks"]) >= 9
            assert cached_tokens(answer) >= 144
    with running(fleet, "--no-bootstrap") as third:
        assert third.metrics().total("wardrop_worker_held_blocks") == 0, "the negative control"


def test_slow_discovery_store_is_survived(fleet: Fleet):
    """The store's folder vanishes and comes back: the fleet is kept, and routed to, meanwhile."""
    with running(fleet) as router:
        garbage = fleet.store / "v1" / "mdc" / "garbage"
        garbage.write_text(json.dumps({"type": "Model", "card_json": 3, "instance_id": "x"}))
        wait_until(lambda: "mdc/garbage" in router.log, "the bad entry to be logged")
        assert router.complete("one two").status == 200


def test_every_stop_leaves_no_process(fleet: Fleet):
    pids: list[int] = []
    with running(fleet, "--frontends", "2") as router:
        pids = frontend_pids(router.child.pid)
        assert len(pids) == 2
    gone: Callable[[], bool] = lambda: not any(alive(pid) for pid in pids)  # noqa: E731
    wait_until(gone, "both frontends to end")
