"""`wardrop dynamo` as a process of its own, in front of an embedded fleet."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.live.client import Answer, Metrics, get, post
from tests.waiting import wait_until

from wardrop.dynamo.child_process import ChildProcess
from wardrop.dynamo.embedded import Fleet
from wardrop.dynamo.ports import free_port

SPREADING = ("--policy", "dynamo", "--no-queue")
"""Flags of a router that spreads requests without a shared prefix over an idle fleet.

Without load, `toll` sends each of them to the worker with the fastest learned curves.
"""


class Router:
    """A running router; `url` is its public address."""

    def __init__(
        self, fleet: Fleet, arguments: tuple[str, ...], frontend_arguments: tuple[str, ...]
    ):
        self.fleet = fleet
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "wardrop", "dynamo", "--http-port", str(port)]
        command += ["--routing-explain-headers", *arguments]
        if frontend_arguments:
            command += ["--", *frontend_arguments]
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("DYN_", "WARDROP_"))
        }
        number = len(list(fleet.home.glob("router-*.log")))
        self.child = ChildProcess(
            "router",
            command,
            environment | fleet.dynamo_environment,
            fleet.home / f"router-{number}.log",
        )

    def status(self, path: str) -> int:
        try:
            return get(self.url, path).status
        except (OSError, http.client.HTTPException):
            return 0

    def await_ready(self, workers: int | None = None) -> Router:
        """Every worker of the fleet may be chosen (or as many as given)."""
        expected = workers if workers is not None else len(self.fleet.live_instances())

        def ready() -> bool:
            assert self.child.exit_code is None, self.child.tail()
            if self.status("/live") != 200:
                return False
            return self.metrics().total("wardrop_worker_available") == expected

        wait_until(ready, f"{expected} routable workers; log:\n{self.child.tail()}")
        return self

    def await_handover(self) -> Router:
        """The check against Dynamo's own ids is done; prompts are handed over."""
        probe = {"model": self.fleet.spec.model_name, "prompt": "handover probe", "max_tokens": 1}

        def handed() -> bool:
            assert self.post("/v1/completions", probe).status == 200
            return self.metrics().total("wardrop_token_id_handovers_total") > 0

        wait_until(handed, "a handover")
        return self

    def metrics(self) -> Metrics:
        return Metrics(get(self.url, "/metrics").body.decode())

    def post(self, path: str, body: object, timeout_s: float = 30.0, **headers: str) -> Answer:
        return post(self.url, path, body, timeout_s, **headers)

    def complete(self, prompt: object, max_tokens: int = 2, **fields: object) -> Answer:
        """One completion that also says which workers served it."""
        body = {
            "model": self.fleet.spec.model_name,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "nvext": {"extra_fields": ["worker_id"]},
            **fields,
        }
        return self.post("/v1/completions", body)

    def held_blocks(self, worker: int) -> float:
        """Blocks that the router knows a worker to hold."""
        return self.metrics().total("wardrop_worker_held_blocks", worker_id=str(worker))

    def complete_and_learn(self, prompt: list[int]) -> Answer:
        """A completion of a prompt of its own; returns when its blocks' events have arrived."""
        before = self.metrics().by("wardrop_worker_held_blocks", "worker_id")
        answer = self.complete(prompt)
        worker = instance(answer)
        expected = before.get(str(worker), 0.0) + len(prompt) // self.fleet.spec.block_size
        wait_until(lambda: self.held_blocks(worker) >= expected, "the events of its blocks")
        return answer

    def passes_over(self, worker: int) -> bool:
        """Whether a worker is forgotten or may not be chosen."""
        up = self.metrics().by("wardrop_worker_available", "worker_id")
        return up.get(str(worker), 0.0) == 0.0

    @property
    def log(self) -> str:
        return self.child.log.read_text(errors="replace")


@contextmanager
def running(
    fleet: Fleet, *arguments: str, frontend: tuple[str, ...] = (), ready: bool = True
) -> Iterator[Router]:
    """A router that is stopped at the end; its log is shown when the test fails."""
    router = Router(fleet, arguments, frontend)
    try:
        yield router.await_ready() if ready else router
    except BaseException:
        print(f"---- router log\n{Path(router.child.log).read_text(errors='replace')[-8000:]}")
        raise
    finally:
        router.child.stop(10.0)


def instance(router_answer: Answer) -> int:
    """Instance that the router says it chose."""
    return int(router_answer.headers["x-wardrop-worker"].partition("/")[0])


def served_by(answer: Answer) -> tuple[int, int]:
    """Prefill and decode instance that Dynamo says served the request."""
    worker = answer.json()["nvext"]["worker_id"]
    return worker["prefill_worker_id"], worker["decode_worker_id"]


def cached_tokens(answer: Answer) -> int:
    details = answer.json()["usage"]["prompt_tokens_details"]
    return int((details or {}).get("cached_tokens") or 0)
