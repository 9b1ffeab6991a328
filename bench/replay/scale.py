"""Simulated requests per second of one core, over length and workers, against Dynamo's.

`python bench/replay/scale.py [--dynamo .venv-142/bin/python] [--json OUT] [--full]`

The load is that of the paper (five templates of 128 tokens, answers of 32), in a closed loop with 8
requests in flight per worker. All times are CPU times, which a busy machine does not disturb: of
the one thread that simulates here, and of Dynamo's process without its start. Both run on the
same machine in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from wardrop.replay import Fleet, simulate
from wardrop.replay.generate import generate

PER_WORKER = 8


def cell(requests: int, workers: int, policy: str) -> dict[str, Any]:
    """One simulation: requests per CPU second, and the peak memory of the process so far."""
    workload = generate(f"paper(requests={requests},output=32)")
    _ = workload.native
    fleet = Fleet(workers=workers, concurrency=workers * PER_WORKER)
    start = time.process_time()
    result = simulate(workload, fleet, policy)
    cpu_s = time.process_time() - start
    assert bool(result.complete.all()), "every request must complete before its speed counts"
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "policy": policy,
        "requests": requests,
        "workers": workers,
        "cpu_s": cpu_s,
        "requests_per_cpu_s": requests / cpu_s,
        "iterations": result.totals["iterations"],
        "peak_rss_mb": peak_mb,
    }


def _dynamo_once(python: Path, requests: int, workers: int, mode: str) -> tuple[float, float]:
    """Wall seconds of Dynamo's simulation as it reports, and CPU seconds of its whole process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), "-m", "dynamo.replay", "--replay-mode", "offline"]
        command += ["--input-tokens", "128", "--output-tokens", "32"]
        command += ["--request-count", str(requests), "--num-workers", str(workers)]
        command += ["--replay-concurrency", str(workers * PER_WORKER), "--router-mode", mode]
        command += ["--extra-engine-args", '{"block_size":64,"num_gpu_blocks":16384}']
        command += ["--report-json", str(Path(folder, "report.json"))]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = next(line for line in ran.stdout.splitlines() if line.startswith("Wall Time"))
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return float(said.split(":")[1].replace(",", "")) / 1e3, cpu_s


def dynamo(python: Path, requests: int, workers: int, mode: str) -> dict[str, Any]:
    """The same load through Dynamo's replay: prompts of the same length, in a closed loop.

    Two runs, one four times as long: their difference excludes the interpreter's start.
    """
    _, short_s = _dynamo_once(python, requests // 4, workers, mode)
    wall_s, cpu_s = _dynamo_once(python, requests, workers, mode)
    return {
        "policy": f"dynamo.replay {mode}",
        "requests": requests,
        "workers": workers,
        "wall_s": wall_s,
        "requests_per_wall_s": requests / wall_s,
        "requests_per_cpu_s": (requests - requests // 4) / (cpu_s - short_s),
    }


def main() -> None:
    """Run all cells and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dynamo", type=Path, help="python that has ai-dynamo 1.4.2")
    parser.add_argument("--full", action="store_true", help="also 4,096 workers, 1e6 requests")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    plan = [(size, 8, name) for name in ("round_robin", "dynamo") for size in (50_000, 500_000)]
    plan += [(100_000, 64, "dynamo"), (100_000, 512, "dynamo")]
    if given.full:
        plan.append((1_000_000, 4_096, "round_robin"))
    rows = [cell(*arguments) for arguments in plan]
    if given.dynamo:
        rows += [dynamo(given.dynamo, 40_000, 8, mode) for mode in ("round_robin", "kv_router")]
    for row in rows:
        speed = row.get("requests_per_cpu_s", row.get("requests_per_wall_s", 0.0))
        size = f"{row['requests']:>9,} requests {row['workers']:>5,} workers"
        memory = f"  {row['peak_rss_mb']:6.0f} MB" if "peak_rss_mb" in row else ""
        print(f"{row['policy']:26s} {size} {speed:>10,.0f} req/s{memory}")
    if given.json:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
