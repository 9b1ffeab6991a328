"""The native frontend before workers of Dynamo 1.4.2."""

from __future__ import annotations

import pytest
from tests.frontend.native import running, served_by
from tests.frontend.test_live import prompt
from tests.live.test_older_dynamo import python
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec, split_fleet

__all__ = ["python"]

pytestmark = [
    pytest.mark.live,
    pytest.mark.heavy,
    pytest.mark.usefixtures("private_network", "binary"),
]


def test_prompt_returns_to_its_blocks_on_an_older_worker(python: str):
    with (
        Fleet(FleetSpec(workers=3, speedup_ratio=20, python=python)) as fleet,
        running(fleet, "--wardrop-policy", "dynamo") as native,
    ):
        worker = served_by(native.complete(prompt(1)))[1]
        blocks = len(prompt(1)) // fleet.spec.block_size
        wait_until(
            lambda: native.metrics().total("wardrop_worker_held_blocks") >= blocks,
            "the events of its blocks",
        )
        # The mock workers of this version do not report cached tokens, so the choice alone is seen.
        again = [served_by(native.complete(prompt(1)))[1] for _ in range(3)]
        assert again == [worker] * 3
        chat = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]}
        assert native.post("/v1/chat/completions", chat).status == 200
        assert native.decisions() == 5


def test_both_roles_of_an_older_split_are_decided(python: str):
    spec = split_fleet("2x2", FleetSpec(speedup_ratio=20, python=python))
    with Fleet(spec) as fleet, running(fleet, "--wardrop-policy", "dynamo") as native:
        assert [native.complete(prompt(n), 4).status for n in range(4)] == [200] * 4
        decided = native.metrics().by("wardrop_decisions_total", "worker_type")
        assert decided == {"prefill": 4, "decode": 4}
