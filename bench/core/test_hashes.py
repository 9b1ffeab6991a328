"""Local hashes of 16,384 tokens beside Dynamo's, per form of the tokens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from bench.conftest import Measure
from bench.core.same_blocks import BLOCK_SIZE

import wardrop

llm = pytest.importorskip("dynamo.llm", reason="Dynamo is not installed: no baseline")

RNG = random.Random(1)
TOKENS = [RNG.randrange(32_000) for _ in range(16_384)]
FORMS: dict[str, Any] = {"list": TOKENS, "numpy uint32": np.array(TOKENS, dtype=np.uint32)}


@pytest.mark.parametrize("arm", ["dynamo", "wardrop"])
@pytest.mark.parametrize("form", FORMS)
def test_block_hashes(arm: str, form: str, benchmark: Any, measure: Measure) -> None:
    theirs, ours = llm.compute_block_hash_for_seq, wardrop.block_hashes
    assert ours(FORMS[form], BLOCK_SIZE) == theirs(TOKENS, BLOCK_SIZE)
    benchmark.group = f"hashes of {len(TOKENS)} tokens, {form}"
    hashed = theirs if arm == "dynamo" else ours
    info = {"part": "hashes", "form": form, "tokens": len(TOKENS)}
    measure(lambda tokens: hashed(tokens, BLOCK_SIZE), [FORMS[form]], arm=arm, **info)
