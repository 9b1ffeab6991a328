"""CPU time per request of records and spans, beside a router without either, in one run.

Every arm is a gateway of its own in front of one upstream, and gets the same prompts in turn. The
figure is the CPU time of the gateway's own threads, the writer and the exporter among them. A busy
machine distorts it less than wall time.

    python -m bench.request_cost --rounds 6 --requests 2000
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wardrop._core import Gateway

WORKERS = 8
BLOCK_TOKENS = 16
PROMPT_TOKENS = 2048
SETTLE_S = 1.5
"""Time after a round in which the writer and the exporter finish: longer than their intervals."""
ANSWER = json.dumps(
    {
        "choices": [{"text": "x"}],
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
).encode()

TOKENS = 5
"""Tokens of a streamed answer."""
STREAMED = b'{"stream": true'
"""Begin of a body that asks for a stream."""
_TOKEN = b'data: {"choices":[{"index":0,"text":"x"}]}\n\n'
_USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": TOKENS}
_END = f"data: {json.dumps({'choices': [], 'usage': _USAGE})}\n\ndata: [DONE]\n\n".encode()
_STEP_S = 0.002


class _Handler(BaseHTTPRequestHandler):
    """The upstream and the collector: an answer to every request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        if asked.startswith(STREAMED):
            self._stream()
            return
        self.send_header("content-type", "application/json")
        body = b"" if self.path == "/v1/traces" else ANSWER
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        """Answer token by token, as an engine does; the router's curves learn from it."""
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(TOKENS * len(_TOKEN) + len(_END)))
        self.end_headers()
        for piece in [_TOKEN] * TOKENS + [_END]:
            time.sleep(_STEP_S)
            self.wfile.write(piece)
            self.wfile.flush()


@contextmanager
def served() -> Generator[str]:
    """The address of an upstream."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def arms(url: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Configurations of the arms, by name."""

    def tracing(ratio: float) -> dict[str, Any]:
        endpoint = f"{url}/v1/traces"
        sampler = "parentbased_traceidratio"
        return {"endpoint": endpoint, "sampler": sampler, "ratio": ratio, "service_name": "bench"}

    away = tracing(1.0) | {"endpoint": "http://127.0.0.1:9/v1/traces"}
    return {
        "receipts alone": {},
        "records": {"records": {"dir": str(folder / "records")}},
        "spans, ratio 0.01": {"tracing": tracing(0.01)},
        "spans, ratio 1": {"tracing": tracing(1.0)},
        "spans, ratio 1, no collector": {"tracing": away},
    }


def start(url: str, config: dict[str, Any]) -> tuple[Gateway, int]:
    """A gateway with workers, and its port."""
    routing = {"policy": {"name": "toll"}, "receipts": 1000}
    base = {"listen": "127.0.0.1:0", "upstreams": [url], "worker_threads": 1, "routing": routing}
    gateway = Gateway(json.dumps(base | config))
    model = {"name": "m", "block_size": BLOCK_TOKENS, "context_length": 1 << 20}
    gateway.upsert_model(json.dumps(model))
    for instance in range(1, WORKERS + 1):
        worker = {"model": "m", "role": "aggregated", "instance": instance}
        gateway.upsert_worker(json.dumps(worker))
    return gateway, gateway.start()


def cpu_s(gateway: Gateway) -> float:
    """CPU time of the threads of all gateways of this process."""
    for line in gateway.metrics().splitlines():
        if line.startswith("wardrop_router_cpu_seconds_total"):
            return float(line.rpartition(" ")[2])
    raise RuntimeError("got no wardrop_router_cpu_seconds_total, expected it on the metrics page")


def drive(port: int, bodies: list[bytes]) -> None:
    """Send requests one after the other over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for body in bodies:
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"got status {response.status}, expected 200")
    connection.close()


def main() -> None:
    """Print the medians over the rounds and their differences from the first arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    prompts = [[at * PROMPT_TOKENS + n for n in range(PROMPT_TOKENS)] for at in range(50)]
    texts = [json.dumps({"model": "m", "prompt": tokens}).encode() for tokens in prompts]
    bodies = [texts[at % len(texts)] for at in range(options.requests)]
    with served() as url, tempfile.TemporaryDirectory() as folder:
        running = {name: start(url, one) for name, one in arms(url, Path(folder)).items()}
        found: dict[str, list[float]] = {name: [] for name in running}
        for gateway, port in running.values():
            drive(port, bodies[:200])
            cpu_s(gateway)
        for _ in range(options.rounds):
            for name, (gateway, port) in running.items():
                before_s = cpu_s(gateway)
                drive(port, bodies)
                time.sleep(SETTLE_S)
                found[name].append((cpu_s(gateway) - before_s) / len(bodies) * 1e6)
        for gateway, _ in running.values():
            gateway.stop()
    first = found[next(iter(found))]
    for name, us in found.items():
        more = [each - base for each, base in zip(us, first, strict=True)]
        print(
            f"{name:30} {statistics.median(us):7.1f} us of CPU per request, "
            f"{statistics.median(more):+6.1f} us ({min(more):+.1f} to {max(more):+.1f})"
        )


if __name__ == "__main__":
    main()
