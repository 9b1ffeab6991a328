"""Shadow fleets in a running gateway, in front of a scripted upstream."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.waiting import wait_until

from wardrop._core import Gateway
from wardrop.control.shadows import table

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CANARY = 918_273_645
"""A token id that must never be seen again."""


def chunk(text: str) -> bytes:
    line = f"data: {text}\n\n".encode()
    return f"{len(line):x}\r\n".encode() + line + b"\r\n"


class Engine:
    """Four tokens: the first after `first_s`, now and then after `stall_s` more."""

    def __init__(self, first_s: float, stall_s: float = 0.0, stall_every: int = 10):
        self.first_s, self.stall_s, self.stall_every = first_s, stall_s, stall_every
        self.served = self.stalled = 0
        self.lock = threading.Lock()

    def __call__(self, seen, conn):
        with self.lock:
            self.served += 1
            stalls = self.stall_s > 0 and self.served % self.stall_every == 0
            self.stalled += stalls
        time.sleep(self.first_s + self.stall_s * stalls)
        conn.sendall(SSE + chunk('{"choices":[{"text":"a"}]}'))
        for _ in range(3):
            time.sleep(0.004)
            conn.sendall(chunk('{"choices":[{"text":"a"}]}'))
        return chunk("[DONE]") + b"0\r\n\r\n"


def shadow(name: str, queue: dict[str, float] | None = None, **parameters: float):
    made = {"name": name, "policy": {"name": name.partition("(")[0].partition("+")[0]}}
    made["policy"] |= parameters
    return made if queue is None else made | {"queue": queue}


def bounds(*policies, **more):
    fast = {"tick_s": 0.6, "window_ticks": 10, "warm_ticks": 2, "lag_s": 0.5}
    return {"shadows": {"policies": list(policies), **fast, **more}}


class Stream:
    """An open loop of prompts behind a few shared heads, until the block ends."""

    def __init__(self, running, per_s: float, **fields):
        self.running, self.per_s, self.fields = running, per_s, fields
        self.stop = threading.Event()
        self.clients = ThreadPoolExecutor(64)
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.clients.shutdown()

    def _run(self):
        number = 0
        while not self.stop.wait(1 / self.per_s):
            number += 1
            head = [CANARY, *range(1000 * (number % 5), 1000 * (number % 5) + 39)]
            prompt = [*head, *(10_000 + number * 10 + i for i in range(8))]
            body = {"stream": True, "max_tokens": 4, **self.fields}
            self.clients.submit(self.running.complete, prompt, **body)


def report(running):
    (only,) = json.loads(running.gateway.shadows()) or [{}]
    return only


def whole(running):
    return lambda: running.metric("shadow_ticks") >= 10


def own_threads() -> set[str]:
    return {task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")}


def test_figures_of_every_policy_appear_with_differences_cost_and_trust(upstream, serve):
    upstream.script = Engine(0.06)
    policies = [shadow("round_robin"), shadow("toll+queue", {"kappa": 30}), shadow("toll")]
    running = serve(
        workers=(1, 2, 3, 4, 5, 6),
        routing={"policy": {"name": "toll"}},
        **bounds(*policies, ttft_slo_s=1.0, itl_slo_s=0.05),
    )
    with Stream(running, 12):
        wait_until(whole(running), "a whole window")
        wait_until(lambda: report(running)["trust"]["trusted"], "trust")
        shadows, page = report(running), running.gateway.metrics()
    names = ["in_force", "round_robin", "toll+queue", "toll"]
    assert [arm["name"] for arm in shadows["arms"]] == names
    for name in names:
        for figure in ("time_to_first_token", "inter_token_latency", "end_to_end"):
            metric = f"shadow_{figure}_seconds"
            assert running.metric(metric, policy=name, statistic="mean") > 0, (name, figure)
        assert 0 <= running.metric("shadow_reuse_ratio", policy=name) <= 1
        assert 0 < running.metric("shadow_goodput_ratio", policy=name) <= 1
        if name != "in_force":
            low, value, high = (
                running.metric(f"shadow_difference_ratio{end}", policy=name, figure="ttft")
                for end in ("_low", "", "_high")
            )
            assert low <= value <= high
    # Simulated seconds are those of the engine: they are learned from it.
    assert 0.8 < running.metric("shadow_clock_ratio", model="m") < 1.25
    assert running.metric("shadow_trusted", model="m") == 1
    assert running.metric("shadow_requests_total", result="fed") > 60
    assert running.metric("shadow_requests_total", result="dropped") == 0
    assert 0 < running.metric("shadow_cpu_seconds_total", model="m") < 1.0
    assert 0.4 < running.metric("shadow_age_seconds", model="m") < 5.0
    assert shadows["has_goodput"]
    assert shadows["assumed_capacities"] == 6
    # The policy in force beside itself: no difference beyond the interval, and none of any size.
    same = shadows["arms"][3]["ttft_ratio"]
    assert same["low"] <= 1.0 <= same["high"] or abs(same["value"] - 1) < 0.05, same
    # No queue is in force, so a shadow with one differs in more than the calibrator may move.
    assert [policy["is_adoptable"] for policy in shadows["policies"]] == [False] * 4
    assert str(CANARY) not in json.dumps(shadows) + page


def test_what_relaxing_each_limit_saves_appears_without_any_shadow_policy(upstream, serve):
    upstream.script = Engine(0.03)
    running = serve(workers=(1, 2), **bounds(limits=True))
    with Stream(running, 20):
        wait_until(whole(running), "a whole window")
        found = report(running)
    assert [arm["name"] for arm in found["arms"]] == ["in_force"]
    names = [limit["limit"] for limit in found["limits"]]
    assert names[:2] == ["shared_cache", "kv_memory"]
    assert names[-1] == "one_more_worker"
    assert found["limits_without_room"] == []
    assert set(found["suggested"].values()) == {None}
    for limit in found["limits"]:
        for figure in ("ttft", "e2e"):
            saving = limit[f"{figure}_saving"]
            assert saving["low"] <= saving["value"] <= saving["high"] < 1, limit
            low, value, high = (
                running.sample(
                    f"shadow_limit_saving_ratio{end}", relaxed=limit["limit"], figure=figure
                )
                for end in ("_low", "", "_high")
            )
            assert low <= value <= high
    text = table([found])
    assert "what would help" in text
    assert "one more worker" in text


def test_shadows_follow_policy_and_workers_while_the_gateway_runs(upstream, serve):
    upstream.script = Engine(0.02)
    candidates = [shadow("toll(e2e=1)", e2e=1.0, ttft=0.0), shadow("toll+queue", {"kappa": 30})]
    running = serve(workers=(1, 2), **bounds(*candidates))
    with Stream(running, 30):
        wait_until(lambda: report(running).get("ticks", 0) > 3, "ticks")
        assert report(running)["policies"][0]["policy"]["name"] == "least_loaded"
        change = {"policy": {"name": "toll"}, "queue": {"kappa": 5, "backlog_s": 0.5}}
        running.gateway.set_routing(json.dumps(change))
        wait_until(lambda: report(running)["policies"][0]["policy"]["name"] == "toll", "the change")
        wait_until(lambda: report(running)["ticks"] < 3, "comparisons that start over")
        shadows = report(running)
        assert shadows["policies"][2]["queue"]["backlog_s"] == 0.5, "not named: as in force"
        assert [policy["is_adoptable"] for policy in shadows["policies"]] == [False, False, True]
        for instance in (7, 8):
            worker = {"model": "m", "role": "aggregated", "instance": instance}
            running.gateway.upsert_worker(json.dumps(worker | {"total_kv_blocks": 99}))
        running.gateway.remove_worker("m", "aggregated", 1)
        wait_until(lambda: report(running)["workers"] == 3, "three workers")
        assert report(running)["assumed_capacities"] == 1
        wait_until(whole(running), "a whole window after it")
        shadows = report(running)
        assert shadows["arms"][1]["refused"] == 0
        assert shadows["counts"]["dropped"] == 0
        for instance in (2, 7, 8):
            running.gateway.remove_worker("m", "aggregated", instance)
        wait_until(lambda: report(running)["note"] == "no worker yet", "no shadows without workers")


def test_both_legs_of_a_split_are_shadowed_together(upstream, serve):
    upstream.script = Engine(0.03)
    running = serve(workers=(), **bounds(shadow("round_robin"), shadow("toll")))
    for instance, role in enumerate(["prefill", "prefill", "decode", "decode", "decode"]):
        worker = {"model": "m", "role": role, "instance": instance, "total_kv_blocks": 512}
        running.gateway.upsert_worker(json.dumps(worker))
    with Stream(running, 20):
        wait_until(whole(running), "a whole window")
        shadows = report(running)
    assert (shadows["roles"], shadows["workers"]) == (["prefill", "decode"], 5)
    assert shadows["arms"][2]["completed"] > 50
    assert shadows["arms"][2]["itl_s"]["value"] > 0


def test_what_does_not_fit_is_dropped_and_counted_and_no_request_waits_for_it(upstream, serve):
    running = serve(workers=(1, 2), **bounds(shadow("toll"), max_events=1))
    wait_until(lambda: running.metric("shadow_ticks") == 0 and report(running), "the thread")
    wait_until(lambda: report(running).get("arms"), "shadows")
    with ThreadPoolExecutor(16) as clients:
        prompts = [[CANARY, i, *range(20)] for i in range(400)]
        answers = list(clients.map(running.complete, prompts))
    assert {status for status, _, _ in answers} == {200}
    dropped = running.metric("shadow_requests_total", result="dropped")
    assert dropped > 50
    wait_until(lambda: running.metric("shadow_requests_total", result="fed") > 0, "some were fed")
    fed = running.metric("shadow_requests_total", result="fed")
    assert dropped + fed + report(running)["waiting"] <= 400
    # The ticks that they were in say nothing.
    wait_until(
        lambda: sum(report(running)["lost_ticks"].values()) > 0 and report(running)["ticks"] == 0,
        "spoiled ticks",
    )


def test_without_shadows_there_is_no_thread_no_figure_and_no_word(serve):
    before = own_threads()
    running = serve(workers=(1, 2))
    for i in range(20):
        assert running.complete([i, *range(20)])[0] == 200
    assert running.gateway.shadows() is None
    assert "wardrop_shadow" not in running.gateway.metrics()
    assert "wardrop-shadows" not in own_threads() - before
    beside = serve(workers=(1, 2), **bounds(shadow("toll")))
    wait_until(lambda: "wardrop-shadows" in own_threads(), "the thread")
    beside.gateway.stop()
    assert "wardrop-shadows" not in own_threads() - before


def test_the_clock_is_doubted_where_engines_are_slow_in_a_way_that_no_curve_knows(upstream, serve):
    engine = upstream.script = Engine(0.06, stall_s=1.0)
    running = serve(workers=(1, 2, 3, 4, 5, 6), **bounds(shadow("toll"), shadow("round_robin")))
    with Stream(running, 12):
        wait_until(whole(running), "a whole window")
        wait_until(lambda: report(running)["trust"]["measured"] >= 50, "measured requests")
        shadows = report(running)
    assert engine.stalled > 5, "the fault must have fired"
    assert not shadows["trust"]["trusted"]
    assert shadows["trust"]["clock_ratio"] < 0.8
    assert "differ too much" in shadows["trust"]["reason"]
    assert running.metric("shadow_trusted", model="m") == 0
    assert set(shadows["suggested"].values()) == {None}


def test_answers_in_one_piece_leave_the_clock_unchecked(serve):
    running = serve(workers=(1, 2, 3), **bounds(shadow("toll")))
    with Stream(running, 30, stream=False):
        wait_until(whole(running), "a whole window")
        shadows = report(running)
    assert (shadows["trust"]["measured"], shadows["trust"]["trusted"]) == (0, False)
    assert "too few measured" in shadows["trust"]["reason"]


def test_requests_that_failed_are_no_load_in_the_shadows(upstream, serve):
    body = b'{"error": "no"}'
    head = f"HTTP/1.1 400 Bad Request\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    upstream.script = lambda seen, conn: head + body
    running = serve(workers=(1, 2), **bounds(shadow("toll"), lag_s=2.0))
    wait_until(lambda: (json.loads(running.gateway.shadows()) or [{}])[0].get("arms"), "shadows")
    for i in range(20):
        assert running.complete([i, *range(20)])[0] == 400
    wait_until(lambda: report(running)["counts"]["withdrawn"] == 20, "all of them withdrawn")
    assert report(running)["counts"]["simulated"] == 0


@pytest.mark.parametrize(
    ("shadows", "says"),
    [
        ({"policies": []}, "no policy and no limits"),
        ({"policies": [shadow("tolll")]}, "tolll"),
        ({"policies": [shadow("toll")], "cpu_share": 0}, "cpu_share"),
        ({"policies": [shadow("toll")], "ttft_slo_s": 1}, "go together"),
        ({"policies": [shadow("toll"), shadow("toll")]}, "different from every other"),
        ({"policies": [shadow(f"toll({n})") for n in range(16)], "limits": True}, "1 to 16 arms"),
    ],
)
def test_shadows_that_can_not_be_are_refused_at_the_start(shadows, says):
    with pytest.raises(ValueError, match=says):
        Gateway(json.dumps({"shadows": shadows}))


def test_a_fleet_too_large_to_shadow_is_told(serve):
    running = serve(workers=(1, 2), **bounds(shadow("toll"), max_blocks=1000))
    wait_until(lambda: "KV blocks" in (report(running).get("note") or ""), "the reason")
    assert running.metric("shadow_trusted", model="m") == 0
