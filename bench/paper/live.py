"""The smallest experiment on the live stack: real Dynamo with mock workers, 1P/2D, closed loop."""

from __future__ import annotations

import json
import re
import sys
from typing import Any
from urllib.request import urlopen

import numpy as np
from bench.paper.drawing import axes, save
from bench.paper.settings import SHARED, TABLES, write

from wardrop.demo.arms import DYNAMO_KV, ROUND_ROBIN, WARDROP, running
from wardrop.demo.drive import Row, drive
from wardrop.dynamo import namespace
from wardrop.dynamo.embedded import FleetSpec, split_fleet

IN_FLIGHT = (8, 64)
OUTPUT_TOKENS = 32
ARMS = {
    "Dynamo, round robin": (ROUND_ROBIN, ()),
    "Dynamo, KV router": (DYNAMO_KV, ()),
    "Wardrop, paper": (WARDROP, ("--policy", "paper", "--no-queue")),
    "Wardrop, toll": (WARDROP, ("--policy", "toll", "--no-queue")),
}
MODEL = "mock-70b"


def rows(count: int, seed: int) -> list[Row]:
    """Five templates of 128 tokens as token prompts."""
    rng = np.random.default_rng(seed)
    templates = rng.integers(300, 4_000, size=(5, 128)).tolist()
    found: list[Row] = []
    for which in rng.integers(5, size=count):
        body = {
            "model": MODEL,
            "prompt": templates[which],
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        found.append((0.0, None, json.dumps(body).encode()))
    return found


def gauges(url: str) -> dict[str, float]:
    """The gateway's gauges of the price of anarchy, by pool."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith(("wardrop_price_of_anarchy", "wardrop_decision_loss")):
            name, _, value = line.rpartition(" ")
            labels = re.findall(r'(\w+)="([^"]*)"', name)
            kept = [text for label, text in labels if label != "model"]
            found[".".join([name.partition("{")[0].removeprefix("wardrop_"), *kept])] = float(value)
    return found


def run(seconds: float) -> dict[str, Any]:
    """Every arm with new workers; each number of requests in flight lasts `seconds`."""
    namespace.enter()
    found: list[dict[str, Any]] = []
    version = "none"
    table = SHARED.resolve() / "timing" / TABLES["70B"]
    whole = FleetSpec(process_per_worker=False, model_name=MODEL, block_size=64, timing_table=table)
    spec = split_fleet("1x2", whole)
    for label, (arm, flags) in ARMS.items():
        with running(arm, spec, gateway_flags=flags) as stack:
            for flight in IN_FLIGHT:
                driven = drive(
                    f"{stack.url}/v1/completions",
                    rows(6_000, flight),
                    router_pids=stack.router_pids,
                    duration_s=seconds,
                    timeout_s=60.0,
                    concurrency=flight,
                )
                row: dict[str, Any] = {
                    "arm": label,
                    "in_flight": flight,
                    **_figures(driven.columns, seconds, driven.first_error),
                }
                row["first_error"] = driven.first_error
                if arm.gateway:
                    row["gauges"] = gauges(stack.url)
                print({k: v for k, v in row.items() if k != "gauges"}, file=sys.stderr, flush=True)
                found.append(row)
            version = stack.version
    kept = {"dynamo": version, "seconds": seconds, "output_tokens": OUTPUT_TOKENS, "rows": found}
    write("live", kept)
    return kept


def _figures(columns: dict[str, Any], seconds: float, error: str | None) -> dict[str, float]:
    sent = np.asarray(columns["sent_s"], float)
    first = np.asarray([np.nan if x is None else x for x in columns["first_token_s"]], float)
    ttft = first - sent
    done = np.isfinite(ttft)
    if not done.any():
        raise RuntimeError(f"no answer came; the first failure: {error}")
    return {
        "requests": float(done.sum()),
        "ttft_mean_s": float(ttft[done].mean()),
        "ttft_p99_s": float(np.percentile(ttft[done], 99)),
        "requests_per_s": float(done.sum()) / seconds,
    }


def draw(found: dict[str, Any]) -> None:
    """TTFT and throughput of every arm."""
    figure, grid = axes(1, 2, width=4.6, height=2.6)
    arms = list(dict.fromkeys(row["arm"] for row in found["rows"]))
    for i, flight in enumerate(IN_FLIGHT):
        here = [row for row in found["rows"] if row["in_flight"] == flight]
        at = np.arange(len(arms)) + 0.35 * i
        label = f"{flight} in flight"
        grid[0, 0].barh(at, [1e3 * row["ttft_p99_s"] for row in here], 0.33, label=label)
        grid[0, 1].barh(at, [row["requests_per_s"] for row in here], 0.33, label=label)
    grid[0, 0].set(xlabel="TTFT p99, ms")
    grid[0, 1].set(xlabel="requests/s")
    grid[0, 0].set_yticks(np.arange(len(arms)) + 0.17, arms, fontsize=8)
    grid[0, 1].set_yticks([])
    for axis in grid[0]:
        axis.invert_yaxis()
    grid[0, 1].legend(fontsize=7, loc="center")
    save(figure, "live")
