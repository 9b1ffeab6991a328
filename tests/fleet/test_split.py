"""`wardrop serve` in front of prefill and decode workers: what each leg receives, and failures."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.conftest import BY_OVERLAP
from tests.fleet.engine import BLOCK_TOKENS, Bootstrap, Engine
from tests.waiting import DEADLINE_S, wait_until

from wardrop.config import Config
from wardrop.errors import InputError
from wardrop.fleet import parse_selector, parse_worker
from wardrop.fleet.source import FleetSource
from wardrop.fleet.spec import FleetSpec, read_fleet

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve-engines.md"
REMOTE_DECODE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def tokens(number: int, blocks: int = 8) -> list[int]:
    return [number * 100_000 + at for at in range(blocks * BLOCK_TOKENS + 3)]


def fleet(engines: Any, connector: str, prefills: int = 1, decodes: int = 1) -> list[Engine]:
    """Prefill workers, then decode workers, which can meet one another."""
    bootstrap = Bootstrap()
    options = {"connector": connector, "bootstrap": bootstrap}
    return [engines(role="prefill", **options) for _ in range(prefills)] + [
        engines(role="decode", **options) for _ in range(decodes)
    ]


def ways(router: Any) -> dict[str, float]:
    names = ("split", "without_transfer", "whole")
    counts = {name: router.metric("split_requests_total", way=name) for name in names}
    return {name: count for name, count in counts.items() if count}


def await_idle(router: Any) -> None:
    wait_until(lambda: router.metric("worker_active_requests") == 0, "an idle fleet")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_vllm_decode_leg_gets_what_the_prefill_leg_answered(route, engines, is_streamed):
    prefill, decode = fleet(engines, "vllm")
    router = route(prefill, decode)
    fields = {"max_tokens": 7, "temperature": 0.5, "min_tokens": 2}
    if is_streamed:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    forged = {"kv_transfer_params": {"remote_host": "elsewhere"}}
    status, _, _ = router.complete(
        tokens(1), **fields, **forged, headers={"x-request-id": "mine", "accept-encoding": "gzip"}
    )
    assert status == 200
    [first], [second] = prefill.served, decode.served
    shared = {"model": "m", "prompt": tokens(1), "temperature": 0.5}
    assert first == shared | {
        "stream": False,
        "max_tokens": 1,
        "kv_transfer_params": REMOTE_DECODE,
    }
    transfer = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": prefill.url,
        "remote_block_ids": [1, 2, 3],
        "remote_host": "127.0.0.1",
        "remote_port": prefill.port,
    }
    assert second == shared | fields | {"kv_transfer_params": transfer}
    for headers in (prefill.headers[0], decode.headers[0]):
        assert headers["x-request-id"] == "mine"
        assert "accept-encoding" not in headers
    assert ways(router) == {"split": 1}
    await_idle(router)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_sglang_legs_get_one_body_with_the_place_where_they_meet(route, engines, is_streamed):
    prefill, decode = fleet(engines, "sglang")
    router = route(prefill, decode)
    forged = {"bootstrap_host": "elsewhere", "bootstrap_room": 1}
    for number in (1, 2):
        fields = {"max_tokens": 7, "stream": is_streamed}
        assert router.complete(tokens(number), **fields, **forged)[0] == 200
    assert prefill.served == decode.served
    rooms = [body["bootstrap_room"] for body in prefill.served]
    assert len(set(rooms)) == 2
    assert all(1 < room < 1 << 63 for room in rooms)
    for body in prefill.served:
        assert (body["bootstrap_host"], body["bootstrap_port"]) == ("127.0.0.1", prefill.port)
        assert (body["max_tokens"], body["stream"]) == (7, is_streamed)
    assert ways(router) == {"split": 2}
    await_idle(router)


def test_sglang_batch_has_a_room_for_each_prompt(route, engines):
    prefill, decode = fleet(engines, "sglang")
    router = route(prefill, decode)
    assert router.ask("POST", "/v1/completions", {"model": "m", "prompt": ["a", "b"]})[0] == 200
    [body] = decode.served
    assert body["bootstrap_host"] == ["127.0.0.1"] * 2
    assert len(set(body["bootstrap_room"])) == 2
    assert prefill.served == [body]


def test_sglang_room_names_the_prefill_rank(route, engines):
    bootstrap = Bootstrap()
    options = {"connector": "sglang", "bootstrap": bootstrap, "events": False}
    prefill = engines(role="prefill", ranks=3, **options)
    decode = engines(role="decode", **options)
    router = route(prefill, decode, count=4)
    for number in range(9):
        router.complete(tokens(number))
    for body, headers in zip(prefill.served, prefill.headers, strict=True):
        assert body["bootstrap_room"] % 3 == int(headers["x-data-parallel-rank"])
    assert len({headers["x-data-parallel-rank"] for headers in prefill.headers}) > 1
    assert all("x-data-parallel-rank" not in headers for headers in decode.headers)


def test_second_turn_goes_to_the_prefill_worker_that_holds_the_first(route, engines):
    pair = fleet(engines, "vllm", prefills=2)
    router = route(*pair, config=BY_OVERLAP)
    for number in range(4):
        before = [len(each.served) for each in pair]
        router.complete(tokens(number))
        owner = next(at for at in (0, 1) if len(pair[at].served) > before[at])
        router.await_index(pair[owner])
        answer = router.complete([*tokens(number), *range(40)], stream=True)
        assert len(pair[owner].served) == before[owner] + 2
        outcome = router.receipt(answer)["outcome"]
        assert outcome["predicted_cached_tokens"] == outcome["cached_tokens"] == 8 * BLOCK_TOKENS


def break_engine(engine: Engine, fault: str) -> None:
    if fault == "down":
        engine.server.shutdown()
        engine.server.server_close()
        engine.server.cut()
    elif fault == "breaks":
        engine.breaks = True
    else:
        engine.status = int(fault)


FAULTS = {
    "down": "prefill_down",
    "breaks": "prefill_broken",
    "500": "prefill_failed",
    "503": "prefill_overloaded",
}


@pytest.mark.parametrize("connector", ["vllm", "sglang"])
@pytest.mark.parametrize("fault", FAULTS)
def test_failed_prefill_leg_moves_to_another_prefill_worker(route, engines, connector, fault):
    one, other, decode = fleet(engines, connector, prefills=2)
    router = route(one, other, decode, config=BY_OVERLAP)
    assert router.complete(tokens(1))[0] == 200
    owner, spare = (one, other) if one.served else (other, one)
    router.await_index(owner)
    break_engine(owner, fault)
    assert router.complete([*tokens(1), 1, 2, 3])[0] == 200
    assert len(spare.served) == 1
    assert router.metric("retries_total", reason=FAULTS[fault]) == 1
    assert ways(router) == {"split": 2}
    # Only the worker of the failed leg is blamed.
    assert router.worker(decode)["available"]
    await_idle(router)


@pytest.mark.parametrize("fault", FAULTS)
def test_vllm_decode_worker_runs_the_whole_request_without_a_prefill_worker(route, engines, fault):
    prefill, decode = fleet(engines, "vllm")
    router = route(prefill, decode)
    break_engine(prefill, fault)
    status, _, body = router.complete(tokens(1), max_tokens=5)
    assert status == 200
    assert body["usage"]["completion_tokens"] == 5
    assert [each.get("kv_transfer_params") for each in decode.served] == [None]
    assert ways(router) == {"whole": 1}
    await_idle(router)


def test_decode_workers_alone_serve_whole_requests(route, engines):
    _, decode = fleet(engines, "vllm")
    router = route(decode)
    assert router.complete(tokens(1))[0] == 200
    assert ways(router) == {"whole": 1}


def test_sglang_falls_back_to_an_aggregated_worker(route, engines):
    prefill, decode = fleet(engines, "sglang")
    both = engines()
    router = route(prefill, decode, both)
    assert router.complete(tokens(1))[0] == 200
    assert not both.served
    break_engine(prefill, "down")
    assert router.complete(tokens(2))[0] == 200
    assert len(both.served) == 1
    assert "bootstrap_room" not in both.served[0]
    await_idle(router)


@pytest.mark.parametrize("fault", FAULTS)
def test_sglang_without_a_prefill_worker_gives_the_error(route, engines, fault):
    prefill, decode = fleet(engines, "sglang")
    router = route(prefill, decode)
    break_engine(prefill, fault)
    status, _, body = router.complete(tokens(1))
    expected = {"down": 503, "breaks": 502}.get(fault) or int(fault)
    assert status == expected, body
    # The decode leg waited for a prefill leg that never came, and was cancelled.
    wait_until(lambda: decode.aborted == len(decode.served), "a cancelled decode leg")
    await_idle(router)


@pytest.mark.parametrize("connector", ["vllm", "sglang"])
def test_failed_decode_leg_moves_both_legs(route, engines, connector):
    prefill, one, other = fleet(engines, connector, decodes=2)
    router = route(prefill, one, other)
    one.status = other.status = 500
    status, _, body = router.complete(tokens(1))
    assert (status, body["error"]["message"]) == (500, "scripted")
    assert len(one.served) == len(other.served) == 1
    if connector == "vllm":  # a failed decode leg of SGLang may cancel a prefill leg early
        assert len(prefill.served) == 2
    one.status = other.status = 200
    router.await_workers(3)
    await_idle(router)


@pytest.mark.parametrize("connector", ["vllm", "sglang"])
def test_error_of_the_request_at_the_prefill_leg_reaches_the_client(route, engines, connector):
    prefill, decode = fleet(engines, connector)
    router = route(prefill, decode)
    prefill.status = 400
    status, _, body = router.complete(tokens(1))
    assert (status, body["error"]["message"]) == (400, "scripted")
    assert len(prefill.served) == 1
    assert router.metric("retries_total") == 0
    await_idle(router)


def test_prefill_worker_that_keeps_no_blocks_is_counted(route, engines):
    prefill, decode = fleet(engines, "vllm")
    prefill.keeps_blocks = False
    router = route(prefill, decode)
    assert router.complete(tokens(1))[0] == 200
    assert "kv_transfer_params" not in decode.served[0]
    assert ways(router) == {"without_transfer": 1}


@pytest.mark.parametrize(
    ("connector", "waiting"), [("vllm", "prefill"), ("vllm", "decode"), ("sglang", "both")]
)
def test_client_that_leaves_cancels_both_legs(route, engines, connector, waiting):
    prefill, decode = fleet(engines, connector)
    router = route(prefill, decode)
    if waiting in ("prefill", "both"):
        prefill.gate.clear()
    if waiting in ("decode", "both"):
        decode.gate.clear()
    client = http.client.HTTPConnection("127.0.0.1", router.server.port, timeout=DEADLINE_S)
    body = {"model": "m", "prompt": tokens(1), "max_tokens": 5, "stream": True}
    client.request("POST", "/v1/completions", json.dumps(body), {"content-type": "text/json"})
    expected = {"prefill": (1, 0), "decode": (1, 1), "both": (1, 1)}[waiting]
    wait_until(lambda: (len(prefill.served), len(decode.served)) == expected, "the legs")
    client.close()
    held = [each for each in (prefill, decode) if not each.gate.is_set()]
    for each in held:
        wait_until(lambda e=each: e.aborted == 1, "a cancelled leg")
    await_idle(router)
    assert len(decode.served) == expected[1]


@pytest.mark.parametrize(("connector", "status"), [("vllm", 200), ("sglang", 503)])
def test_route_that_no_connector_splits_needs_a_worker_for_the_whole(
    route, engines, connector, status
):
    prefill, decode = fleet(engines, connector)
    router = route(prefill, decode)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    assert router.ask("POST", "/v1/messages", body)[0] == status
    assert (len(prefill.served), len(decode.served)) == (0, int(status == 200))
    await_idle(router)


@pytest.mark.parametrize("fault", ["down", "500"])
def test_route_that_no_connector_splits_stays_whole_after_a_failure(route, engines, fault):
    prefill, decode = fleet(engines, "vllm")
    both = engines()
    router = route(prefill, decode, both)
    break_engine(both, fault)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    assert router.ask("POST", "/v1/messages", body)[0] == 200
    assert (len(prefill.served), len(decode.served)) == (0, 1)
    await_idle(router)


def test_batch_whose_meetings_are_larger_than_a_body_is_refused(route, engines):
    config = Config()
    limited = replace(config, limits=replace(config.limits, body_bytes=4096))
    prefill, decode = fleet(engines, "sglang")
    router = route(prefill, decode, config=limited)
    few, many = ([""] * count for count in (10, 1_000))
    assert router.ask("POST", "/v1/completions", {"model": "m", "prompt": few})[0] == 200
    assert router.ask("POST", "/v1/completions", {"model": "m", "prompt": many})[0] == 413
    assert len(decode.served) == 1
    await_idle(router)


def test_silent_sglang_prefill_worker_moves_the_request(route, engines):
    one, other, decode = fleet(engines, "sglang", prefills=2)
    router = route(one, other, decode, config=BY_OVERLAP)
    assert router.complete(tokens(1))[0] == 200
    owner, spare = (one, other) if one.served else (other, one)
    router.await_index(owner)
    owner.gate.clear()
    owner.awake.clear()
    assert router.complete([*tokens(1), 1, 2, 3])[0] == 200
    assert len(spare.served) == 1
    assert router.metric("retries_total", reason="prefill_silent") == 1
    owner.gate.set()
    owner.awake.set()
    await_idle(router)


def test_new_bootstrap_port_in_the_file_is_used(route, engines, tmp_path: Path):
    prefill, decode = fleet(engines, "sglang")
    file = tmp_path / "fleet.yaml"

    def write(port: int) -> None:
        file.write_text(
            f"workers:\n"
            f"  - {{url: '{prefill.url}', role: prefill, connector: sglang,\n"
            f"     bootstrap_port: {port}}}\n"
            f"  - {{url: '{decode.url}', role: decode, connector: sglang}}\n"
        )

    write(9_001)
    router = route(file=file, count=2)
    numbers = itertools.count()

    def met() -> int:
        assert router.complete(tokens(next(numbers)))[0] == 200
        return prefill.served[-1]["bootstrap_port"]

    assert met() == 9_001
    write(9_002)
    wait_until(lambda: met() == 9_002, "the new port")


def test_servers_behind_a_name_meet_at_their_own_addresses(monkeypatch: pytest.MonkeyPatch):
    spec = parse_worker("http://name:80,dns=true,role=prefill,connector=sglang")
    source = FleetSource(FleetSpec(workers=(spec,)))
    monkeypatch.setattr(source, "_addresses", {"name": ("10.0.0.1", "10.0.0.2")})
    places = [member.spec.transfer for member in source._wanted()]
    assert [place and place["bootstrap_host"] for place in places] == ["10.0.0.1", "10.0.0.2"]


def test_many_split_requests_at_once_leave_nothing_behind(route, engines):
    pair = fleet(engines, "sglang", prefills=2, decodes=2)
    router = route(*pair)
    answers: list[int] = []

    def ask(number: int) -> None:
        answers.append(router.complete(tokens(number), stream=number % 2 == 0)[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert answers == [200] * 24
    assert ways(router) == {"split": 24}
    await_idle(router)


def test_fleet_file_names_roles(tmp_path: Path):
    file = tmp_path / "fleet.yaml"
    file.write_text(
        "workers:\n"
        "  - {url: 'http://[::1]:1', role: prefill, connector: sglang}\n"
        "  - {url: 'http://b:2', role: decode, connector: sglang}\n"
        "  - {url: 'http://c:3', role: prefill}\n"
        "  - {url: 'http://d:4'}\n"
    )
    workers = read_fleet(file).workers
    assert [worker.transfer for worker in workers] == [
        {"kind": "sglang", "bootstrap_host": "[::1]", "bootstrap_port": 8998, "ranks": 1},
        {"kind": "sglang", "bootstrap_host": "b", "bootstrap_port": 8998, "ranks": 1},
        {"kind": "vllm"},
        None,
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("http://a:1,role=both", "role"),
        ("http://a:1,connector=vllm", "add role=prefill or role=decode"),
        ("http://a:1,role=prefill,connector=mooncake", "connector"),
        ("http://a:1,role=prefill,bootstrap_port=8998", "connector=sglang and role=prefill"),
        ("http://a:1,role=decode,connector=sglang,bootstrap_port=1", "role=prefill alone"),
        ("http://a:1,role=prefill,connector=vllm,bootstrap_host=x", "bootstrap_host"),
        ("http://a:1,role=prefill,connector=sglang,bootstrap_port=70000", "bootstrap_port"),
        ("http://a:1,dns=true,role=prefill,connector=sglang,bootstrap_host=x", "with dns=true"),
    ],
)
def test_role_that_cannot_be_followed_is_refused(text, named):
    with pytest.raises(InputError, match=named):
        parse_worker(text)


def test_selector_of_a_cluster_names_a_role():
    selector = parse_selector("service", "llm/prefill,role=prefill,connector=sglang,port=8000")
    assert (selector.role, selector.connector) == ("prefill", "sglang")
    with pytest.raises(InputError, match="add role=prefill"):
        parse_selector("service", "llm/prefill,connector=sglang")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("connector", ["vllm", "sglang"])
def test_example_of_the_page_splits(route, engines, connector, tmp_path: Path):
    pair = fleet(engines, connector)
    if connector == "vllm":
        [text] = [block for block in blocks("bash") if "role=prefill" in block]
    else:
        [text] = [block for block in blocks("yaml") if "sglang" in block]
    for number, engine in enumerate(pair, 1):
        own = {8000: engine.port, 5557: engine.events.events_port, 5558: engine.events.replay_port}
        for port, moved in own.items():
            text = text.replace(f"10.0.0.{number}:{port}", f"127.0.0.1:{moved}")
    if connector == "vllm":
        router = route(texts=tuple(re.findall(r"--worker (\S+)", text)))
    else:
        file = tmp_path / "fleet.yaml"
        file.write_text(text)
        router = route(file=file, count=2)
    assert router.complete(tokens(1))[0] == 200
    assert [len(engine.served) for engine in pair] == [1, 1]
    assert ways(router) == {"split": 1}
