"""All Python benchmarks of the core at every size, recorded: `python -m bench.core`.

Runs `pytest bench/core --grid full` and writes `bench/results/core.json`: one row per cell with the
figures of each arm in microseconds, and the ratio of the medians, baseline over Wardrop.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

BASELINES = {"index": "radix_tree", "selection": "select", "hashes": "dynamo"}
OURS = {"index": "route", "selection": "route_and_book", "hashes": "wardrop"}
NOT_IN_KEY = {"part", "arm", "cpu_us", "stored_blocks"}


def figures(entry: dict[str, Any]) -> dict[str, float]:
    """Percentiles of single calls, and processor time per call where the benchmark took it."""
    p50, p99, p999 = np.percentile(entry["stats"]["data"], [50, 99, 99.9]) * 1e6
    found = {"p50_us": float(p50), "p99_us": float(p99), "p99.9_us": float(p999)}
    if "cpu_us" in entry["extra_info"]:
        found["cpu_us"] = entry["extra_info"]["cpu_us"]
    return {name: round(figure, 2) for name, figure in found.items()}


def rows(part: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per cell, the arms side by side."""
    cells: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for entry in entries:
        info = entry["extra_info"]
        if info["part"] == part:
            cell = tuple((name, each) for name, each in info.items() if name not in NOT_IN_KEY)
            cells.setdefault(cell, {})[info["arm"]] = figures(entry)
    made = []
    for cell, arms in cells.items():
        ratio = arms[BASELINES[part]]["p50_us"] / arms[OURS[part]]["p50_us"]
        made.append({**dict(cell), **arms, "ratio_p50": round(ratio, 1)})
    return made


def feed_rows(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks per second of processor time."""
    made = []
    for entry in entries:
        info = dict(entry["extra_info"])
        if info.pop("part") == "feeds":
            stored = info.pop("stored_blocks")
            made.append({**info, "blocks_per_cpu_s": round(stored / entry["stats"]["median"])})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/core.json"))
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--grid", choices=("small", "full"), default="full")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pytest", "bench/core", "--benchmark-save-data"]
        command += ["--grid", arguments.grid, "--rounds", str(arguments.rounds)]
        subprocess.run([*command, f"--benchmark-json={report}"], check=True)
        found = json.loads(report.read_text())
    entries = found["benchmarks"]
    result = {"machine": found["machine_info"]["wardrop"]}
    result |= {part: rows(part, entries) for part in BASELINES}
    result["feeds"] = feed_rows(entries)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
