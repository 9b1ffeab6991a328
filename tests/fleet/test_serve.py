"""`wardrop serve` in front of scripted engines: routing, caches, failures, members."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.conftest import BY_OVERLAP
from tests.fleet.engine import BLOCK_TOKENS, Engine, Events
from tests.waiting import DEADLINE_S, wait_until

from wardrop.config import Config, Predicted


def tokens(number: int, blocks: int = 8) -> list[int]:
    """A prompt of its own, with a last block that is not full."""
    return [number * 100_000 + at for at in range(blocks * BLOCK_TOKENS + 3)]


def served_by(engines: list[Engine]) -> list[int]:
    return [len(engine.served) for engine in engines]


def cached(answer: tuple[int, dict[str, str], Any]) -> int:
    return answer[2]["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_second_turn_goes_to_the_worker_that_holds_the_first(route, engines):
    pair = [engines(), engines()]
    router = route(*pair, config=BY_OVERLAP)
    for number in range(6):
        before = served_by(pair)
        assert router.complete(tokens(number))[0] == 200
        owner = next(i for i in (0, 1) if served_by(pair)[i] > before[i])
        router.await_index(pair[owner])
        answer = router.complete([*tokens(number), *range(40)])
        assert served_by(pair)[owner] == before[owner] + 2
        assert cached(answer) == 8 * BLOCK_TOKENS
        outcome = router.receipt(answer)["outcome"]
        assert outcome["predicted_cached_tokens"] == outcome["cached_tokens"] == 8 * BLOCK_TOKENS


def test_request_reaches_its_worker_without_pin_headers(route, engines):
    engine = engines()
    router = route(engine)
    router.complete(tokens(1), headers={"x-request-id": "mine"})
    assert engine.headers[0]["x-request-id"] == "mine"
    assert not [name for name in engine.headers[0] if name.startswith(("x-dynamo", "x-data"))]


@pytest.mark.parametrize("fault", ["down", "breaks", "status"])
def test_failure_before_the_first_byte_moves_to_another_worker(route, engines, fault):
    pair = [engines(), engines()]
    router = route(*pair, config=BY_OVERLAP)
    first = tokens(1)
    assert router.complete(first)[0] == 200
    owner = next(engine for engine in pair if engine.served)
    other = next(engine for engine in pair if engine is not owner)
    router.await_index(owner)
    if fault == "down":
        owner.server.shutdown()
        owner.server.server_close()
        owner.server.cut()
    elif fault == "breaks":
        owner.breaks = True
    else:
        owner.status = 500
    answer = router.complete([*first, 1, 2, 3])
    assert answer[0] == 200
    assert len(other.served) == 1
    assert router.metric("retries_total") == 1


def test_request_that_fails_everywhere_gives_its_own_error(route, engines):
    pair = [engines(), engines()]
    router = route(*pair)
    for engine in pair:
        engine.status = 500
    status, _, body = router.complete(tokens(1))
    assert (status, body["error"]["message"]) == (500, "scripted")
    assert served_by(pair) == [1, 1]
    for engine in pair:
        engine.status = 200
    router.await_workers(2)
    assert router.complete(tokens(2))[0] == 200


def test_no_worker_left_is_503_with_retry_after(route, engines):
    engine = engines()
    router = route(engine)
    engine.close()
    engine.events = None
    wait_until(lambda: not router.worker(engine)["available"], "an unavailable worker")
    status, headers, body = router.complete(tokens(1))
    assert (status, headers["retry-after"]) == (503, "1")
    assert body["error"]["code"] in ("no_worker", "upstream_down")


def test_prompt_that_is_not_known_is_placed_by_load(route, engines):
    pair = [engines(), engines()]
    router = route(*pair)
    pair[0].gate.clear()
    pair[1].gate.clear()
    bodies = [
        {"model": "m", "prompt": "text without a tokenizer"},
        {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
        {"model": "m", "prompt": [[1, 2], [3, 4]]},
        {"model": "m", "input": "embedded"},
    ]
    paths = ["/v1/completions", "/v1/messages", "/v1/completions", "/v1/embeddings"]
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda p=p, b=b: answers.append(router.ask("POST", p, b)[0]))
        for p, b in zip(paths, bodies, strict=True)
    ]
    for number, thread in enumerate(threads, 1):
        thread.start()
        wait_until(lambda n=number: sum(served_by(pair)) == n, "the request at an engine")
    # Each request is booked, so the next one goes to the other worker.
    assert served_by(pair) == [2, 2]
    for engine in pair:
        engine.gate.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert answers == [200] * 4
    assert router.metric("abstentions_total") == 4


def test_adapter_and_salt_have_caches_of_their_own(route, engines):
    pair = [engines(loras=["fox"]), engines(loras=["fox"])]
    router = route(*pair, config=BY_OVERLAP)
    prompt = tokens(1)
    for fields in ({}, {"model": "fox"}, {"cache_salt": "s"}, {"model": "fox", "cache_salt": "s"}):
        before = [len(engine.cache) for engine in pair]
        first = router.complete(prompt, **fields)
        grown = next(e for e, size in zip(pair, before, strict=True) if len(e.cache) > size)
        router.await_index(grown)
        second = router.complete(prompt, **fields)
        for answer, expected in ((first, 0), (second, 8 * BLOCK_TOKENS)):
            outcome = router.receipt(answer)["outcome"]
            assert outcome["predicted_cached_tokens"] == cached(answer) == expected, fields


def test_restarted_engine_starts_with_an_empty_cache(route, engines):
    pair = [engines(), engines()]
    router = route(*pair)
    router.complete(tokens(1))
    owner = next(engine for engine in pair if engine.served)
    router.await_index(owner)
    assert owner.cache
    owner.restart()
    wait_until(lambda: router.worker(owner)["held_blocks"][0] == 0, "an empty index")
    router.await_workers(2)
    assert router.feed(owner)["restarts"] == 1
    answer = router.complete(tokens(1))
    assert router.receipt(answer)["outcome"]["predicted_cached_tokens"] == cached(answer) == 0


def test_restarted_engine_that_passed_the_old_number_is_not_taken_for_the_old_one(route, engines):
    engine = engines()
    router = route(engine)
    for number in range(3):
        router.complete(tokens(number))
    router.await_index(engine)
    engine.close()
    engine.cache.clear()
    wait_until(lambda: not router.feed(engine)["connected"], "a lost feed")
    events, engine.events = engine.events, None
    engine.events = type(events)(0, 0)
    for number in range(5, 11):
        engine.complete(tokens(number), None, None)
    again = engine.events
    # The sockets move to the old ports once the new engine is further than the old one was.
    sequence, buffer = again.sequence, again.buffer
    again.close()
    engine.events = type(again)(events.events_port, events.replay_port)
    engine.events.sequence, engine.events.buffer = sequence, buffer
    engine._listen(engine.port)
    router.await_index(engine)
    router.await_workers(1)
    assert router.feed(engine)["restarts"] == 1
    answer = router.complete(tokens(1))
    assert router.receipt(answer)["outcome"]["predicted_cached_tokens"] == 0


def test_hole_is_filled_by_a_replay_although_the_replay_drops_too(route, engines):
    engine = engines()
    router = route(engine)
    router.complete(tokens(0))
    router.await_index(engine)
    start = engine.events.sequence
    engine.events.to_lose = 3
    engine.events.replay_drops = {start + 1}
    for number in range(1, 5):
        router.complete(tokens(number))
    router.await_index(engine)
    assert len(engine.cache) == 5 * 8
    worker = router.worker(engine)
    assert (worker["feed_state"], worker["event_gaps"]) == ("synced", 0)
    assert router.feed(engine)["replayed"] >= 3
    assert router.feed(engine)["lost"] == 0
    assert start + 1 in engine.events.replay_starts


def test_first_frames_that_are_lost_are_found(route, engines):
    engine = engines()
    router = route(engine)
    engine.events.to_lose = 2
    for number in range(3):
        router.complete(tokens(number))
    router.await_index(engine)
    assert len(engine.cache) == 3 * 8
    assert router.worker(engine)["feed_state"] == "synced"


def test_lost_end_of_a_feed_is_found_in_its_silence(route, engines):
    engine = engines()
    router = route(engine)
    router.complete(tokens(0))
    router.await_index(engine)
    engine.events.to_lose = 1
    router.complete(tokens(1))
    router.await_index(engine)
    assert router.worker(engine)["feed_state"] == "synced"
    assert router.feed(engine)["replayed"] >= 1


def test_hole_without_a_replay_makes_the_blocks_suspect_and_a_later_replay_heals_them(
    route, engines
):
    engine = engines()
    router = route(engine, replay_timeout_ms=100)
    router.complete(tokens(0))
    router.await_index(engine)
    engine.events.has_replay = False
    engine.events.to_lose = 1
    router.complete(tokens(1))
    router.complete(tokens(2))
    wait_until(lambda: router.worker(engine)["feed_state"] == "suspect", "suspect blocks")
    assert router.feed(engine)["lost"] == 1
    engine.events.has_replay = True
    wait_until(lambda: router.worker(engine)["feed_state"] == "synced", "blocks that are trusted")
    router.await_index(engine)
    assert router.metric("feed_replays_total", result="failed") >= 1


def test_events_from_before_the_router_are_known(route, engines):
    engine = engines()
    for number in range(4):
        engine.complete(tokens(number), None, None)
    router = route(engine)
    router.await_index(engine)
    assert router.worker(engine)["feed_state"] == "synced"
    answer = router.complete(tokens(2))
    assert router.receipt(answer)["outcome"]["predicted_cached_tokens"] == cached(answer) > 0


def test_malformed_frame_costs_the_frame_and_not_the_feed(route, engines):
    engine = engines()
    router = route(engine)
    router.complete(tokens(0))
    router.await_index(engine)
    engine.events.publish_raw(b"\xc1 no msgpack")
    router.complete(tokens(1))
    wait_until(lambda: router.feed(engine)["malformed"] >= 1, "a refused frame")
    wait_until(lambda: router.worker(engine)["held_blocks"][0] >= 16, "the next frame")


def test_idle_engine_whose_cache_was_reset_is_found_out_by_its_answers(route, engines):
    engine = engines()
    router = route(engine)
    for number in range(10):
        router.complete(tokens(number))
    router.await_index(engine)
    engine.reset_cache(is_silent=True)
    for number in range(9):
        router.complete(tokens(number))
    wait_until(
        lambda: (
            router.metric("workers_suspect")
            + router.metric("feed_replays_total", result="complete")
            > 0
        ),
        "doubt about the blocks",
    )


def test_cleared_cache_is_known(route, engines):
    engine = engines()
    router = route(engine)
    router.complete(tokens(0))
    router.await_index(engine)
    engine.reset_cache()
    wait_until(lambda: router.worker(engine)["held_blocks"][0] == 0, "an empty index")
    assert router.worker(engine)["incarnations"] == 0


def test_load_of_the_engines_metrics_is_known(route, engines):
    engine = engines()
    router = route(engine)
    engine.running, engine.waiting = 3, 2
    wait_until(
        lambda: (router.worker(engine).get("engine_load") or {}).get("waiting_requests") == 2,
        "the reported load",
    )
    load = router.worker(engine)["engine_load"]
    assert load == {"dp_rank": 0, "running_requests": 3, "waiting_requests": 2, "kv_usage": 0.25}
    model = router.status()["models"][0]
    assert (model["name"], model["block_size"], model["context_length"]) == ("m", 16, 4096)


def test_fleet_without_events_is_routed_by_predicted_caches(route, engines):
    pair = [engines(events=False), engines(events=False)]
    config = replace(Config(), predicted=Predicted(used="alone"))
    router = route(*pair, config=config)
    for number in range(4):
        before = served_by(pair)
        router.complete(tokens(number))
        owner = next(i for i in (0, 1) if served_by(pair)[i] > before[i])
        answer = router.complete([*tokens(number), *range(40)])
        assert served_by(pair)[owner] == before[owner] + 2
        assert router.receipt(answer)["outcome"]["predicted_cached_tokens"] == cached(answer)


def test_restart_of_an_engine_without_events_empties_its_predicted_cache(route, engines):
    engine = engines(events=False)
    config = replace(Config(), predicted=Predicted(used="alone"))
    router = route(engine, config=config)
    router.complete(tokens(1))
    engine.restart()

    def predicted() -> int:
        answer = router.complete(tokens(1))
        engine.cache.clear()
        return router.receipt(answer)["outcome"]["predicted_cached_tokens"]

    wait_until(lambda: router.ask("GET", "/v1/models")[0] == 200, "the engine again")
    started_s = engine.started_s
    wait_until(
        lambda: any(
            f"{started_s}" in worker.address for worker in router.server._sync.view.workers.values()
        ),
        "the new start in the view",
    )
    assert predicted() == 0


def test_workers_join_and_leave_with_the_file(route, engines, tmp_path: Path):
    pair = [engines(), engines()]
    file = tmp_path / "fleet.yaml"

    def write(*members: Engine) -> None:
        entries = []
        for engine in members:
            url, events, replay = engine.worker.split(",")
            entries.append(
                {
                    "url": url,
                    "events": events.removeprefix("events="),
                    "replay": replay.removeprefix("replay="),
                }
            )
        draft = tmp_path / "draft.yaml"
        draft.write_text(json.dumps({"workers": entries}))  # JSON is YAML
        draft.rename(file)

    write(pair[0])
    router = route(file=file)
    router.await_workers(1)
    write(*pair)
    router.await_workers(2)
    file.write_text("workers: [{url: nonsense}]")
    wait_until(lambda: router.source.last_error is not None, "a refused file")
    assert "url: got 'nonsense', expected http://HOST:PORT" in router.source.last_error
    assert router.complete(tokens(1))[0] == 200
    write(pair[1])
    wait_until(lambda: list(router.workers()) == [pair[1].url], "one worker left")
    before = len(pair[1].served)
    assert router.complete(tokens(2))[0] == 200
    assert len(pair[1].served) == before + 1


def test_workers_join_and_leave_by_the_admin_api(route, engines):
    pair = [engines(), engines()]
    router = route(pair[0])
    url, events, replay = pair[1].worker.split(",")
    body = {"url": url, "events": events.partition("=")[2], "replay": replay.partition("=")[2]}
    assert router.admin("POST", "/v1/workers", body)[0] == 201
    router.await_workers(2)
    assert router.admin("POST", "/v1/workers", body)[0] == 400
    listed = router.admin("GET", "/v1/workers")[2]["workers"]
    assert [(each["url"], each["is_added"]) for each in listed] == [
        (pair[0].url, False),
        (pair[1].url, True),
    ]
    assert router.admin("DELETE", f"/v1/workers?url={pair[0].url}")[0] == 400
    assert router.admin("DELETE", f"/v1/workers?url={url}")[0] == 200
    wait_until(lambda: list(router.workers()) == [pair[0].url], "one worker left")


def test_name_stands_for_all_its_addresses(route, engines, monkeypatch, tmp_path: Path):
    import wardrop.fleet.source as source

    engine = engines()
    known = ["127.0.0.1"]
    monkeypatch.setattr(source, "_resolve", lambda name: tuple(known))
    monkeypatch.setattr(source, "_RESOLVE_EVERY_S", 0.1)
    file_text = {
        "workers": [
            {
                "url": f"http://engines.test:{engine.port}",
                "events": f"tcp://engines.test:{engine.events.events_port}",
                "replay": f"tcp://engines.test:{engine.events.replay_port}",
                "dns": True,
            }
        ]
    }
    file = tmp_path / "fleet.yaml"
    file.write_text(json.dumps(file_text))
    router = route(file=file)
    router.await_workers(1)
    assert list(router.workers()) == [engine.url]
    known.append("127.0.0.2")
    wait_until(lambda: len(router.source.describe()) == 2, "a member of the second address")
    known.remove("127.0.0.2")
    wait_until(lambda: len(router.source.describe()) == 1, "one member")


def test_engine_that_answers_no_probe_is_left_and_found_again(route, engines):
    pair = [engines(events=False), engines(events=False)]
    router = route(*pair)
    pair[0].close()
    router.await_workers(1)
    assert router.worker(pair[0])["fault"] == "silent"
    for number in range(4):
        assert router.complete(tokens(number))[0] == 200
    pair[0].start_again()
    router.await_workers(2)


def test_model_of_another_name_is_answered_by_an_engine(route, engines):
    engine = engines()
    router = route(engine)
    assert router.complete(tokens(1), model="other")[0] == 200
    assert engine.served[0]["model"] == "other"
    assert router.metric("abstentions_total", reason="unknown_model") == 1


def test_each_rank_has_a_feed_and_a_cache_and_is_named_to_the_server(route, engines):
    engine = engines(events=False)
    first = events_of_ranks(2)
    base = first[0].events_port
    text = (
        f"{engine.url},ranks=2,events=tcp://127.0.0.1:{base}"
        f",replay=tcp://127.0.0.1:{first[0].replay_port}"
    )
    try:
        router = route(texts=(text,), count=2)
        for events in first:
            assert events.subscribed.wait(DEADLINE_S)
        prompt = tokens(7)
        for rank, events in enumerate(first):
            mine = [*prompt[: 4 * BLOCK_TOKENS], *tokens(20 + rank)[: 4 * BLOCK_TOKENS]]
            stored = {
                "type": "BlockStored",
                "block_hashes": [1000 * (rank + 1) + at for at in range(8)],
                "parent_block_hash": None,
                "token_ids": mine,
                "block_size": BLOCK_TOKENS,
                "lora_id": None,
                "medium": "GPU",
            }
            # A frame that names another rank of the server does not belong to this feed.
            events.publish([stored], rank=rank)
            events.publish([{"type": "AllBlocksCleared"}], rank=1 - rank)
        wait_until(
            lambda: [w["held_blocks"][0] for w in ranks_of(router)] == [8, 8],
            "blocks of both ranks",
        )
        for rank in (1, 0, 1):
            answer = router.complete([*prompt[: 4 * BLOCK_TOKENS], *tokens(20 + rank)])
            assert engine.headers[-1]["x-data-parallel-rank"] == str(rank)
            outcome = router.receipt(answer)["outcome"]
            assert outcome["predicted_cached_tokens"] == 8 * BLOCK_TOKENS
        assert router.metric("kv_events_total", result="foreign") == 2
    finally:
        for events in first:
            events.close()


def events_of_ranks(count: int) -> list[Events]:
    """Sockets of ranks on ports that follow each other."""
    for _ in range(100):
        made: list[Events] = []
        try:
            made.append(Events())
            for rank in range(1, count):
                ports = made[0].events_port + rank, made[0].replay_port + rank
                made.append(Events(*ports, patience_s=0.0))
            return made
        except AssertionError:
            for events in made:
                events.close()
    raise AssertionError("no ports that follow each other are free")


def ranks_of(router: Any) -> list[dict[str, Any]]:
    pools = [pool for model in router.status()["models"] for pool in model["pools"]]
    return [worker for pool in pools for worker in pool["workers"]]


def test_request_waits_until_a_worker_has_room(route, engines):
    engine = engines()
    config = Config()
    queue = {"backlog_s": 1e-9, "share_passes": 0.0}
    routing = replace(config.routing, queue=True, queue_parameters=queue)
    router = route(engine, config=replace(config, routing=routing))
    engine.gate.clear()
    answers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda n=number: answers.append(router.complete(tokens(n), stream=True)[0])
        )
        for number in range(2)
    ]
    threads[0].start()
    wait_until(lambda: len(engine.served) == 1, "the first request at the engine")
    threads[1].start()
    wait_until(lambda: router.metric("queue_requests") == 1, "the second request in the queue")
    assert len(engine.served) == 1
    engine.gate.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert answers == [200, 200]


def test_decision_loss_is_measured_live_on_streams(route, engines):
    router = route(engines(token_s=0.0005), engines(token_s=0.0005))
    for number in range(70):  # more than a window
        assert router.complete(tokens(number), stream=True, max_tokens=4)[0] == 200
    wait_until(lambda: router.metric("decision_loss_windows") >= 1, "a window of decisions")
    assert router.metric("decision_loss") >= 1.0
    assert router.metric("time_to_first_token_seconds_count") == 70


def test_price_against_the_bound_is_measured_live(route, engines):
    config = Config()
    config = replace(config, control=replace(config.control, bound_window_s=1.0))
    router = route(engines(token_s=0.003), engines(token_s=0.003), config=config)

    def figure(name: str, latency: str) -> float:
        return router.metric(f"price_of_anarchy_bound{name}", latency=latency)

    # The curves need samples before a window has a bound, and gaps of tokens that are no bursts.
    asked = 0
    while figure("_requests", "e2e") < 50:
        assert router.complete(tokens(asked), stream=True, max_tokens=6)[0] == 200
        asked += 1
        assert asked < 20_000, "windows must have a bound once the curves have learned"
    for latency in ("ttft", "e2e"):
        assert figure("", latency) > 0.5
    assert router.metric("price_of_anarchy_bound_cpu_seconds_total") > 0
