"""LoRA adapters before the native frontend: Dynamo's runtime around scripted engines.

Dynamo's mock workers have no adapters, so `adapter_worker.py` stands for them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.frontend.test_live import prompt
from tests.live.client import Answer, Metrics, get, post
from tests.waiting import wait_until

from wardrop.dynamo.child_process import ChildProcess, stop_all
from wardrop.dynamo.fleet_commands import dynamo_environment
from wardrop.dynamo.model_folder import model_folder
from wardrop.dynamo.ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network", "binary")]

MODEL, ADAPTER = "tiny", "tiny-adapter"
BLOCK_SIZE = 16
WORKER = Path(__file__).with_name("adapter_worker.py")


@dataclass
class Deployment:
    """Workers, some of them with the adapter, and a native frontend."""

    url: str
    workers: list[ChildProcess]
    native: ChildProcess

    def complete(self, model: str, tokens: list[int]) -> Answer:
        body = {"model": model, "prompt": tokens, "max_tokens": 1}
        return post(self.url, "/v1/completions", body)

    def chat(self, model: str, text: str) -> Answer:
        message = {"role": "user", "content": text}
        body = {"model": model, "messages": [message], "max_tokens": 1}
        return post(self.url, "/v1/chat/completions", body)

    def metrics(self) -> Metrics:
        return Metrics(get(self.url, "/metrics").body.decode())

    def answers(self) -> bool:
        assert self.native.exit_code is None, self.native.tail()
        try:
            return get(self.url, "/metrics").status == 200
        except OSError:
            return False

    def models(self) -> set[str]:
        return {model["id"] for model in get(self.url, "/v1/models").json()["data"]}

    def served(self) -> list[list[dict[str, Any]]]:
        """The requests of each worker: adapter, tokens and cached tokens."""
        lines = (Path(worker.log).read_text().splitlines() for worker in self.workers)
        found = [[json.loads(line) for line in log if line.startswith("{")] for log in lines]
        return [[line for line in log if "tokens" in line] for log in found]

    def await_adapter(self, *, is_served: bool) -> None:
        """Until both routes serve the adapter, or none does."""
        status = 200 if is_served else 404

        def all_say_so() -> bool:
            statuses = {
                self.complete(ADAPTER, prompt(99)).status,
                self.chat(ADAPTER, "hello").status,
            }
            return statuses == {status}

        wait_until(all_say_so, f"status {status} of the adapter; log:\n{self.native.tail()}")


def environment_of(home: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DYN_", "WARDROP_"))}
    return {**inherited, **dynamo_environment(home / "store"), "DYN_SYSTEM_PORT": "0"}


def start_worker(home: Path, name: str, adapters: list[str]) -> ChildProcess:
    command = [sys.executable, str(WORKER), "--model", str(model_folder()), "--name", MODEL]
    command += ["--block-size", str(BLOCK_SIZE)]
    command += [flag for adapter in adapters for flag in ("--adapter", adapter)]
    return ChildProcess("worker", command, environment_of(home), home / f"{name}.log")


@contextmanager
def deployed(home: Path, adapters: list[list[str]]) -> Iterator[Deployment]:
    """One worker for each list of adapters, and a native frontend that knows all workers."""
    (home / "store").mkdir()
    port = free_port()
    native = [sys.executable, "-m", "wardrop.frontend", "--http-host", "127.0.0.1"]
    native += ["--http-port", str(port), "--wardrop-policy", "dynamo"]
    frontend = ChildProcess("native", native, environment_of(home), home / "native.log")
    deployment = Deployment(f"http://127.0.0.1:{port}", [], frontend)
    try:
        # Workers take any free port, so they start once the frontend has its own.
        wait_until(deployment.answers, f"the frontend; log:\n{frontend.tail()}")
        for number, names in enumerate(adapters):
            deployment.workers.append(start_worker(home, f"worker-{number}", names))

        def ready() -> bool:
            for child in [frontend, *deployment.workers]:
                assert child.exit_code is None, child.tail()
            available = deployment.metrics().total("wardrop_worker_available")
            return available == len(adapters) and MODEL in deployment.models()

        wait_until(ready, f"{len(adapters)} workers; log:\n{frontend.tail()}")
        yield deployment
    finally:
        stop_all([frontend, *deployment.workers])


def test_requests_of_an_adapter_go_to_workers_with_it_on_every_route(tmp_path: Path):
    with deployed(tmp_path, [[ADAPTER], [], []]) as deployment:
        deployment.await_adapter(is_served=True)
        for number in range(6):
            assert deployment.complete(ADAPTER, prompt(number)).status == 200
            assert deployment.chat(ADAPTER, f"question {number}").status == 200
            assert deployment.complete(MODEL, prompt(20 + number)).status == 200
        with_adapter, *without = deployment.served()
        assert sum(request["adapter"] == ADAPTER for request in with_adapter) >= 12
        assert all(request["adapter"] is None for log in without for request in log)
        assert all(log for log in without), "the model itself uses every worker"
        routed = sum(map(len, deployment.served()))
        assert deployment.metrics().total("wardrop_decisions_total") == routed


def test_blocks_of_an_adapter_count_for_its_own_prompts_alone(tmp_path: Path):
    with deployed(tmp_path, [[ADAPTER], [ADAPTER]]) as deployment:
        deployment.await_adapter(is_served=True)
        blocks = len(prompt(1)) // BLOCK_SIZE

        def held() -> float:
            return deployment.metrics().total("wardrop_worker_held_blocks")

        def cached(model: str) -> int:
            answer = deployment.complete(model, prompt(1)).json()
            return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        before = held()
        assert cached(ADAPTER) == 0
        wait_until(lambda: held() >= before + blocks, "the events of the adapter's blocks")
        assert cached(ADAPTER) == blocks * BLOCK_SIZE, "the prompt returns to its blocks"
        predicted = deployment.metrics().total("wardrop_cached_tokens_predicted_total")
        assert cached(MODEL) == 0, "the engine keeps the blocks of an adapter apart"
        again = deployment.metrics().total("wardrop_cached_tokens_predicted_total")
        assert again == predicted, "the router keeps them apart as well"


def test_adapter_that_is_unloaded_is_unknown_and_the_model_stays(tmp_path: Path):
    with deployed(tmp_path, [[ADAPTER], []]) as deployment:
        deployment.await_adapter(is_served=True)
        os.kill(deployment.workers[0].pid, signal.SIGUSR1)
        deployment.await_adapter(is_served=False)
        assert ADAPTER not in deployment.models()
        assert deployment.complete(MODEL, prompt(1)).status == 200
        assert deployment.chat(MODEL, "hello").status == 200


def test_adapter_comes_back_with_its_worker(tmp_path: Path):
    with deployed(tmp_path, [[ADAPTER]]) as deployment:
        deployment.await_adapter(is_served=True)
        deployment.workers[0].stop(10.0)
        wait_until(lambda: ADAPTER not in deployment.models(), "the end of the adapter")
        again = start_worker(tmp_path, "again", [ADAPTER])
        try:
            deployment.await_adapter(is_served=True)
        finally:
            stop_all([again])
