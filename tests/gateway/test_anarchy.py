"""The live price of anarchy on the metrics page, with a scripted upstream."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.waiting import wait_until

from wardrop.replay.recorded import price_of_records
from wardrop.traces import TraceError

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(text: str) -> bytes:
    line = f"data: {text}\n\n".encode()
    return f"{len(line):x}\r\n".encode() + line + b"\r\n"


def streamed(seen, conn):
    """Four tokens: the first after 2 ms, then one each 2 ms."""
    time.sleep(0.002)
    conn.sendall(SSE + chunk('{"choices":[{"text":"a"}]}'))
    for _ in range(3):
        time.sleep(0.002)
        conn.sendall(chunk('{"choices":[{"text":"a"}]}'))
    return chunk("[DONE]") + b"0\r\n\r\n"


def test_decision_loss_is_measured_live_with_its_parts_and_errors(upstream, serve):
    upstream.script = streamed
    running = serve(workers=(1, 2, 3))
    for i in range(140):
        prompt = [i + 1, *range(1, 44)]
        assert running.complete(prompt, stream=True, max_tokens=4)[0] == 200
    wait_until(lambda: running.metric("decision_loss_windows") >= 2)
    low, poa, high = (running.metric(f"decision_loss{x}") for x in ("_low", "", "_high"))
    assert 1.0 <= low <= poa <= high
    # 64 requests on 3 workers: the paper's figure is about 21 regardless of the router.
    assert 10 < running.metric("price_of_anarchy_paper") < 200
    assert running.metric("price_of_anarchy_square", statistic="median") >= 0.99
    assert running.metric("regret_mean_seconds") >= 0.0
    parts = [
        running.metric("decision_loss_ratio", source=part) for part in ("cache", "load", "split")
    ]
    assert all(-1.0 < part < 1.0 for part in parts)
    for kind in ("ttft", "itl"):
        assert running.metric("model_error_ratio", latency=kind) > 0.0
        assert running.metric("model_bias_ratio", latency=kind) > 0.0
    assert running.metric("decision_loss_decisions_total") == 140
    assert 0.0 < running.metric("decision_loss_cpu_seconds_total") < 0.1


def test_answers_in_one_piece_teach_nothing_of_the_first_token(serve):
    running = serve(workers=(1, 2))
    for i in range(70):
        assert running.complete([i + 1, *range(1, 44)])[0] == 200
    wait_until(lambda: running.metric("decision_loss") >= 1.0)
    assert "wardrop_model_error_ratio{" not in running.gateway.metrics()


def answered(ttft_s: float):
    """A stream of five tokens with usage; the first comes after `ttft_s`."""

    def script(seen, conn):
        time.sleep(ttft_s)
        conn.sendall(SSE + chunk('{"choices":[{"text":"a"}]}'))
        for _ in range(4):
            time.sleep(0.002)
            conn.sendall(chunk('{"choices":[{"text":"a"}]}'))
        usage = {"prompt_tokens": 44, "completion_tokens": 5}
        conn.sendall(chunk(json.dumps({"choices": [], "usage": usage})))
        return chunk("[DONE]") + b"0\r\n\r\n"

    return script


def ask_all(running, first: int, requests: int) -> None:
    """Prompts that share 40 of their 44 tokens, four at a time."""

    def ask(number: int) -> int:
        prompt = [*range(1, 41), number, number, number, number]
        return running.complete(prompt, stream=True, max_tokens=5)[0]

    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(ask, range(first, first + requests))) == {200}


def test_price_against_the_bound_is_live_and_records_give_the_same_figure(
    upstream, serve, tmp_path
):
    upstream.script = answered(0.01)
    folder = tmp_path / "records"
    routing = {"policy": {"name": "toll"}, "bound_window_s": 1.0}
    running = serve(workers=(1, 2, 3), routing=routing, records={"dir": str(folder)})

    def metric(name: str, **labels: str) -> float:
        return running.metric(f"price_of_anarchy_bound{name}", **labels)

    assert metric("_missing", reason="no_window") == 1
    # The curves need samples before a window has a bound.
    ask_all(running, 0, 40)
    wait_until(lambda: metric("_missing", reason="no_window") == 0, "the first window")
    asked = 40
    while metric("_requests", latency="e2e") < 100:
        ask_all(running, asked, 40)
        asked += 40
        assert asked < 2_000, "windows must have a bound once the curves have learned"
    found = {name: metric("", latency=name) for name in ("ttft", "e2e")}
    assert all(value > 0.5 for value in found.values()), found
    assert 0 < metric("_cpu_seconds_total") < 0.5
    assert metric("_curve_error_ratio", stage="prefill") >= 0
    [model] = json.loads(running.gateway.status())["models"]
    report = model["price_of_anarchy"]
    assert report["missing"] is None
    assert report["e2e"]["requests"] >= 100
    running.gateway.stop()
    text = "".join(path.read_text() for path in folder.glob("requests-*"))
    windows = [json.loads(line) for line in text.splitlines() if "wardrop.window/1" in line]
    assert len(windows[0]["fleet"]["pools"][0]["workers"]) == 3
    offline = price_of_records(folder)
    assert offline.windows == len(windows)
    for price in (offline.ttft, offline.e2e):
        assert price.value == pytest.approx(price.live, rel=0.05)
        assert price.value == pytest.approx(price.live, rel=1e-6), "the same code and history"
    # The figure follows what requests paid: the records with twice the times have twice the price.
    doubled = tmp_path / "doubled.jsonl"
    slower = [json.loads(line) for line in text.splitlines()]
    for line in slower:
        if line["schema"] == "wardrop.record/1" and line["outcome"]["e2e_s"]:
            line["outcome"]["e2e_s"] *= 2
    doubled.write_text("".join(json.dumps(line) + "\n" for line in slower))
    assert price_of_records(doubled).e2e.value == pytest.approx(2 * offline.e2e.value)


def test_records_without_windows_are_refused_with_what_to_do(serve, tmp_path):
    folder = tmp_path / "records"
    routing = {"bound_window_s": 0}
    running = serve(workers=(1,), routing=routing, records={"dir": str(folder)})
    assert running.complete([1, 2, 3, 4, 5])[0] == 200
    assert "price_of_anarchy_bound" not in running.gateway.metrics()
    running.gateway.stop()
    with pytest.raises(TraceError, match=r"control\.bound_window_s above 0"):
        price_of_records(folder)
    with pytest.raises(TraceError, match="'other'"):
        price_of_records(folder, "other")


@pytest.mark.parametrize("window_s", [-1, 0.5, 4_000])
def test_length_of_a_window_out_of_range_is_refused(serve, window_s):
    with pytest.raises(ValueError, match="bound_window_s must be 0, or 1 to 3600"):
        serve(workers=(1,), routing={"bound_window_s": window_s})
