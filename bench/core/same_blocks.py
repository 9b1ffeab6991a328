"""Dynamo's radix tree and a Wardrop router that hold the same blocks."""

from __future__ import annotations

import json
import random

import wardrop

BLOCK_SIZE = 16


def chains(count: int, blocks: int, rng: random.Random) -> list[list[int]]:
    """Random local hashes of `count` prompts."""
    return [[rng.getrandbits(63) for _ in range(blocks)] for _ in range(count)]


class SameBlocks:
    """Both indexes with the same content, over `workers` workers."""

    def __init__(self, workers: int) -> None:
        from dynamo.llm import RadixTree

        self.workers = workers
        self.tree = RadixTree()
        self.router = wardrop.Router(BLOCK_SIZE, "dynamo")
        self.events = 0
        for worker in range(workers):
            self.router.add_worker(worker)

    def store(self, worker: int, local_hashes: list[int]) -> None:
        """Store a prompt on a worker in both indexes."""
        names = wardrop.sequence_hashes(local_hashes)
        blocks = [
            {"block_hash": name, "tokens_hash": local}
            for name, local in zip(names, local_hashes, strict=True)
        ]
        self.events += 1
        stored = {"parent_hash": None, "blocks": blocks}
        event = {"event_id": self.events, "data": {"stored": stored}, "dp_rank": 0}
        self.tree.apply_event(worker, json.dumps(event).encode())
        self.router.apply(worker, wardrop.Stored(names, local_hashes=local_hashes))

    def check(self, local_hashes: list[int]) -> None:
        """Both lookups give the same answer."""
        scores = self.tree.find_matches(local_hashes).scores
        theirs = {(worker, rank): (blocks, 0, 0) for (worker, rank), blocks in scores.items()}
        ours = self.router.find_matches(hashes=local_hashes)
        assert ours == theirs, f"the answers differ: {len(ours)} and {len(theirs)} holders"
