"""The live price of anarchy on the metrics page, with a scripted upstream."""

import time

from tests.waiting import wait_until

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


def test_price_of_anarchy_is_measured_live_with_its_parts_and_errors(upstream, serve):
    upstream.script = streamed
    running = serve(workers=(1, 2, 3))
    for i in range(140):
        prompt = [i + 1, *range(1, 44)]
        assert running.complete(prompt, stream=True, max_tokens=4)[0] == 200
    wait_until(lambda: running.metric("price_of_anarchy_windows") >= 2)
    low, poa, high = (running.metric(f"price_of_anarchy{x}") for x in ("_low", "", "_high"))
    assert 1.0 <= low <= poa <= high
    # 64 requests on 3 workers: the paper's figure is about 21 regardless of the router.
    assert 10 < running.metric("price_of_anarchy_paper") < 200
    assert running.metric("price_of_anarchy_square", statistic="median") >= 0.99
    assert running.metric("regret_mean_seconds") >= 0.0
    parts = [
        running.metric("price_of_anarchy_loss_ratio", source=part)
        for part in ("cache", "load", "split")
    ]
    assert all(-1.0 < part < 1.0 for part in parts)
    for kind in ("ttft", "itl"):
        assert running.metric("model_error_ratio", latency=kind) > 0.0
        assert running.metric("model_bias_ratio", latency=kind) > 0.0
    assert running.metric("price_of_anarchy_decisions_total") == 140
    assert 0.0 < running.metric("price_of_anarchy_cpu_seconds_total") < 0.1


def test_answers_in_one_piece_teach_nothing_of_the_first_token(serve):
    running = serve(workers=(1, 2))
    for i in range(70):
        assert running.complete([i + 1, *range(1, 44)])[0] == 200
    wait_until(lambda: running.metric("price_of_anarchy") >= 1.0)
    assert "wardrop_model_error_ratio{" not in running.gateway.metrics()
