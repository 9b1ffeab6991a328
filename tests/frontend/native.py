"""`wardrop frontend` as a process of its own, beside the workers of an embedded fleet."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.live.client import Answer, Metrics, get, post, stream
from tests.waiting import wait_until

from wardrop.dynamo.child_process import ChildProcess
from wardrop.dynamo.embedded import Fleet
from wardrop.dynamo.ports import free_port
from wardrop.frontend.launch import FrontendMissingError, find_binary


def require_binary() -> None:
    """Skip the test where the native frontend is not built."""
    try:
        find_binary()
    except FrontendMissingError as error:
        pytest.skip(f"NO TEST OF THE NATIVE FRONTEND RUNS: {error}")


class Native:
    """A running native frontend; `url` is its address."""

    def __init__(
        self, fleet: Fleet, arguments: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        self.fleet = fleet
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "wardrop.frontend", "--http-host", "127.0.0.1"]
        command += ["--http-port", str(port), *arguments]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DYN_", "WARDROP_"))}
        number = len(list(fleet.home.glob("native-*.log")))
        self.child = ChildProcess(
            "native",
            command,
            {**inherited, **fleet.dynamo_environment, **environment},
            fleet.home / f"native-{number}.log",
        )

    def metrics(self) -> Metrics:
        return Metrics(get(self.url, "/metrics").body.decode())

    def available(self) -> float:
        """Workers that may be chosen."""
        try:
            return self.metrics().total("wardrop_worker_available")
        except OSError:
            return -1.0

    def await_workers(self, count: int | None = None) -> Native:
        """Every worker of the fleet, or as many as given, may be chosen; the model is served."""
        expected = count if count is not None else len(self.fleet.live_instances())

        def ready() -> bool:
            assert self.child.exit_code is None, self.child.tail()
            if self.available() != expected:
                return False
            listed = get(self.url, "/v1/models").body.decode()
            return f'"{self.fleet.spec.model_name}"' in listed

        wait_until(ready, f"{expected} routable workers; log:\n{self.child.tail()}", 60.0)
        return self

    def post(self, path: str, body: object, timeout_s: float = 30.0, **headers: str) -> Answer:
        return post(self.url, path, body, timeout_s, **headers)

    def body(self, prompt: object, max_tokens: int = 2, **fields: object) -> dict[str, Any]:
        """Body of a completion that also says which workers served it."""
        return {
            "model": self.fleet.spec.model_name,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "nvext": {"extra_fields": ["worker_id"]},
            **fields,
        }

    def complete(self, prompt: object, max_tokens: int = 2, **fields: object) -> Answer:
        return self.post("/v1/completions", self.body(prompt, max_tokens, **fields))

    def stream(self, prompt: object, max_tokens: int, **fields: object) -> list[dict[str, Any]]:
        """The data of a whole streamed completion, without `[DONE]`."""
        fields = {"stream": True, "ignore_eos": True, **fields}
        connection, lines = stream(
            self.url, "/v1/completions", self.body(prompt, max_tokens, **fields)
        )
        texts = [line.decode()[6:].strip() for line in lines if line.startswith(b"data: ")]
        connection.close()
        assert texts[-1] == "[DONE]", texts[-3:]
        return [json.loads(text) for text in texts[:-1]]

    def decisions(self) -> float:
        return self.metrics().total("wardrop_decisions_total")

    def abstentions(self, reason: str) -> float:
        return self.metrics().total("wardrop_abstentions_total", reason=reason)

    def bookings(self) -> float:
        return self.metrics().total("wardrop_worker_active_requests")

    @property
    def log(self) -> str:
        return self.child.log.read_text(errors="replace")


@contextmanager
def running(
    fleet: Fleet,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    workers: int | None = None,
) -> Iterator[Native]:
    """A native frontend that is stopped at the end; its log is shown when the test fails."""
    require_binary()
    native = Native(fleet, arguments, environment or {})
    try:
        yield native.await_workers(workers)
    except BaseException:
        print(f"---- log\n{Path(native.child.log).read_text(errors='replace')[-8000:]}")
        raise
    finally:
        native.child.stop(10.0)


def served_by(answer: Answer) -> tuple[int, int]:
    """Prefill and decode instance that Dynamo says served the request."""
    worker = answer.json()["nvext"]["worker_id"]
    return worker["prefill_worker_id"], worker["decode_worker_id"]


def cached_tokens(answer: Answer) -> int:
    details = answer.json()["usage"]["prompt_tokens_details"]
    return int((details or {}).get("cached_tokens") or 0)
