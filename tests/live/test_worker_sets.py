"""A rolling upgrade in a real Dynamo: a second worker set of one model comes and goes."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from tests.live.router import Router, running
from tests.waiting import wait_until

from wardrop.dynamo.child_process import ChildProcess, stop_all
from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]


def start_set(fleet: Fleet, namespace: str) -> ChildProcess:
    """Two more workers of the fleet's model, in a namespace of their own."""
    spec = fleet.spec
    command = [sys.executable, "-m", "dynamo.mocker", "--model-path", str(fleet.model)]
    command += ["--model-name", spec.model_name, "--num-workers", "2", "--block-size", "16"]
    command += ["--num-gpu-blocks-override", "2048", "--speedup-ratio", "50"]
    command += ["--max-model-len", str(spec.max_model_len)]
    environment = {**fleet.environment, "DYN_NAMESPACE": namespace, "DYN_SYSTEM_PORT": "0"}
    return ChildProcess(namespace, command, environment, fleet.home / f"{namespace}.log")


def ask(router: Router, count: int, first: int) -> tuple[Counter[int], Counter[int]]:
    """Statuses of some requests, and of `/ready` after each."""
    answers: Counter[int] = Counter()
    ready: Counter[int] = Counter()
    for number in range(first, first + count):
        body = {"model": "tiny", "prompt": [300 + number] * 64, "max_tokens": 1}
        answers[router.post("/v1/completions", body).status] += 1
        ready[router.status("/ready")] += 1
    return answers, ready


def abstentions(router: Router) -> dict[str, float]:
    return router.metrics().by("wardrop_abstentions_total", "reason")


def test_second_worker_set_leaves_the_model_to_dynamo_and_ready_stays() -> None:
    with Fleet(FleetSpec(workers=2, speedup_ratio=50)) as fleet:
        front = fleet.add_frontend("kv")
        with running(fleet, "--upstream", front.url) as router:
            assert ask(router, 10, 0) == (Counter({200: 10}), Counter({200: 10}))
            assert router.metrics().total("wardrop_decisions_total") == 10
            second = start_set(fleet, "dynamo-v2")
            try:
                wait_until(
                    lambda: router.metrics().total("wardrop_worker_available") == 4,
                    "the workers of the second set",
                )
                decisions = router.metrics().total("wardrop_decisions_total")
                before = abstentions(router).get("worker_sets", 0)
                assert ask(router, 40, 100) == (Counter({200: 40}), Counter({200: 40}))
                assert abstentions(router)["worker_sets"] == before + 40
                assert router.metrics().total("wardrop_decisions_total") == decisions
                assert router.metrics().total("wardrop_retries_total") == 0
                assert "one of 2 worker sets" in router.log
            finally:
                stop_all([second])
            wait_until(
                lambda: router.metrics().total("wardrop_worker_available") == 2,
                "the end of the second set",
            )
            decisions = router.metrics().total("wardrop_decisions_total")
            assert ask(router, 10, 200) == (Counter({200: 10}), Counter({200: 10}))
            assert router.metrics().total("wardrop_decisions_total") == decisions + 10
