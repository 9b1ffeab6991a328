"""The simulator against the live stack: real Dynamo, mock workers, and the same requests.

`python bench/replay/against_live.py [--workers 4] [--rate 2,5] [--seconds 30] [--json OUT]`

Each arm of the demo (Dynamo's round robin, its KV router, Wardrop) starts with empty caches in a
network namespace of its own. The demo's conversations drive it in real time. Then the same turns go
through the simulator under `round_robin`, `dynamo` and Wardrop's policy, with the same think times,
engine arguments and timing table. docs/reports/simulator-validation.md explains the
differences.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardrop.demo.arms import DYNAMO_KV, ROUND_ROBIN, WARDROP, Arm, running
from wardrop.demo.drive import Row, drive
from wardrop.demo.plan import MODEL, Options, Plan, make_plan
from wardrop.dynamo.namespace import enter_or_reexec
from wardrop.replay import Engine, Fleet, Result, Workload, load_timing, simulate
from wardrop.replay.workload import NO_PREDECESSOR, from_lists
from wardrop.timing import write_table
from wardrop.workload import Turn, completion_body

TIMEOUT_S = 120.0
EVENT_AGE_MS = 1.0
"""Age of Dynamo's KV events on arrival, as measured on its event plane."""
JITTER_MS = 2.0
"""No two live runs send at the same microsecond: the driver is this late at its 99th percentile."""


@dataclass(frozen=True)
class Figures:
    """Figures of one run, live or simulated.

    Attributes:
        requests: number of complete answers.
        failed: number of incomplete answers.
        ttft_mean_ms, ttft_p50_ms, ttft_p95_ms, ttft_p99_ms: time from sending to the first token.
        itl_mean_ms: mean over all gaps between tokens.
        cached_share: share of prompt tokens in caches, as the engines count.
        output_tokens_per_s: rate from the first request to the end of the last answer.
        late_p99_ms: lateness of the load driver; 0 when simulated.
    """

    requests: int
    failed: int
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    ttft_p99_ms: float
    itl_mean_ms: float
    cached_share: float
    output_tokens_per_s: float
    late_p99_ms: float


def workload_of(turns: Sequence[Turn], block_size: int) -> Workload:
    """The demo's turns for the simulator: an id stands for a block and everything before."""
    names: dict[tuple[int, bytes], int] = {}
    ids: list[int] = []
    counts: list[int] = []
    for turn in turns:
        raw, before = turn.tokens.tobytes(), -1
        blocks = -(-len(turn.tokens) // block_size)
        for block in range(blocks):
            content = raw[4 * block * block_size : 4 * (block + 1) * block_size]
            before = names.setdefault((before, content), len(names))
            ids.append(before)
        counts.append(blocks)
    follows = np.asarray([-1 if turn.follows is None else turn.follows for turn in turns])
    times_ms = np.asarray([turn.time_s * 1e3 for turn in turns])
    # Turns are grouped by conversation; the simulator needs first turns in order of arrival.
    roots = [i for i in np.argsort(times_ms, kind="stable") if follows[i] < 0]
    children: dict[int, list[int]] = {}
    for i, parent in enumerate(follows.tolist()):
        if parent >= 0:
            children.setdefault(parent, []).append(i)
    order: list[int] = []
    stack = [int(i) for i in reversed(roots)]
    while stack:
        at = stack.pop()
        order.append(at)
        stack.extend(reversed(children.get(at, [])))
    place = {old: new for new, old in enumerate(order)}
    starts = np.concatenate(([0], np.cumsum(counts)))
    flat = np.asarray(ids, dtype=np.int64)
    return from_lists(
        "demo",
        times_ms[order],
        np.asarray([len(turns[i].tokens) for i in order]),
        np.asarray([turns[i].output_tokens for i in order]),
        np.concatenate([flat[starts[i] : starts[i + 1]] for i in order]),
        np.asarray([counts[i] for i in order]),
        block_size,
        np.asarray([place[int(follows[i])] if follows[i] >= 0 else -1 for i in order]),
        np.asarray([times_ms[i] if follows[i] >= 0 else 0.0 for i in order]),
    )


def live(arm: Arm, plan: Plan, policy: str) -> Figures:
    """Drive one arm of the real stack."""
    rows: list[Row] = [
        (turn.time_s, turn.follows, completion_body(MODEL, turn)) for turn in plan.turns
    ]
    flags = ("--policy", policy, "--no-queue") if arm.gateway else ()
    with running(arm, plan.spec, flags) as stack:
        driven = drive(
            f"{stack.url}/v1/completions",
            rows,
            router_pids=stack.router_pids,
            duration_s=4 * plan.seconds + TIMEOUT_S,
            timeout_s=TIMEOUT_S,
        )
    columns = driven.columns
    ok = np.asarray([outcome == "ok" for outcome in columns["outcome"]])

    def column(name: str) -> NDArray[np.float64]:
        return np.asarray(columns[name], dtype=np.float64)[ok]

    ttft_ms = 1e3 * (column("first_token_s") - column("sent_s"))
    tokens = column("completion_tokens")
    gaps = np.maximum(tokens - 1, 0)
    decode_ms = 1e3 * (column("end_s") - column("first_token_s"))
    return _figures(
        ttft_ms,
        float(decode_ms[gaps > 0].sum() / gaps.sum()),
        float(np.nansum(column("cached_tokens")) / column("prompt_tokens").sum()),
        float(tokens.sum()) / float(column("end_s").max() - column("sent_s").min()),
        failed=int((~ok).sum()),
        late_p99_ms=1e3 * float(columns["lateness_p99_s"] or 0.0),
    )


def simulated(
    workload: Workload, plan: Plan, table: Path, policy: str, repeats: int
) -> list[Figures]:
    """Simulate the same requests, `repeats` times.

    Each repetition has other ties and moves departures by up to `JITTER_MS`, as between two live
    runs. Turns wait for answers, so a small shift may change an order, a worker and a cache.
    """
    spec = plan.spec
    timing = load_timing(table)
    engine = Engine(block_size=spec.block_size, num_blocks=spec.blocks, timing=timing)
    fleet = Fleet(
        workers=spec.workers, engine=engine, feed_delay_ms=EVENT_AGE_MS, metrics=policy != "dynamo"
    )
    found: list[Figures] = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        roots = workload.after == NO_PREDECESSOR
        arrival = workload.arrival_ms + rng.random(len(workload)) * JITTER_MS
        arrival[roots] = np.maximum.accumulate(arrival[roots])
        think = np.where(roots, 0.0, workload.think_ms + rng.random(len(workload)) * JITTER_MS)
        moved = replace(workload, arrival_ms=arrival, think_ms=think)
        result: Result = simulate(moved, fleet, policy, seed=seed)
        done = result.complete
        figures = result.summary()
        found.append(
            _figures(
                result.ttft_ms[done],
                figures["itl_mean_ms"],
                figures["reuse"],
                figures["output_tokens_per_s"],
                failed=int((~done).sum()),
                late_p99_ms=0.0,
            )
        )
    return found


def _figures(
    ttft_ms: NDArray[np.float64],
    itl_mean_ms: float,
    cached_share: float,
    output_tokens_per_s: float,
    *,
    failed: int,
    late_p99_ms: float,
) -> Figures:
    p50, p95, p99 = np.percentile(ttft_ms, (50, 95, 99)).tolist()
    return Figures(
        int(ttft_ms.size),
        failed,
        float(ttft_ms.mean()),
        p50,
        p95,
        p99,
        itl_mean_ms,
        cached_share,
        output_tokens_per_s,
        late_p99_ms,
    )


@dataclass(frozen=True)
class Pair:
    """One arm: the live figures, and the figures of every simulated repetition."""

    live: Figures
    simulated: list[Figures]

    def spread(self, name: str) -> tuple[float, float, float, float]:
        """A figure: live, then mean, smallest and largest of the simulations."""
        values = [getattr(figures, name) for figures in self.simulated]
        return getattr(self.live, name), float(np.mean(values)), min(values), max(values)


def compare(
    workers: int, rate: float, seconds: float, policy: str, *, seed: int = 0, repeats: int = 20
) -> dict[str, Pair]:
    """All arms, live and simulated, at one rate (requests/s and worker)."""
    with tempfile.TemporaryDirectory(prefix="wardrop-live-") as folder:
        table = write_table(Path(folder) / "table.npz")
        options = Options(workers=workers, rate=rate * workers, seconds=seconds, seed=seed)
        plan = make_plan(options, table)
        workload = workload_of(plan.turns, plan.spec.block_size)
        pairs = ((ROUND_ROBIN, "round_robin"), (DYNAMO_KV, "dynamo"), (WARDROP, policy))
        return {
            arm.key: Pair(live(arm, plan, policy), simulated(workload, plan, table, name, repeats))
            for arm, name in pairs
        }


NAMES = (
    ("ttft_mean_ms", "TTFT mean ms"),
    ("ttft_p50_ms", "TTFT p50 ms"),
    ("ttft_p95_ms", "TTFT p95 ms"),
    ("ttft_p99_ms", "TTFT p99 ms"),
    ("itl_mean_ms", "ITL mean ms"),
    ("cached_share", "cached share"),
    ("output_tokens_per_s", "tokens/s"),
)


def show(found: dict[str, Pair]) -> None:
    """Print a comparison: live, simulated mean and range, difference of the means."""
    for key, pair in found.items():
        one = pair.live
        print(
            f"\n{key}: {one.requests} requests, {one.failed} failed, driver up to "
            f"{one.late_p99_ms:.1f} ms late (p99)"
        )
        for name, label in NAMES:
            live_value, mean, low, high = pair.spread(name)
            print(
                f"  {label:14s} {live_value:10.3f} {mean:10.3f}  [{low:10.3f}, {high:10.3f}]"
                f"  {100 * (mean / live_value - 1):+6.1f} %"
            )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rate", default="2,5", help="requests/s and worker, with commas between")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--policy", default="toll", help="of the Wardrop arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    enter_or_reexec()
    stored: dict[str, Any] = {}
    for rate in (float(text) for text in given.rate.split(",")):
        found = compare(given.workers, rate, given.seconds, given.policy, seed=given.seed)
        print(f"\n== {given.workers} workers, {rate:g} requests/s each")
        show(found)
        stored[f"{rate:g}"] = {key: asdict(pair) for key, pair in found.items()}
    if given.json:
        given.json.write_text(json.dumps(stored, indent=1))


if __name__ == "__main__":
    main()
