"""`wardrop dynamo --index-file` on a real Dynamo: the gateway restarts, the workers live on."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from tests.live.client import Answer
from tests.live.router import Router, cached_tokens, instance, running
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [
    pytest.mark.live,
    pytest.mark.usefixtures("private_network"),
    pytest.mark.timeout(240),
]

# Without Dynamo's dump nothing but the file can fill the index before the first event.
ALONE = ("--no-bootstrap", "--policy", "dynamo", "--no-queue")
"""Nothing but the file tells of blocks, and blocks decide.

Engines at 100 times the speed compute a prompt within a millisecond. Seconds that a busy machine
adds would outweigh it in the price, which then chooses a worker without the prefix.
"""
PROMPT_BLOCKS = 32


def prompt(number: int, block_size: int) -> list[int]:
    return random.Random(number).choices(range(300, 7000), k=PROMPT_BLOCKS * block_size)


def overlap(answer: Answer) -> int:
    return int(answer.headers["x-wardrop-overlap-blocks"])


def judged(router: Router, result: str) -> float:
    return router.metrics().total("wardrop_index_restored_first_events_total", result=result)


def taken_over(router: Router) -> float:
    name = "wardrop_index_restored_workers_total"
    return router.metrics().total(name, result="taken_over")


@pytest.fixture(scope="module")
def fleet(private_network):
    with Fleet(FleetSpec(workers=3, speedup_ratio=100)) as started:
        yield started


def await_taken_over(router: Router, workers: int) -> None:
    """The file is read as soon as the pool's feeds are known, a moment after its workers are."""
    wait_until(lambda: taken_over(router) == workers, "the file to be read")


def await_dump(router: Router) -> None:
    """What the workers held before is known, and their feeds are heard: every event counts now."""
    wait_until(lambda: "read the blocks of" in router.log, "Dynamo's dump", 60)


def taught(fleet: Fleet, *arguments: str) -> list[tuple[list[int], int]]:
    """A gateway's life: prompts that it placed, and where their prefixes are; it is stopped."""
    size = fleet.spec.block_size
    start = random.randrange(1 << 40)  # prompts of this test alone
    with running(fleet, *arguments) as router:
        prompts = [prompt(start + number, size) for number in range(6)]
        await_dump(router)
        return [(tokens, instance(router.complete_and_learn(tokens))) for tokens in prompts]


def test_first_prompt_after_a_restart_goes_to_its_prefix(fleet: Fleet, tmp_path: Path):
    path = tmp_path / "index"
    placed = taught(fleet, "--index-file", str(path))
    assert path.stat().st_size > 6 * PROMPT_BLOCKS * 8

    # Negative control: the same restart without the file knows nothing.
    with running(fleet, *ALONE) as router:
        assert router.metrics().total("wardrop_worker_held_blocks") == 0
        assert overlap(router.complete(placed[0][0])) == 0

    with running(fleet, *ALONE, "--index-file", str(path)) as router:
        await_taken_over(router, 3)
        found = [router.complete(tokens) for tokens, _ in placed[1:]]
        for answer, (_, worker) in zip(found, placed[1:], strict=True):
            assert instance(answer) == worker
            assert overlap(answer) >= PROMPT_BLOCKS - 1
            size = fleet.spec.block_size
            assert cached_tokens(answer) >= (PROMPT_BLOCKS - 1) * size, "the engine's own word"


def test_proof_comes_with_the_next_event_or_a_dump(fleet: Fleet, tmp_path: Path):
    path = tmp_path / "index"
    taught(fleet, "--index-file", str(path))
    with running(fleet, *ALONE, "--index-file", str(path)) as router:
        await_taken_over(router, 3)
        time.sleep(1.0)  # a subscription travels; what is published before it came is missed
        # Nothing happened meanwhile: the next event of each worker is the next one.
        number = 0
        while judged(router, "exact") < 3:
            assert number < 100, "every worker gets prompts of its own soon"
            router.complete(prompt(random.randrange(1 << 40), fleet.spec.block_size))
            number += 1
        assert judged(router, "outrun") + judged(router, "restarted") == 0
    taught(fleet)  # another gateway's requests: the file's positions are too old now
    with running(fleet, "--index-file", str(path)) as router:
        await_dump(router)
        log = router.log
        assert log.index("restored ") < log.index("read the blocks of")


def test_worker_that_restarted_meanwhile_is_not_credited(fleet: Fleet, tmp_path: Path):
    path = tmp_path / "index"
    placed = taught(fleet, "--index-file", str(path))
    victim = fleet.workers[0]
    was = victim.instances[0]
    victim.child.kill()
    wait_until(lambda: was not in fleet.live_instances(), "the lease to end")
    fresh = fleet.add_worker().instances[0]
    with running(fleet, *ALONE, "--index-file", str(path)) as router:
        await_taken_over(router, 2)
        assert "1 left" in router.log
        assert router.held_blocks(fresh) == 0
        for tokens, worker in placed:
            answer = router.complete(tokens)
            if worker == was:
                assert overlap(answer) == 0, "the blocks of the dead worker belong to no worker"
            else:
                assert (instance(answer), overlap(answer) > 0) == (worker, True)
    assert any(worker == was for _, worker in placed), "the dead one must have held something"


def test_damaged_file_is_told_once_and_the_gateway_serves(fleet: Fleet, tmp_path: Path):
    path = tmp_path / "index"
    taught(fleet, "--index-file", str(path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with running(fleet, *ALONE, "--index-file", str(path)) as router:
        assert router.log.count("is not used, the index starts empty") == 1
        assert "checksum is wrong" in router.log
        answer = router.complete(prompt(random.randrange(1 << 40), fleet.spec.block_size))
        assert (answer.status, overlap(answer)) == (200, 0)
    assert path.read_bytes() != bytes(content), "and is a good one again after its stop"


def test_gateway_that_is_killed_leaves_its_last_whole_file(fleet: Fleet, tmp_path: Path):
    path = tmp_path / "index"
    arguments = ("--index-file", str(path), "--index-interval-s", "0.5")
    with running(fleet, *arguments) as router:
        await_dump(router)
        tokens = prompt(random.randrange(1 << 40), fleet.spec.block_size)
        worker = instance(router.complete_and_learn(tokens))
        learned_s = time.time()
        wait_until(lambda: path.exists() and path.stat().st_mtime > learned_s + 0.1, "a write")
        os.kill(router.child.pid, 9)
    with running(fleet, *ALONE, "--index-file", str(path)) as router:
        answer = router.complete(tokens)
        assert (instance(answer), overlap(answer) > 0) == (worker, True)
