"""The load driver's clockwork, against a server whose timing is known."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.waiting import DEADLINE_S, wait_until

from wardrop._core import Drive

if TYPE_CHECKING:
    from tests.demo.conftest import TokenServer

Row = tuple[float, int | None, bytes]


def body(tokens: int = 3, **more: object) -> bytes:
    return json.dumps({"max_tokens": tokens, **more}).encode()


def driven(url: str, rows: list[Row], **options: Any) -> dict[str, Any]:
    run = Drive(url, rows, **{"duration_s": 20.0, "timeout_s": 10.0, **options})
    assert run.wait(DEADLINE_S)
    return json.loads(run.report())


def test_times_and_counts_equal_the_servers(token_server: TokenServer) -> None:
    report = driven(token_server.url, [(0.0, None, body(6))])["report"]
    assert report["outcome"] == ["ok"]
    assert report["chunks"] == report["completion_tokens"] == [6]
    assert report["prompt_tokens"] == [10]
    assert report["cached_tokens"] == [4]
    assert report["worker_id"] == ["7"]
    assert report["prefill_worker_id"] == [str(2**63 + 1)]  # 64 bits survive
    ttft_s = report["first_token_s"][0] - report["sent_s"][0]
    assert ttft_s >= 0.05
    decode_s = report["last_token_s"][0] - report["first_token_s"][0]
    assert decode_s + 0.002 >= 5 * 0.02
    assert sum(count for _, count in report["itl_histogram"]) == 5
    assert report["gap_max_s"][0] >= 0.02


def test_a_slow_server_does_not_slow_an_open_loop(token_server: TokenServer) -> None:
    token_server.hold_until(20)  # no answer begins before all requests are in flight
    rows: list[Row] = [(0.01 * i, None, body(1)) for i in range(20)]
    report = driven(token_server.url, rows)["report"]
    assert report["outcome"] == ["ok"] * 20
    assert token_server.most_in_flight == 20
    late_s = [sent - due for sent, due in zip(report["sent_s"], report["due_s"], strict=True)]
    assert min(late_s) >= 0
    assert report["lateness_p99_s"] == pytest.approx(max(late_s), rel=0.5, abs=1e-3)


def test_a_closed_loop_keeps_exactly_its_concurrency(token_server: TokenServer) -> None:
    rows: list[Row] = [(0.0, None, body(2)) for _ in range(30)]
    report = driven(token_server.url, rows, concurrency=4)["report"]
    assert report["outcome"] == ["ok"] * 30
    assert token_server.most_in_flight == 4
    assert token_server.connections == report["connections_opened"] == 4


def test_the_next_turn_leaves_a_think_time_after_the_answer_before(
    token_server: TokenServer,
) -> None:
    rows: list[Row] = [(0.0, None, body(2)), (0.2, 0, body(2)), (0.1, 1, body(1))]
    report = driven(token_server.url, rows)["report"]
    for i, think_s in ((1, 0.2), (2, 0.1)):
        waited_s = report["sent_s"][i] - report["end_s"][i - 1]
        assert waited_s >= think_s
        assert report["due_s"][i] - report["end_s"][i - 1] == pytest.approx(think_s, abs=1e-6)


def test_turns_after_a_failure_are_not_sent_and_others_are(token_server: TokenServer) -> None:
    rows: list[Row] = [(0.0, None, body(fail=503)), (0.0, 0, body()), (0.1, None, body(1))]
    answer = driven(token_server.url, rows)
    assert answer["report"]["outcome"] == ["refused", "unsent", "ok"]
    assert answer["report"]["status"] == [503, None, 200]
    assert answer["first_error"] == '{"error":{"message":"no"}}'
    assert len(token_server.arrivals) == 2


def test_every_kind_of_failure_has_its_own_outcome(token_server: TokenServer) -> None:
    rows: list[Row] = [(0.0, None, body(hang=True)), (0.0, None, body(2, cut=True))]
    report = driven(token_server.url, rows, timeout_s=0.5)["report"]
    assert report["outcome"] == ["timeout", "broken"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/"
        answer = driven(url, [(0.0, None, body())])
    assert answer["report"]["outcome"] == ["broken"]
    assert "refused" in answer["first_error"].lower()


def test_more_in_flight_than_allowed_is_shed_and_counted(token_server: TokenServer) -> None:
    rows: list[Row] = [(0.01 * i, None, body(hang=True)) for i in range(10)]
    run = Drive(token_server.url, rows, duration_s=20, timeout_s=60, max_in_flight=3)
    wait_until(lambda: run.progress()["ended"] == 7, "the requests that are shed")
    run.stop()
    assert run.wait(DEADLINE_S)
    report = json.loads(run.report())["report"]
    assert sorted(report["outcome"]) == ["shed"] * 7 + ["stopped"] * 3


def test_nothing_leaves_after_the_duration(token_server: TokenServer) -> None:
    rows: list[Row] = [(0.0, None, body(1)), (600.0, None, body(1))]
    report = driven(token_server.url, rows, duration_s=0.5)["report"]
    assert report["outcome"] == ["ok", "unsent"]


def test_a_stop_ends_the_run_at_once(token_server: TokenServer) -> None:
    rows: list[Row] = [(0.0, None, body(hang=True)), (9.0, None, body())]
    run = Drive(token_server.url, rows, duration_s=120, timeout_s=120)
    wait_until(lambda: run.progress()["sent"] == 1, "the first request")
    assert not run.wait(0.05)
    with pytest.raises(RuntimeError, match="still running"):
        run.report()
    run.stop()
    assert run.wait(DEADLINE_S)
    report = json.loads(run.report())["report"]
    assert report["outcome"] == ["stopped", "unsent"]
    assert json.loads(run.report())["report"] == report  # can be read again


def test_progress_ends_with_everything_counted(token_server: TokenServer) -> None:
    run = Drive(
        token_server.url,
        [(0.0, None, body(4)), (0.0, None, body(fail=500))],
        duration_s=5,
        timeout_s=5,
    )
    assert run.wait(DEADLINE_S)
    progress = run.progress()
    assert progress["finished"]
    assert (progress["sent"], progress["ended"], progress["ok"]) == (2, 2, 1)
    assert progress["tokens"] == 4
    assert progress["ttft_p50_s"] > 0.04


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        ([], {}, "requests: got 0"),
        ([(-1.0, None, b"{}")], {}, "a time of -1"),
        ([(0.0, 0, b"{}")], {}, "expected an earlier one"),
        ([(0.0, None, b"{}"), (0.0, 0, b"{}")], {"concurrency": 1}, "closed loop"),
        ([(0.0, None, b"{}")], {"duration_s": 0.0}, "duration_s: got 0"),
        ([(0.0, None, b"{}")], {"url": "https://127.0.0.1/"}, "url: got"),
    ],
)
def test_a_plan_that_can_not_be_driven_is_refused(
    rows: list[Row], options: dict[str, Any], what: str
) -> None:
    given = {"url": "http://127.0.0.1:9/", "duration_s": 1.0, "timeout_s": 1.0, **options}
    with pytest.raises(ValueError, match=what):
        Drive(given.pop("url"), rows, **given)
