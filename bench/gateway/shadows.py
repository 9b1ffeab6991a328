"""What shadows cost a busy gateway: the same load with and without them, interleaved, in one run.

    python -m bench.gateway.shadows [--rounds 2] [--seconds 120] [--json OUT]
    python -m bench.gateway.shadows --arms on --loads open --rounds 1 --cpu-share 0.003

Two loads on 4 mock workers with engine time taken out: an open loop at a steady rate, and a closed
loop that takes all the machine gives. Prompts of 256 ids behind 40 shared heads, answers of 8
tokens, streamed. Every arm starts anew in every round, and the order turns. The share of a core is
that of the shadows' thread as the gateway tells it, over the time of the load; everything else is
the gateway's process and the driver's clock. The machine's load average stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import numpy as np
from bench.gateway.phases import MODEL, SPEC

from wardrop.demo.arms import WARDROP, Stack, running
from wardrop.demo.drive import Row, drive
from wardrop.dynamo.namespace import NamespaceRefusedError, enter_or_reexec
from wardrop.workload import Turn, completion_body

SHADOWS = "dynamo;sticky;toll+queue(kappa=30)"
ARMS = {"off": (), "on": ("--shadows", SHADOWS)}
PER_S = 100.0
CONCURRENCY = 32
OUTPUT_TOKENS = 8
_MOST_PER_S = 2_500.0


def rows(seconds: float, per_s: float, paced: bool) -> list[Row]:
    """Prompts of which half is one of 40 heads."""
    rng = np.random.default_rng(11)
    heads = rng.integers(300, 8000, size=(40, 128), dtype=np.uint32)
    made: list[Row] = []
    for number in range(int(seconds * per_s)):
        own = rng.integers(300, 8000, size=128, dtype=np.uint32)
        tokens = np.concatenate([heads[number % 40], own])
        body = completion_body(MODEL, Turn(0, 0.0, None, tokens, OUTPUT_TOKENS), stream=True)
        made.append((number / per_s if paced else 0.0, None, body))
    return made


def page(stack: Stack) -> dict[str, float]:
    """Sums of the shadows' counters, by name and result."""
    with urlopen(f"{stack.url}/metrics", timeout=30) as response:
        text = response.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(wardrop_shadow\w+)\{(.*)\} (\S+)$", text, re.M):
        result = re.search(r'result="(\w+)"', labels)
        if "policy=" not in labels:
            key = name.removeprefix("wardrop_shadow_") + (f"_{result[1]}" if result else "")
            found[key] = found.get(key, 0.0) + float(value)
    return found


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+)", status)
    return int(match[1]) / 1024 if match else 0.0


def measure(stack: Stack, load: list[Row], seconds: float, paced: bool) -> dict[str, float]:
    """One load on a running stack.

    Raises:
        RuntimeError: a request failed, so the figures would mean nothing.
    """
    before = page(stack)
    driven = drive(
        f"{stack.url}/v1/completions",
        load,
        router_pids=stack.router_pids,
        duration_s=seconds,
        timeout_s=60.0,
        concurrency=None if paced else CONCURRENCY,
    )
    after = page(stack)
    columns = driven.columns
    failed = [o for o in columns["outcome"] if o not in ("ok", "unsent")]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed: {driven.first_error}")
    ok = [i for i, outcome in enumerate(columns["outcome"]) if outcome == "ok"]
    latency_ms = [1e3 * (columns["end_s"][i] - columns["sent_s"][i]) for i in ok]
    elapsed_s = columns["elapsed_s"]
    figures = {
        "requests": len(ok),
        "requests_per_s": len(ok) / elapsed_s,
        "latency_p50_ms": float(np.percentile(latency_ms, 50)),
        "latency_p99_ms": float(np.percentile(latency_ms, 99)),
        "gateway_cpu_us": 1e6 * driven.router_cpu_s[1] / len(ok),
        "gateway_rss_mb": rss_mb(stack.router_pids[1]),
        "load_average": os.getloadavg()[0],
    }
    if after:
        grown = {name: after[name] - before.get(name, 0.0) for name in after}
        figures["shadow_core_share"] = grown["cpu_seconds_total"] / elapsed_s
        for reason in ("fed", "dropped", "passed_over"):
            figures[f"shadow_{reason}"] = grown.get(f"requests_total_{reason}", 0.0)
        figures["shadow_ticks"] = after.get("ticks", 0.0)
        figures["shadow_age_s"] = after.get("age_seconds", 0.0)
    return figures


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway.shadows", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--arms", default="off,on")
    parser.add_argument("--loads", default="open,closed")
    parser.add_argument("--cpu-share", type=float, default=0.05)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        enter_or_reexec()
    except NamespaceRefusedError as error:
        print(error, file=sys.stderr)
    seconds = options.seconds
    loads = {
        name: (
            rows(seconds, PER_S if name == "open" else _MOST_PER_S, name == "open"),
            name == "open",
        )
        for name in options.loads.split(",")
    }
    arms = options.arms.split(",")
    if set(loads) - {"open", "closed"} or set(arms) - set(ARMS) or options.rounds < 1:
        parser.error("arms: off, on; loads: open, closed; rounds: at least 1")
    share = ("--shadows-cpu-share", str(options.cpu_share))
    taken: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in loads}
    for number in range(options.rounds):
        order = arms if number % 2 == 0 else list(reversed(arms))
        for arm in order:
            flags = ("--policy", "toll", "--no-queue", "--admin-port", "-1", *ARMS[arm], *share)
            with running(WARDROP, SPEC, gateway_flags=flags) as stack:
                for name, (load, paced) in loads.items():
                    figures = measure(stack, load, seconds, paced)
                    taken[name].setdefault(arm, []).append(figures)
                    print(f"round {number}, {arm}, {name}: {_line(figures)}", flush=True)
    result: dict[str, Any] = {"shadows": SHADOWS, "seconds": seconds, "rounds": taken}
    for name, measured in taken.items():
        for arm, rounds in measured.items():
            middle = {key: median(r[key] for r in rounds) for key in rounds[0]}
            print(f"median, {arm}, {name}: {_line(middle)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _line(figures: dict[str, float]) -> str:
    told = (
        f"{figures['requests_per_s']:.0f} req/s, p50 {figures['latency_p50_ms']:.2f} ms, "
        f"p99 {figures['latency_p99_ms']:.2f} ms, gateway {figures['gateway_cpu_us']:.0f} µs/req "
        f"and {figures['gateway_rss_mb']:.0f} MB, load {figures['load_average']:.1f}"
    )
    if "shadow_core_share" in figures:
        told += (
            f"; shadows {100 * figures['shadow_core_share']:.2f} % of a core, "
            f"{figures['shadow_fed']:.0f} fed, {figures['shadow_dropped']:.0f} dropped, "
            f"{figures['shadow_passed_over']:.0f} passed over, {figures['shadow_ticks']:.0f} ticks,"
            f" {figures['shadow_age_s']:.0f} s old"
        )
    return told


if __name__ == "__main__":
    main()
