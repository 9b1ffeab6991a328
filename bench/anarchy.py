"""The live price of anarchy on real Dynamo: does it rank routers as their latencies do?

    python -m bench.anarchy [--seeds 0 1 2] [--rates 2 5] [--quick] [--out FILE]

Every arm is a real Dynamo with new mock workers behind `wardrop dynamo`. Two arms run with
`--observe`: Dynamo chooses every worker, and Wardrop only measures. All arms of a seed and a rate
get the same requests in an open loop. The live index comes from the gateway's metrics after the
last answer, and once more from the records. The latencies are those that the client saw.

The index of an arm rests on the curves that this arm learned, so its rank does not follow from the
definition. The curves learn from 48 short requests before the run, and the index counts them too:
they are about 1 % of the E2E and 6 % of the TTFT that a run pays. Finished runs are kept in FILE
and are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from bench.machine import machine
from bench.rounds import rotated
from numpy.typing import NDArray
from scipy.stats import kendalltau

from wardrop.demo.arms import Arm, running
from wardrop.demo.drive import Driven, Row, drive
from wardrop.demo.plan import MODEL, Options, make_plan
from wardrop.dynamo import namespace
from wardrop.replay.recorded import Price, price_of_records
from wardrop.timing.b200 import write_table
from wardrop.workload import completion_body

WORKERS = 4
RATES = (2.0, 5.0)
"""Requests/s for each worker: below the knee of round robin, and at it."""
SECONDS, QUICK_SECONDS = 40.0, 20.0
WINDOW_S = 5.0
"""Length of a window of the index: ten of them cover a run."""
TIMEOUT_S = 60.0
LEARN_REQUESTS = 48
"""Short lone requests before a run: the curves learn prefill from passes without decode."""
LATENCIES = ("ttft", "e2e")
RESULT = Path("bench/results/anarchy_live.json")


@dataclass(frozen=True)
class Router:
    """A router under test: the frontend behind the gateway, and whether Wardrop only observes."""

    label: str
    frontend_mode: str
    observes: bool


ROUTERS = (
    Router("Dynamo, round robin", "round-robin", observes=True),
    Router("Dynamo, KV router", "kv", observes=True),
    Router("Wardrop", "kv", observes=False),
)


@dataclass(frozen=True)
class Run:
    """One arm after its run. A mean is over all answered requests.

    Attributes:
        router: label of the router.
        seed, rate: seed of the requests, and requests/s for each worker.
        requests: answered requests.
        paid_ms: mean latency that the client saw, by latency.
        index: live index of the gateway, by latency.
        interval: its 95 % interval over windows; both ends are None with fewer than 4 windows.
        from_records: the same index, computed from the records.
        indexed: requests behind the live index.
        curve_error: mean relative error of the learned curves, by stage.
        cpu_s: CPU time of the index.
        router_s: time from the first request to the last answer.
        dynamo: Dynamo's version.
    """

    router: str
    seed: int
    rate: float
    requests: int
    paid_ms: dict[str, float]
    index: dict[str, float]
    interval: dict[str, tuple[float | None, float | None]]
    from_records: dict[str, float]
    indexed: int
    curve_error: dict[str, float]
    cpu_s: float
    router_s: float
    dynamo: str


def lessons(seed: int) -> list[Row]:
    """Prompts of several lengths without a shared block, and an answer of two tokens."""
    rng = np.random.default_rng(seed)
    found: list[Row] = []
    for at in range(LEARN_REQUESTS):
        prompt = rng.integers(300, 8_000, size=128 * (1 + at % 16)).tolist()
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
        found.append((0.0, None, json.dumps({**body, "stream": True}).encode()))
    return found


def report(url: str) -> dict[str, Any]:
    """The index of the only model, as `GET /v1/status` has it."""
    with urlopen(f"{url}/v1/status", timeout=10) as answer:
        [model] = json.load(answer)["models"]
    return model["price_of_anarchy"]


def settled(url: str) -> dict[str, Any]:
    """The index once no further window ends: two window lengths after the last one that did.

    Raises:
        RuntimeError: Windows still end long after the last answer.
    """
    begun_s = time.monotonic()
    found, since_s = report(url), begun_s
    while time.monotonic() - since_s < 2 * WINDOW_S:
        if time.monotonic() - begun_s > TIMEOUT_S:
            raise RuntimeError("got windows without an end, expected none after the last answer")
        time.sleep(0.2)
        now = report(url)
        if now["windows"] != found["windows"]:
            since_s = time.monotonic()
        found = now
    return found


def paid_ms(driven: Driven) -> dict[str, NDArray[np.float64]]:
    """Latencies of all requests, by latency.

    Raises:
        RuntimeError: Some request has no complete answer.
    """
    columns = driven.columns
    if set(columns["outcome"]) != {"ok"}:
        raise RuntimeError(
            f"got requests without an answer, expected none: {driven.first_error}; lower --rates"
        )
    sent, first, end = (
        np.array(columns[name], dtype=np.float64) for name in ("sent_s", "first_token_s", "end_s")
    )
    return {"ttft": 1e3 * (first - sent), "e2e": 1e3 * (end - sent)}


def measure(router: Router, seed: int, rate: float, seconds: float, table: Path) -> Run:
    """One arm with new workers."""
    options = Options(workers=WORKERS, seconds=seconds, rate=rate * WORKERS, seed=seed)
    plan = make_plan(options, table)
    rows: list[Row] = [
        (turn.time_s, turn.follows, completion_body(MODEL, turn)) for turn in plan.turns
    ]
    arm = Arm("arm", router.label, router.frontend_mode, gateway=True)
    with tempfile.TemporaryDirectory(prefix="wardrop-anarchy-") as folder:
        flags = ["--records", folder, "--control-bound-window-s", f"{WINDOW_S:g}"]
        flags += ["--observe"] if router.observes else []
        with running(arm, plan.spec, tuple(flags)) as stack:
            url = f"{stack.url}/v1/completions"
            learned = drive(
                url,
                lessons(seed),
                router_pids=stack.router_pids,
                duration_s=TIMEOUT_S,
                timeout_s=TIMEOUT_S,
                concurrency=1,
            )
            paid_ms(learned)
            driven = drive(
                url,
                rows,
                router_pids=stack.router_pids,
                duration_s=2 * seconds + TIMEOUT_S,
                timeout_s=TIMEOUT_S,
            )
            live = settled(f"http://127.0.0.1:{stack.admin_port}")
        found = {name: live[name] for name in LATENCIES}
        if None in found.values():
            raise RuntimeError(
                f"{router.label}: got no index, because of {live['missing']} "
                f"({live['detail'] or 'no detail'}); expected one: give the run more time"
            )
        recorded = price_of_records(folder)
    prices: dict[str, Price | None] = {"ttft": recorded.ttft, "e2e": recorded.e2e}
    return Run(
        router=router.label,
        seed=seed,
        rate=rate,
        requests=len(rows),
        paid_ms={name: float(paid.mean()) for name, paid in paid_ms(driven).items()},
        index={name: figure["value"] for name, figure in found.items()},
        interval={name: (figure["low"], figure["high"]) for name, figure in found.items()},
        from_records={name: price.value for name, price in prices.items() if price is not None},
        indexed=found["e2e"]["requests"],
        curve_error={name: live["curves"][f"{name}_error"] for name in ("prefill", "step")},
        cpu_s=live["cpu_s"],
        router_s=float(driven.columns["elapsed_s"]),
        dynamo=stack.version,
    )


def ranks(runs: list[Run]) -> list[dict[str, Any]]:
    """For each seed, rate and latency: both orders, and Kendall's τ between index and latency."""
    found: list[dict[str, Any]] = []
    for seed, rate in dict.fromkeys((run.seed, run.rate) for run in runs):
        here = [run for run in runs if (run.seed, run.rate) == (seed, rate)]
        if len(here) < 2:
            continue
        for name in LATENCIES:
            by_paid = sorted(here, key=lambda run: run.paid_ms[name])
            by_index = sorted(here, key=lambda run: run.index[name])
            tau = kendalltau(
                [run.paid_ms[name] for run in here], [run.index[name] for run in here]
            ).statistic
            found.append(
                {
                    "seed": seed,
                    "rate": rate,
                    "latency": name,
                    "tau": float(tau),
                    "by_latency": [run.router for run in by_paid],
                    "by_index": [run.router for run in by_index],
                }
            )
    return found


def table(runs: list[Run]) -> str:
    """The runs as Markdown."""
    lines = [
        "| requests/s per worker | seed | router | mean TTFT, ms | index of TTFT | mean E2E, ms | "
        "index of E2E | from records |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in sorted(runs, key=lambda run: (run.rate, run.seed, run.router)):
        cells = [f"{run.rate:g}", str(run.seed), run.router]
        for name in LATENCIES:
            cells += [f"{run.paid_ms[name]:.0f}", f"{run.index[name]:.2f}"]
        cells.append(", ".join(f"{run.from_records[name]:.2f}" for name in LATENCIES))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kept(path: Path) -> list[Run]:
    """Runs of an earlier call."""
    if not path.is_file():
        return []
    return [Run(**row) for row in json.loads(path.read_text())["runs"]]


def main() -> None:
    """Run the arms that are missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--quick", action="store_true", help="one rate, half the time")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    seconds = QUICK_SECONDS if options.quick else SECONDS
    rates = RATES[-1:] if options.quick else options.rates
    had_s = json.loads(options.out.read_text())["seconds"] if options.out.is_file() else seconds
    if had_s != seconds:
        parser.error(f"--out: got {options.out} with runs of {had_s:g} s, expected {seconds:g} s")
    namespace.enter()
    runs = kept(options.out)
    done = {(run.router, run.seed, run.rate) for run in runs}
    with tempfile.TemporaryDirectory() as folder:
        timing = write_table(Path(folder) / "b200.npz")
        for seed in options.seeds:
            for rate in rates:
                for router in rotated(ROUTERS, seed):
                    if (router.label, seed, rate) in done:
                        continue
                    runs.append(measure(router, seed, rate, seconds, timing))
                    result = {
                        "machine": machine(),
                        "seconds": seconds,
                        "workers": WORKERS,
                        "window_s": WINDOW_S,
                        "ranks": ranks(runs),
                        "runs": [asdict(run) for run in runs],
                    }
                    options.out.write_text(json.dumps(result, indent=1) + "\n")
                    print(table(runs[-1:]).splitlines()[-1], flush=True)
    print(table(runs))
    for rank in ranks(runs):
        print(f"{rank['rate']:g}/s, seed {rank['seed']}, {rank['latency']}: τ {rank['tau']:+.2f}")


if __name__ == "__main__":
    main()
