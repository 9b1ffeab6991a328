"""A whole decision of Wardrop beside the lookup of Dynamo's index, hashes in hand.

`RadixTree.find_matches` returns the overlap per worker. `Router.route` matches, prices every worker
and picks. Both indexes hold the same blocks, and both lookups give the same answer.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from bench.conftest import Measure
from bench.core.same_blocks import SameBlocks, chains

pytest.importorskip("dynamo.llm", reason="Dynamo is not installed: no baseline")

BACKGROUND_BLOCKS = 200_000
HELD_MAX = 600_000
"""Blocks of one prompt's depth times its holders; larger cells take minutes to fill."""
SIZES = {
    "small": ((64, 4096), (128, 1024)),
    "full": ((8, 64, 512, 4096), (16, 128, 1024, 8192)),
}

Cell = tuple[int, int, list[list[int]], SameBlocks]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        fleets, depths = SIZES[metafunc.config.getoption("--grid")]
        cells = [
            (workers, depth, holders)
            for workers in fleets
            for depth in depths
            for holders in (0, 1, workers)
            if depth * holders <= HELD_MAX
        ]
        names = [f"W={w},D={d},holders={h}" for w, d, h in cells]
        fleet_of_cells = [workers for workers, _, _ in cells]
        metafunc.parametrize(
            ("fleet", "cell"),
            list(zip(fleet_of_cells, cells, strict=True)),
            ids=names,
            indirect=True,
            scope="module",
        )


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> SameBlocks:
    """Both indexes with `request.param` workers and blocks in the background."""
    pair = SameBlocks(request.param)
    for at, chain in enumerate(
        chains(BACKGROUND_BLOCKS // 1024, 1024, random.Random(request.param))
    ):
        pair.store(at % request.param, chain)
    return pair


@pytest.fixture(scope="module")
def cell(request: pytest.FixtureRequest, fleet: SameBlocks) -> Cell:
    """Prompts of one depth, each stored on `holders` workers, compared in both indexes."""
    workers, depth, holders = request.param
    prompts = chains(8 if holders * depth > 8192 else 64, depth, random.Random(str(request.param)))
    for at, chain in enumerate(prompts):
        for holder in range(holders):
            fleet.store((at + holder) % workers, chain)
        fleet.check(chain)
    return depth, holders, prompts, fleet


@pytest.mark.parametrize("arm", ["radix_tree", "route"])
def test_decision_beside_lookup(arm: str, cell: Cell, benchmark: Any, measure: Measure) -> None:
    depth, holders, prompts, pair = cell
    benchmark.group = f"index: {pair.workers} workers, {depth} blocks, {holders} holders"
    info = {"part": "index", "workers": pair.workers, "blocks": depth, "holders": holders}
    if arm == "radix_tree":
        measure(pair.tree.find_matches, prompts, arm=arm, **info)
    else:
        arrays = [np.array(chain, dtype=np.uint64) for chain in prompts]
        measure(pair.router.route, arrays, key="hashes", arm=arm, **info)
