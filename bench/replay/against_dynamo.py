"""The simulator against `dynamo.replay`: same trace, same engine arguments, same timing.

`python bench/replay/against_dynamo.py --dynamo .venv-142/bin/python [--trace FILE] [--table FILE]`

Runs Dynamo's replay (1.4.2: later releases moved the module) in an interpreter of its own, with
round robin and with Dynamo's KV router. Runs this simulator with `round_robin` and `dynamo`. Prints
mean, median and tail of both, their ratio, the wall seconds that Dynamo reports, and the CPU
seconds of this simulator. Without a trace, a generated one is used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wardrop.replay import Engine, Fleet, Result, Transfer, Workload, load, load_timing, simulate
from wardrop.replay.generate import generate, mooncake_rows

BANDWIDTH_GBPS = 64.0
KV_BYTES_PER_TOKEN = 131_072


@dataclass(frozen=True)
class Setting:
    """The setting of both simulators.

    Attributes:
        trace: a plain Mooncake file.
        workers: aggregated workers, or (prefill, decode) of a split.
        num_blocks: KV blocks per worker.
        block_size: tokens per KV block.
        table: timing table, or None for the mocker's polynomial.
        speedup: divisor of every gap between arrivals.
        prefill_answers: whether prefill workers keep a prompt until its answer is generated, as
            Dynamo's prefill workers do.
    """

    trace: Path
    workers: int | tuple[int, int] = 8
    num_blocks: int = 16_384
    block_size: int = 64
    table: Path | None = None
    speedup: float = 1.0
    prefill_answers: bool = True


def dynamo(python: Path, setting: Setting, mode: str) -> tuple[dict[str, Any], list[Any], float]:
    """Run Dynamo's replay; returns its report, its rows, and the wall seconds that it reports."""
    engine: dict[str, Any] = {
        "block_size": setting.block_size,
        "num_gpu_blocks": setting.num_blocks,
    }
    if setting.table:
        engine["planner_profile_data"] = str(setting.table.resolve())
    trace_block = load(setting.trace).block_size
    with tempfile.TemporaryDirectory() as folder:
        report, rows = Path(folder, "report.json"), Path(folder, "rows.jsonl")
        command = [str(python), "-m", "dynamo.replay", str(setting.trace.resolve())]
        command += ["--trace-format", "mooncake", "--trace-block-size", str(trace_block)]
        command += ["--replay-mode", "offline", "--router-mode", mode]
        command += ["--arrival-speedup-ratio", str(setting.speedup)]
        command += ["--report-json", str(report), "--report-jsonl", str(rows)]
        if isinstance(setting.workers, tuple):
            link = {
                "kv_transfer_bandwidth": BANDWIDTH_GBPS,
                "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
                # Dynamo's default sends the whole prompt, regardless of the receiver's cache.
                "kv_transfer_timing_mode": "destination_missing",
            }
            for role, count in zip(("prefill", "decode"), setting.workers, strict=True):
                arguments = json.dumps({**engine, **link, "worker_type": role})
                command += [f"--num-{role}-workers", str(count)]
                command += [f"--{role}-engine-args", arguments]
        else:
            command += ["--num-workers", str(setting.workers)]
            command += ["--extra-engine-args", json.dumps(engine)]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if ran.returncode:
            raise RuntimeError(f"dynamo.replay ended with {ran.returncode}: {ran.stderr[-500:]}")
        said = [line for line in ran.stdout.splitlines() if line.startswith("Wall Time")]
        wall_s = float(said[0].split(":")[1].replace(",", "")) / 1e3
        lines = rows.read_text().splitlines()
        return json.loads(report.read_text()), [json.loads(line) for line in lines], wall_s


def ours(workload: Workload, setting: Setting, policy: str, seed: int) -> tuple[Result, float]:
    """Run this simulator; returns the result and the CPU seconds."""
    timing = load_timing(setting.table)
    engine = Engine(
        block_size=setting.block_size,
        num_blocks=setting.num_blocks,
        timing=timing,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
    )
    if isinstance(setting.workers, tuple):
        # Dynamo 1.4.2 does so, real engines do not: see docs/reports/simulator-validation.md.
        engine = replace(engine, prefill_answers=setting.prefill_answers)
        link = Transfer(BANDWIDTH_GBPS * 1e9, 0.0, contention=False)
        fleet = Fleet.split(*setting.workers, engine=engine, transfer=link)
    else:
        fleet = Fleet(workers=setting.workers, engine=engine)
    fleet = replace(fleet, rate=setting.speedup)
    _ = workload.native
    start = time.process_time()
    result = simulate(workload, fleet, policy, seed=seed)
    return result, time.process_time() - start


FIGURES = (
    ("TTFT mean ms", "mean_ttft_ms", "ttft_mean_s", 1e3),
    ("TTFT p50 ms", "median_ttft_ms", "ttft_p50_s", 1e3),
    ("TTFT p99 ms", "p99_ttft_ms", "ttft_p99_s", 1e3),
    ("ITL mean ms", "mean_itl_ms", "itl_mean_ms", 1.0),
    ("ITL p99 ms", "p99_itl_ms", "itl_p99_ms", 1.0),
    ("E2E mean ms", "mean_e2e_latency_ms", "e2e_mean_s", 1e3),
    ("reuse", "first_admission_prefix_cache_reused_ratio", "reuse", 1.0),
    ("output tokens/s", "output_throughput_tok_s", "output_tokens_per_s", 1.0),
)


def identical(rows: Sequence[dict[str, Any]], result: Result) -> float:
    """Share of requests whose TTFT, E2E (to 0.01 ms), reuse and place in time agree in both.

    Requests are matched by arrival, lengths and TTFT: Dynamo's rows carry other ids.
    """

    def key(arrival: float, tokens: int, output: int, ttft: float) -> tuple[float, int, int, float]:
        return round(arrival, 2), tokens, output, round(ttft, 1)

    theirs: dict[tuple[float, int, int, float], list[dict[str, Any]]] = {}
    for row in rows:
        at = key(row["arrival_time_ms"], row["input_length"], row["output_length"], row["ttft_ms"])
        theirs.setdefault(at, []).append(row)
    same = 0
    ttft, e2e = result.ttft_ms, result.e2e_ms
    first = float(np.nanmin(result.arrival_ms))
    for i in range(ttft.size):
        tokens, output = int(result.input_tokens[i]), int(result.output_tokens[i])
        for row in theirs.get(key(result.arrival_ms[i] - first, tokens, output, ttft[i]), []):
            close = abs(row["e2e_latency_ms"] - e2e[i]) < 0.01
            if close and row["reused_input_tokens"] == result.cached_tokens[i]:
                same += 1
                break
    return same / ttft.size


def compare(python: Path, setting: Setting, seeds: int) -> dict[str, Any]:
    """Both simulators under both routers: figures, ratios, seconds, and the share of equal rows."""
    workload = load(setting.trace)
    outcome: dict[str, Any] = {"requests": len(workload)}
    for mode, policy in (("round_robin", "round_robin"), ("kv_router", "dynamo")):
        repeats = seeds if mode == "kv_router" else 1
        reports = [dynamo(python, setting, mode) for _ in range(repeats)]
        runs = [ours(workload, setting, policy, seed) for seed in range(repeats)]
        figures: dict[str, Any] = {}
        for name, their, our, scale in FIGURES:
            a = [report[their] for report, _, _ in reports]
            b = [run.summary()[our] * scale for run, _ in runs]
            figures[name] = {"dynamo": a, "wardrop": b, "ratio": float(np.mean(b) / np.mean(a))}
        outcome[policy] = {
            "figures": figures,
            "identical_rows": identical(reports[0][1], runs[0][0]),
            "dynamo_wall_s": [wall for _, _, wall in reports],
            "wardrop_cpu_s": [wall for _, wall in runs],
        }
    return outcome


def show(outcome: dict[str, Any]) -> None:
    """Print a comparison."""
    count = outcome["requests"]
    for policy in ("round_robin", "dynamo"):
        part = outcome[policy]
        print(f"\n{policy}: {part['identical_rows']:.1%} of rows identical")
        for name, row in part["figures"].items():
            a, b = np.mean(row["dynamo"]), np.mean(row["wardrop"])
            print(f"  {name:16s} {a:12.3f} {b:12.3f}  {100 * (row['ratio'] - 1):+6.2f} %")
        a, b = min(part["dynamo_wall_s"]), min(part["wardrop_cpu_s"])
        print(
            f"  wall s, cpu s    {a:12.2f} {b:12.2f}  {count / a:,.0f} and {count / b:,.0f} req/s"
        )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dynamo", type=Path, required=True, help="python that has ai-dynamo 1.4.2"
    )
    parser.add_argument("--trace", type=Path, help="Mooncake JSONL, plain; generated by default")
    parser.add_argument(
        "--table", type=Path, help="timing table; the mocker's polynomial by default"
    )
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--disagg", help="PREFILLxDECODE instead of --workers")
    parser.add_argument("--num-blocks", type=int, default=16_384)
    parser.add_argument("--speedup", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--first-token",
        action="store_true",
        help="our prefill workers hand over at the first token, as real ones do",
    )
    parser.add_argument("--json", type=Path, help="also write it here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = given.trace
        if trace is None:
            trace = Path(folder, "generated.jsonl")
            text = "prefixes(requests=2500,per_s=14,groups=150,prefix=4096,suffix=1500,output=180)"
            trace.write_text("\n".join(mooncake_rows(generate(text, 7))))
        workers: int | tuple[int, int] = given.workers
        if given.disagg:
            prefill, decode = given.disagg.split("x")
            workers = (int(prefill), int(decode))
        setting = Setting(
            trace,
            workers,
            given.num_blocks,
            table=given.table,
            speedup=given.speedup,
            prefill_answers=not given.first_token,
        )
        outcome = compare(given.dynamo, setting, given.seeds)
    show(outcome)
    if given.json:
        given.json.write_text(json.dumps(outcome, indent=1))


if __name__ == "__main__":
    main()
