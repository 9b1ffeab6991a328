"""The router's index and decisions beside Dynamo's own, in one run: `python -m bench.core`.

Arms: `dynamo.llm.RadixTree` (its index), `dynamo.llm.SelectionService` (its selection; without KV
state, which only makes it faster) and `wardrop.Router` (match, price, pick; with booking where
said). The same blocks in both indexes, the same prompts, the answers compared before the clock
starts. One process
pinned to one CPU: Dynamo's tree answers on a thread of its own and is slower unpinned.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 16


def percentiles_us(call: Callable[[int], Any], repeats: int) -> dict[str, float]:
    """Microseconds per call: p50, p99, p99.9, and processor time of a loop."""
    for i in range(min(50, repeats)):
        call(i)
    spent = []
    for i in range(repeats):
        start = time.perf_counter_ns()
        call(i)
        spent.append(time.perf_counter_ns() - start)
    before = time.thread_time_ns()
    for i in range(repeats):
        call(i)
    return figures(spent, (time.thread_time_ns() - before) / repeats)


def figures(spent_ns: list[int], cpu_ns: float | None = None) -> dict[str, float]:
    """Percentiles of single calls."""
    p50, p99, p999 = np.percentile(spent_ns, [50, 99, 99.9]) / 1000
    found = {"p50_us": float(p50), "p99_us": float(p99), "p99.9_us": float(p999)}
    if cpu_ns is not None:
        found["cpu_us"] = cpu_ns / 1000
    return {name: round(figure, 2) for name, figure in found.items()}


def chains(count: int, blocks: int, rng: random.Random) -> list[list[int]]:
    return [[rng.getrandbits(63) for _ in range(blocks)] for _ in range(count)]


class Pair:
    """Both indexes with the same content."""

    def __init__(self, workers: int) -> None:
        from dynamo.llm import RadixTree

        import wardrop

        self.wardrop = wardrop
        self.tree = RadixTree()
        self.router = wardrop.Router(BLOCK, "dynamo")
        self.events = 0
        for worker in range(workers):
            self.router.add_worker(worker)

    def store(self, worker: int, locals_: list[int]) -> None:
        names = self.wardrop.sequence_hashes(locals_)
        blocks = [
            {"block_hash": name, "tokens_hash": local}
            for name, local in zip(names, locals_, strict=True)
        ]
        self.events += 1
        stored = {"parent_hash": None, "blocks": blocks}
        event = {"event_id": self.events, "data": {"stored": stored}, "dp_rank": 0}
        self.tree.apply_event(worker, json.dumps(event).encode())
        self.router.apply(worker, self.wardrop.Stored(names, local_hashes=locals_))

    def check(self, locals_: list[int]) -> None:
        scores = self.tree.find_matches(locals_).scores
        theirs = {(worker, rank): (blocks, 0, 0) for (worker, rank), blocks in scores.items()}
        ours = self.router.find_matches(hashes=locals_)
        assert ours == theirs, f"the answers differ: {len(ours)} and {len(theirs)} holders"


def lookups(pair: Pair, kinds: list[list[int]], repeats: int) -> tuple[dict[str, float], ...]:
    """Dynamo's lookup and our decision over the same prompts."""
    arrays = [np.array(chain, dtype=np.uint64) for chain in kinds]
    n = len(kinds)
    theirs = percentiles_us(lambda i: pair.tree.find_matches(kinds[i % n]), repeats)
    ours = percentiles_us(lambda i: pair.router.route(hashes=arrays[i % n]), repeats)
    return theirs, ours


def index_rows(repeats: int, background: int) -> list[dict[str, Any]]:
    """Dynamo's lookup alone beside our whole decision, hashes in hand."""
    rows = []
    for workers in (8, 64, 512, 4096):
        pair, rng = Pair(workers), random.Random(workers)
        for at, chain in enumerate(chains(background // 1024, 1024, rng)):
            pair.store(at % workers, chain)
        for depth in (16, 128, 1024, 8192):
            for holders in (0, 1, workers):
                if holders * depth > 600_000:
                    continue
                kinds = chains(8 if holders * depth > 8192 else 64, depth, rng)
                for at, chain in enumerate(kinds):
                    for holder in range(holders):
                        pair.store((at + holder) % workers, chain)
                    pair.check(chain)
                theirs, ours = lookups(pair, kinds, repeats)
                row = {"workers": workers, "blocks": depth, "holders": holders}
                ratio = round(theirs["p50_us"] / ours["p50_us"], 1)
                rows.append({**row, "radix_tree": theirs, "route": ours, "ratio_p50": ratio})
                print(json.dumps(rows[-1]), flush=True)
    return rows


async def selection_rows(repeats: int) -> list[dict[str, Any]]:
    """Dynamo's selection beside ours, from tokens, with booking."""
    from dynamo.llm import SelectionService

    import wardrop

    workers, rows = 64, []
    size = {"model_name": "m", "total_kv_blocks": 1 << 20, "max_num_batched_tokens": 8192}
    size["kv_events_endpoints"] = {0: "ipc:///tmp/nobody-publishes-here"}
    service, router = SelectionService(indexer_threads=1), wardrop.Router(BLOCK, "dynamo")
    keyed = wardrop.Router(BLOCK, "dynamo", hash="keyed")
    for worker in range(workers):
        record = {"worker_id": worker, "endpoint": "http://w", "block_size": BLOCK}
        await service.upsert_worker({**record, **size})
        router.add_worker(worker)
        keyed.add_worker(worker)
    for depth in (1, 128, 1024, 8192):
        tokens = [random.Random(depth).randrange(32000) for _ in range(depth * BLOCK)]
        array = np.array(tokens, dtype=np.uint32)
        question = {"model_name": "m", "token_ids": tokens}
        for _ in range(100):  # it takes its workers in behind our back
            answer = await service.select(question)
            if answer["potential_decode_blocks"] == depth:
                break
            await asyncio.sleep(0.1)
        assert answer["potential_decode_blocks"] == depth, f"{answer}: expected {depth} blocks"
        assert router.route(array).cost == 2.0 * depth
        theirs_ns = []
        for _ in range(max(50, repeats // 10)):
            start = time.perf_counter_ns()
            await service.select(question)
            theirs_ns.append(time.perf_counter_ns() - start)
        theirs = figures(theirs_ns)
        life: dict[str, list[int]] = {"route": [], "life": []}
        for i in range(repeats):
            start = time.perf_counter_ns()
            router.route(array, request_id=i)
            middle = time.perf_counter_ns()
            router.prefill_done(i)
            router.release(i)
            life["route"].append(middle - start)
            life["life"].append(time.perf_counter_ns() - start)
        ours = {name: figures(spent) for name, spent in life.items()}
        known = router.prefix()
        known.extend(array)
        row = {
            "workers": workers,
            "blocks": depth,
            "select": theirs,
            "route_and_book": ours["route"],
            "route_to_release": ours["life"],
            "route_list": percentiles_us(lambda _, t=tokens: router.route(t), repeats),
            "route_keyed": percentiles_us(lambda _, a=array: keyed.route(a), repeats),
            "route_known_prefix": percentiles_us(lambda _, k=known: router.route(k), repeats),
            "ratio_p50": round(theirs["p50_us"] / ours["route"]["p50_us"], 1),
        }
        rows.append(row)
        print(json.dumps(rows[-1]), flush=True)
    service.shutdown()
    return rows


def feed_rows(frames: int) -> list[dict[str, Any]]:
    """Blocks per processor second from vLLM's frames: decode, hash, apply."""
    import msgspec

    import wardrop
    from wardrop.engines import EngineFeed

    rows, rng = [], random.Random(3)
    for mode in ("xxh3", "keyed"):
        for blocks in (1, 64):
            payloads, names = [], 1
            for _ in range(frames):
                stored = {
                    "type": "BlockStored",
                    "block_hashes": [rng.getrandbits(64) for _ in range(blocks)],
                    "parent_block_hash": None,
                    "token_ids": [rng.randrange(32000) for _ in range(blocks * BLOCK)],
                    "block_size": BLOCK,
                    "lora_id": None,
                    "medium": "GPU",
                    "extra_keys": [None] * blocks,
                }
                payloads.append(msgspec.msgpack.encode([float(names), [stored], 0]))
                names += blocks
            router, feed = wardrop.Router(BLOCK, "dynamo", hash=mode), EngineFeed(BLOCK)
            router.add_worker(0)
            start = time.process_time_ns()
            for sequence, payload in enumerate(payloads):
                feed.apply(router, 0, sequence, payload)
            spent_ns = time.process_time_ns() - start
            held = router.snapshot()["workers"][0]["held_blocks"][0]
            assert held == frames * blocks, "every block must be held"
            rate = round(frames * blocks / spent_ns * 1e9)
            rows.append({"hash": mode, "blocks_per_frame": blocks, "blocks_per_cpu_s": rate})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def hash_rows(repeats: int) -> list[dict[str, Any]]:
    """Block hashes of 16,384 tokens, per form of the tokens."""
    from dynamo.llm import compute_block_hash_for_seq

    import wardrop

    tokens = [random.Random(1).randrange(32000) for _ in range(16384)]
    forms = {"list": tokens, "numpy uint32": np.array(tokens, dtype=np.uint32)}
    rows = []
    for name, form in forms.items():
        assert wardrop.block_hashes(form, BLOCK) == compute_block_hash_for_seq(tokens, BLOCK)
        theirs = percentiles_us(lambda _, f=form: compute_block_hash_for_seq(f, BLOCK), repeats)
        ours = percentiles_us(lambda _, f=form: wardrop.block_hashes(f, BLOCK), repeats)
        row = {"form": name, "tokens": len(tokens), "dynamo": theirs, "wardrop": ours}
        rows.append({**row, "ratio_p50": round(theirs["p50_us"] / ours["p50_us"], 1)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "commit": commit,
    }


def main() -> None:
    """Run every part and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/core.json"))
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--background-blocks", type=int, default=200_000)
    arguments = parser.parse_args()
    os.environ["DYN_LOG"] = "error"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    result = {
        "machine": machine(),
        "index": index_rows(arguments.repeats, arguments.background_blocks),
        "selection": asyncio.run(selection_rows(arguments.repeats)),
        "hashes": hash_rows(arguments.repeats),
        "feeds": feed_rows(arguments.repeats),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
