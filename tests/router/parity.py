"""Drives Dynamo's selection service and Wardrop's router through the same random states.

Run as a program: `python parity.py STATES SEED PARAMETERS_JSON [OUR_PARAMETERS_JSON]` prints the
counts as JSON. Dynamo reads its weights from the environment once, so each setting needs a process
of its own. The KV events go over ipc sockets: nothing listens on a network.

Two things that Wardrop does and Dynamo 1.6.1 does not are left out of the events: copies of a block
are counted, and blocks behind a hole count again once the hole is filled.
"""

import asyncio
import json
import os
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

BLOCK = 16
TIERS = {"device": "GPU", "host": "CPU_PINNED", "disk": "DISK"}
ENVIRONMENT = {
    "overlap_score_credit": "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT",
    "overlap_score_credit_decay": "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY",
    "prefill_load_scale": "DYN_ROUTER_PREFILL_LOAD_SCALE",
    "decode_active_request_weight": "DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT",
    "host_cache_hit_weight": "DYN_ROUTER_HOST_CACHE_HIT_WEIGHT",
    "disk_cache_hit_weight": "DYN_ROUTER_DISK_CACHE_HIT_WEIGHT",
}


class Pair:
    """The two routers, and what was done to both."""

    def __init__(self, seed: int, parameters: dict[str, float]) -> None:
        import zmq
        from dynamo.llm import SelectionService

        import wardrop

        self.wardrop = wardrop
        self.rng = random.Random(seed)
        self.sockets = Path(tempfile.mkdtemp(prefix="parity"))
        self.context = zmq.Context()
        self.service = SelectionService(indexer_threads=1)
        self.ours = wardrop.Router(BLOCK, "dynamo", seed=seed, **parameters)
        self.workers = [(1, 0), (2, 0), (2, 1), (3, 0), (7, 0)][: self.rng.choice([2, 3, 5])]
        self.publishers: dict[tuple[int, int], Any] = {}
        self.sequence: Counter[tuple[int, int]] = Counter()
        self.prompts = [[self.rng.randrange(1000) for _ in range(40)]]
        self.booked: list[str] = []
        # Per worker: name -> (name of the block before, tier).
        self.held: dict[tuple[int, int], dict[int, tuple[int | None, str]]] = {
            worker: {} for worker in self.workers
        }
        self.counts: Counter[str] = Counter()
        self.markers = 0

    async def start(self) -> None:
        import zmq

        for instance in sorted({instance for instance, _ in self.workers}):
            ranks = [rank for worker, rank in self.workers if worker == instance]
            endpoints = {}
            for rank in ranks:
                socket = self.context.socket(zmq.PUB)
                endpoints[rank] = f"ipc://{self.sockets}/{instance}-{rank}"
                socket.bind(endpoints[rank])
                self.publishers[instance, rank] = socket
                self.ours.add_worker((instance, rank))
            await self.service.upsert_worker(
                {
                    "worker_id": instance,
                    "model_name": "m",
                    "endpoint": f"http://worker-{instance}",
                    "block_size": BLOCK,
                    "data_parallel_size": len(ranks),
                    "kv_events_endpoints": endpoints,
                    "total_kv_blocks": 1 << 20,
                    "max_num_batched_tokens": 8192,
                }
            )
        for worker in self.workers:
            await self.settle(worker)

    def publish(self, worker: tuple[int, int], event: dict[str, Any]) -> None:
        import msgspec

        batch = msgspec.msgpack.encode([time.time(), [event], worker[1]])
        number = struct.pack(">Q", self.sequence[worker])
        self.publishers[worker].send_multipart([b"", number, batch])
        self.sequence[worker] += 1

    async def settle(self, worker: tuple[int, int], tier: str = "device") -> None:
        """Wait until the service has applied all of this worker and tier: it must see a marker.

        Dynamo keeps each tier in an index of its own, with a queue of its own.
        """
        column = {"device": "device", "host": "host_pinned_extension", "disk": "disk_extension"}[
            tier
        ]
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            self.markers += 1
            marker = [2**31 + self.markers] * BLOCK
            name = self.wardrop.block_hashes(marker, BLOCK)
            stored = {"block_hashes": name, "parent_block_hash": None, "token_ids": marker}
            medium = {"medium": TIERS[tier]}
            self.publish(worker, {"type": "BlockStored", "block_size": BLOCK, **stored, **medium})
            for _ in range(200):
                scores = await self.service.overlap_scores({"model_name": "m", "token_ids": marker})
                row = next(r for r in scores["workers"] if (r["worker_id"], r["dp_rank"]) == worker)
                if row[f"{column}_blocks"]:
                    self.publish(worker, {"type": "BlockRemoved", "block_hashes": name, **medium})
                    return
                await asyncio.sleep(0.0005)
        raise TimeoutError(f"worker {worker}: an event was not applied within 20 s")

    def prompt(self) -> list[int]:
        if self.rng.random() < 0.2:
            stem = self.rng.choice(self.prompts)
            stem = stem[: self.rng.randrange(len(stem) + 1)]
            tail = [self.rng.randrange(1000) for _ in range(self.rng.randrange(1, 20 * BLOCK))]
            self.prompts = [*self.prompts[-30:], stem + tail]
        prompt = self.rng.choice(self.prompts)
        return prompt[: self.rng.randrange(1, len(prompt) + 1)]

    async def change(self) -> None:
        """One random step that both routers see."""
        step = self.rng.random()
        if step < 0.35:
            await self.store()
        elif step < 0.5:
            await self.remove()
        elif step < 0.8 and len(self.booked) < 40:
            await self.book()
        elif self.booked and step < 0.9:
            name = self.rng.choice(self.booked)
            await self.service.prefill_complete(name)
            self.ours.prefill_done(name)
        elif self.booked:
            name = self.booked.pop(self.rng.randrange(len(self.booked)))
            await self.service.free_reservation(name)
            self.ours.release(name)

    async def store(self) -> None:
        """Store what is not held yet: Dynamo 1.6.1 does not count copies."""
        worker, tokens = self.rng.choice(self.workers), self.prompt()
        tokens = tokens[: len(tokens) // BLOCK * BLOCK]
        names = self.wardrop.sequence_hashes(self.wardrop.block_hashes(tokens, BLOCK))
        held = self.held[worker]
        known = next((at for at, name in enumerate(names) if name not in held), len(names))
        if known == len(names):
            return
        parent = names[known - 1] if known else None
        tokens, names = tokens[known * BLOCK :], names[known:]
        tier = self.rng.choice(["device", "device", "device", "host", "disk"])
        if parent is not None and held[parent][1] != "device":
            tier = held[parent][1]  # what lies below a lower tier stays below
        for name, above in zip(names, [parent, *names], strict=False):
            held[name] = (above, tier)
        stored = {"block_hashes": names, "parent_block_hash": parent, "token_ids": tokens}
        event = {"type": "BlockStored", "block_size": BLOCK, "medium": TIERS[tier], **stored}
        self.publish(worker, event)
        self.counts["stored"] += 1
        ours = self.wardrop.Stored(names, tokens=tokens, block_size=BLOCK, parent=parent, tier=tier)
        self.ours.apply(worker, ours)
        await self.settle(worker, tier)

    async def remove(self) -> None:
        """Evict from a tail, as engines do: Dynamo 1.6.1 forgets what lies behind a hole."""
        worker = self.rng.choice(self.workers)
        held = self.held[worker]
        parents = {above for above, _ in held.values()}
        leaves = sorted(name for name in held if name not in parents)
        if not leaves:
            return
        names = [self.rng.choice(leaves)]
        tier = held[names[0]][1]
        for _ in range(self.rng.randrange(8)):
            above = held[names[-1]][0]
            others = sum(parent == above for parent, _ in held.values())
            if above is None or others > 1 or held[above][1] != tier:
                break
            names.append(above)
        for name in names:
            del held[name]
        self.counts["removed"] += 1
        self.publish(worker, {"type": "BlockRemoved", "block_hashes": names, "medium": TIERS[tier]})
        self.ours.apply(worker, self.wardrop.Removed(names, tier=tier))
        await self.settle(worker, tier)

    async def book(self) -> None:
        tokens, name = self.prompt(), f"r{self.counts['booked']}"
        self.counts["booked"] += 1
        chosen = await self.service.select_and_reserve(
            {"model_name": "m", "selection_id": name, "token_ids": tokens}
        )
        self.ours.book((chosen["worker_id"], chosen["dp_rank"]), name, tokens)
        self.booked.append(name)

    async def compare(self) -> str | None:
        """One question to both; what differs, if anything."""
        tokens = self.prompt()
        ours = self.ours.route(tokens, explain=True)
        theirs = await self.service.select({"model_name": "m", "token_ids": tokens})
        chosen = (theirs["worker_id"], theirs["dp_rank"])
        best = min(candidate.cost for candidate in ours.candidates)
        lowest = [c.worker for c in ours.candidates if c.cost <= best + 1e-9 * max(1.0, abs(best))]
        self.counts["states"] += 1
        self.counts["with_overlap"] += any(c.device_blocks for c in ours.candidates)
        self.counts["with_lower_tier"] += any(
            c.host_blocks + c.disk_blocks for c in ours.candidates
        )
        self.counts["with_shared_blocks"] += any(c.shared_blocks for c in ours.candidates)
        unique = len(lowest) == 1
        self.counts["unique" if unique else "tied"] += 1
        if chosen in lowest:
            self.counts["agree" if unique else "agree_tied"] += 1
            return None
        costs = [(c.worker, c.cost) for c in ours.candidates]
        return f"{len(tokens)} tokens: Dynamo took {chosen}, ours cost {costs}"


async def run(states: int, seed: int, parameters: dict[str, float]) -> dict[str, Any]:
    """Compare `states` random states, in fleets of 400 states each."""
    total: Counter[str] = Counter()
    differences: list[str] = []
    while total["states"] < states:
        pair = Pair(seed + total["states"], parameters)
        await pair.start()
        for _ in range(min(400, states - total["states"])):
            await pair.change()
            if difference := await pair.compare():
                differences.append(difference)
        pair.service.shutdown()
        pair.context.destroy(linger=0)
        total += pair.counts
    return {**total, "differences": differences[:5]}


if __name__ == "__main__":
    given = json.loads(sys.argv[3])
    ours = json.loads(sys.argv[4]) if len(sys.argv) > 4 else given
    os.environ["DYN_LOG"] = "error"
    os.environ.update({ENVIRONMENT[name]: str(value) for name, value in given.items()})
    print(json.dumps(asyncio.run(run(int(sys.argv[1]), int(sys.argv[2]), ours))))
