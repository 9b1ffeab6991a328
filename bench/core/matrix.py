"""The core's index in Rust beside Dynamo's own crate, cell by cell: `python -m bench.core.matrix`.

Each cell is one process of `bench/core/peer` (a cargo workspace of its own): workers × depth of the
prompts × pattern of their holders over 10⁵ blocks of background, and one cell's growth to 3 · 10⁷
blocks. Writes `bench/results/core_matrix.json` as it goes and takes up where it was stopped.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.machine import machine

PEER = Path(__file__).parent / "peer"
PATTERNS = ("one", "all", "zipf", "miss", "diverge", "holes")


def cells(quick: bool) -> Iterator[tuple[int, int, str, int]]:
    """(workers, depth, pattern, blocks)."""
    for blocks in (
        (100_000, 1_000_000, 5_000_000) if quick else (10**5, 10**6, 5 * 10**6, 3 * 10**7)
    ):
        yield 64, 1024, "one", blocks
    yield 64, 1024, "holes", 5_000_000
    yield 64, 1024, "diverge", 5_000_000
    for workers in (64, 4096) if quick else (8, 64, 512, 4096):
        for depth in (128, 1024) if quick else (16, 128, 1024, 8192):
            for pattern in PATTERNS:
                yield workers, depth, pattern, 100_000


def row(cell: dict[str, Any]) -> str:
    """One line of the table, microseconds."""

    def us(arm: str, what: str, of: str = "p50") -> str:
        figure = cell.get(arm, {}).get(what, {}).get(of)
        return "–" if figure is None else f"{figure / 1000:.2f}"

    ours = cell["wardrop"]
    head = f"| {cell['workers']} | {cell['depth']} | {cell['pattern']} | {cell['blocks']:.0e} "
    times = (
        f"| {us('wardrop', 'route')} / {us('wardrop', 'route', 'p99')} "
        f"| {us('wardrop', 'route_sequence')} | {us('wardrop', 'find')} "
        f"| {us('radix_tree', 'find')} | {us('concurrent_tree', 'find')} "
        f"| {us('wardrop', 'route_cold')} | {us('radix_tree', 'find_cold')} "
        f"| {us('wardrop', 'during_writes')} / {us('wardrop', 'during_writes', 'p99')} "
    )
    theirs = cell["radix_tree"]
    bytes_each = f"| {ours['bytes_per_holding']:.1f} / {theirs['bytes_per_holding']:.1f} "
    applied = f"| {ours['apply_ns_per_block']:.0f} / {theirs['apply_ns_per_block']:.0f} |"
    return head + times + bytes_each + applied


HEAD = (
    "| W | D | held | blocks | decision p50 / p99 | with sequence hashes | our lookup "
    "| `RadixTree` | concurrent tree | decision cold | `RadixTree` cold "
    "| decision beside writes p50 / p99 | bytes per holding, ours / theirs "
    "| apply CPU ns per block, ours / theirs |\n" + "|---" * 14 + "|"
)


def table(results: list[dict[str, Any]]) -> str:
    """Every measured cell."""
    return "\n".join([HEAD, *(row(cell) for cell in results if "wardrop" in cell)])


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/core_matrix.json"))
    parser.add_argument("--quick", action="store_true", help="a part of the cells")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no cell after these")
    arguments = parser.parse_args()
    stored = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results: list[dict[str, Any]] = stored.get("cells", [])
    if arguments.table:
        print(table(results))
        return
    build = ["cargo", "build", "--release", "--locked", "--message-format=json"]
    built = subprocess.run(build, cwd=PEER, check=True, capture_output=True, text=True).stdout
    artifacts = (json.loads(line) for line in built.splitlines())
    program = next(path for line in artifacts if (path := line.get("executable")))
    done = {(c["workers"], c["depth"], c["pattern"], c["blocks"]) for c in results}
    until = time.monotonic() + 60 * arguments.minutes
    for cell in cells(arguments.quick):
        if cell in done or time.monotonic() > until:
            continue
        command = [program, *map(str, cell)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        figures = json.loads(run)
        done.add(cell)
        if "skipped" in figures:
            continue
        results.append({**figures, "load": machine()["load"]})
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine(), "cells": results}) + "\n")
        print(row(figures), flush=True)


if __name__ == "__main__":
    main()
