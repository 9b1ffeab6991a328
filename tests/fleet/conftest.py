"""`wardrop serve` in this process, in front of scripted engines."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import DEADLINE_S, wait_until

pytest.importorskip("zmq")

from tests.fleet.engine import Engine

from wardrop.config import Config, Http, Prompt, Routing
from wardrop.fleet import FleetSource, FleetSpec, KubernetesSpec, parse_worker
from wardrop.fleet.server import FleetServer
from wardrop.kubernetes.reflector import Timing


@dataclass
class Router:
    """A running `wardrop serve`."""

    server: FleetServer
    source: FleetSource

    @property
    def gateway(self) -> Any:
        return self.server.gateway

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        assert self.server.port is not None
        return _ask(self.server.port, method, path, body, headers)

    def admin(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        assert self.server.admin is not None
        assert self.server.admin.port is not None
        return _ask(self.server.admin.port, method, path, body, None)

    def complete(self, tokens: list[int], **fields: Any) -> tuple[int, dict[str, str], Any]:
        headers = fields.pop("headers", None)
        body = {"model": "m", "prompt": tokens, "max_tokens": 1, **fields}
        return self.ask("POST", "/v1/completions", body, headers)

    def status(self) -> dict[str, Any]:
        return json.loads(self.gateway.status())

    def workers(self) -> dict[str, dict[str, Any]]:
        """Workers by the address of their server."""
        urls = {member.instance: member.url for member in self.source.members()}
        models = self.status()["models"]
        pools = [pool for model in models for pool in model["pools"]]
        return {
            urls[worker["instance"]]: worker
            for pool in pools
            for worker in pool["workers"]
            if worker["instance"] in urls
        }

    def worker(self, engine: Engine) -> dict[str, Any]:
        return self.workers().get(engine.url, {})

    def feed(self, engine: Engine) -> dict[str, Any]:
        assert engine.events is not None
        endpoint = f"tcp://127.0.0.1:{engine.events.events_port}"
        return next((f for f in self.status()["feeds"] if f["endpoint"] == endpoint), {})

    def metric(self, name: str, **labels: str) -> float:
        total = 0.0
        for line in self.gateway.metrics().splitlines():
            key, _, value = line.rpartition(" ")
            if key.partition("{")[0] == f"wardrop_{name}" and all(
                f'{k}="{v}"' in key for k, v in labels.items()
            ):
                total += float(value)
        return total

    def await_workers(self, count: int) -> None:
        wait_until(
            lambda: sum(worker["available"] for worker in self.workers().values()) == count,
            f"{count} workers that may be chosen",
        )

    def await_index(self, engine: Engine) -> None:
        """Until the index holds as many blocks of an engine as its cache."""
        wait_until(
            lambda: self.worker(engine).get("held_blocks", [0])[0] == len(engine.cache),
            "the blocks of an engine in the index",
        )

    def receipt(self, answer: tuple[int, dict[str, str], Any]) -> dict[str, Any]:
        text = self.gateway.receipt(answer[1]["x-request-id"])
        return json.loads(text)


def _ask(
    port: int, method: str, path: str, body: Any, headers: dict[str, str] | None
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    fields = {key.lower(): value for key, value in response.getheaders()}
    try:
        return response.status, fields, json.loads(text)
    except ValueError:
        return response.status, fields, text


BY_OVERLAP = replace(Config(), routing=Routing(policy="dynamo", queue=False))
"""Placement by cached blocks alone. The price would also read the times of the scripted engines,
which are those of a busy machine: one slow answer sends the next prompt to the other engine."""


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    """Make engines; all are closed at the end."""
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        made.append(Engine(**options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def route(tmp_path: Path) -> Iterator[Callable[..., Router]]:
    """Start `wardrop serve` in front of engines, or of a file."""
    running: list[tuple[FleetServer, asyncio.AbstractEventLoop, threading.Thread]] = []

    def start(
        *engines: Engine,
        texts: tuple[str, ...] = (),
        file: Path | None = None,
        config: Config | None = None,
        tokenizer: str | None = None,
        count: int | None = None,
        kubernetes: tuple[KubernetesSpec, ...] = (),
        environment: dict[str, str] | None = None,
        timing: Timing | None = None,
        waits: bool = True,
        **feed: int,
    ) -> Router:
        config = config or Config()
        config = replace(
            config,
            http=Http(port=0, worker_threads=1),
            control=replace(config.control, admin_port=0),
            prompt=Prompt(handover=False),
            feed=replace(config.feed, tail_check_ms=200, **feed),
        )
        every = (*texts, *(engine.worker for engine in engines))
        workers = tuple(parse_worker(text) for text in every)
        spec = FleetSpec(workers=workers, kubernetes=kubernetes)
        ca_file = Path(config.upstream.ca_file) if config.upstream.ca_file else None
        source = FleetSource(spec, file, 0.1, tokenizer, environment, timing, ca_file)
        server = FleetServer(config, source, {})
        started = threading.Event()

        def run() -> None:
            loop = asyncio.new_event_loop()
            running.append((server, loop, threading.current_thread()))
            started.set()
            loop.run_until_complete(server.run(signals=False))
            loop.close()

        threading.Thread(target=run, daemon=True).start()
        started.wait()
        router = Router(server, source)
        wait_until(lambda: server.port is not None, "a listening router")
        wait_until(
            lambda: server.admin is not None and server.admin.port is not None, "an admin API"
        )
        if not waits:
            return router
        if count:
            wait_until(lambda: router.gateway is not None, "a gateway")
            wait_until(
                lambda: (
                    sum(
                        worker["available"]
                        for model in router.status()["models"]
                        for pool in model["pools"]
                        for worker in pool["workers"]
                    )
                    == count
                ),
                f"{count} ranks",
            )
        elif every:
            router.await_workers(len(every))
        for engine in engines:
            if engine.events is not None:
                assert engine.events.subscribed.wait(DEADLINE_S)
        return router

    yield start
    for server, loop, thread in running:
        loop.call_soon_threadsafe(_stop_at_once, server)
        thread.join(DEADLINE_S)


def _stop_at_once(server: FleetServer) -> None:
    """Ask twice, which ends the requests in flight too.

    Two calls of the loop would race: the first one may close it before the second.
    """
    server.request_stop()
    server.request_stop()
