"""Runs the arms interleaved, then kills and stops a worker under streams, and writes the result.

    python -m bench.frontend [--rounds 4] [--arms round_robin,kv,off,wardrop] [--no-faults]

Each round starts every arm anew, in another order, so that what the machine does meanwhile falls on
all of them. Figures are medians over rounds; extra CPU is the median of the differences to round
robin within a round. Four rounds give each arm each turn once, in about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from bench.frontend.arms import ARMS, OFF, ROUND_ROBIN, Arm, Running, running
from bench.frontend.faults import FAULTS, FAULTY_ARMS, fault
from bench.frontend.text import goals, table
from bench.gateway.phases import SPEC, Load, check_answer, loads, run
from bench.gateway.priority import go_before_others
from bench.machine import command, machine
from bench.rounds import medians, rotated

from wardrop.dynamo.namespace import NamespaceRefusedError, enter_or_reexec

RESULT = Path(__file__).parents[1] / "results" / "frontend.json"
_SECONDS = {"ids_c1": 2.0, "ids_c32_t1": 3.0, "ids_c32_t128": 4.0, "text_c32_t1": 3.0}
_SECONDS |= {"streams_c1": 2.0, "talk_c8": 12.0}
"""Longest time of each phase; a phase that is not listed is left out."""
_AVAILABLE_S = 60.0

Figures = dict[str, dict[str, float]]
"""Phase → figures."""


def main() -> None:
    options = _options()
    try:
        enter_or_reexec()
    except NamespaceRefusedError as error:
        print(error, file=sys.stderr)
    started_s = time.monotonic()
    before = machine()
    warm_up, *phases = loads(options.quick)
    prepared = [warm_up, *(_shortened(load) for load in phases if load.phase.key in _SECONDS)]
    arms = [ARMS[key] for key in options.arms.split(",")]
    rounds: list[dict[str, Figures]] = [
        {arm.key: _measure(arm, prepared, number) for arm in rotated(arms, number)}
        for number in range(options.rounds)
    ]
    faults: dict[str, dict[str, Any]] = {}
    for arm in (arm for arm in arms if arm in FAULTY_ARMS and options.faults):
        faults[arm.key] = {name: fault(arm, sent) for name, sent in FAULTS.items()}
        print(f"{arm.key}: {faults[arm.key]}", file=sys.stderr)
    result = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command("bench.frontend"),
        "machine": {**before, "dynamo": version("ai-dynamo"), "load_after": os.getloadavg()[0]},
        "seconds": time.monotonic() - started_s,
        "rounds": rounds,
        "median": medians(rounds),
        "extra_cpu_us": _extra_cpu(rounds, ROUND_ROBIN.key),
        "extra_over_off_us": _extra_cpu(rounds, OFF.key),
        "faults": faults,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(goals(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.frontend", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--no-faults", dest="faults", action="store_false")
    parser.add_argument("--quick", action="store_true", help="half a second a phase: a smoke test")
    options = parser.parse_args()
    if set(options.arms.split(",")) - set(ARMS) or options.rounds < 1:
        parser.error(f"arms: some of {', '.join(ARMS)}; rounds: at least 1")
    return options


def _shortened(load: Load) -> Load:
    seconds = min(load.phase.seconds, _SECONDS[load.phase.key])
    return replace(load, phase=replace(load.phase, seconds=seconds))


def _measure(arm: Arm, prepared: list[Load], number: int) -> Figures:
    with running(arm, SPEC) as running_arm:
        stack = running_arm.stack
        if arm.decides:
            _await_available(running_arm)
        go_before_others()
        check_answer(stack)
        warm_up, *phases = prepared
        run(stack, warm_up)
        figures = {load.phase.key: run(stack, load) for load in phases}
        figures["memory"] = {"rss_mib": running_arm.memory_mib()}
        figures["machine"] = {"load": os.getloadavg()[0]}
        sent = sum(int(one["requests"]) for one in figures.values() if "requests" in one)
        if arm.decides and (decided := _total(running_arm, "wardrop_decisions_total")) < sent:
            raise RuntimeError(f"of {sent} requests Wardrop decided {decided:.0f}")
    shown = ", ".join(
        f"{key} {one['latency_p50_ms']:.2f} ms {one['requests_per_s']:.0f}/s "
        f"{one['router_cpu_us']:.0f} µs"
        for key, one in figures.items()
        if "requests" in one
    )
    memory = figures["memory"]["rss_mib"]
    print(f"round {number}, {arm.key}: {shown}, {memory:.0f} MiB", file=sys.stderr)
    return figures


def _total(arm: Running, name: str) -> float:
    """Sum of a metric's series."""
    with urlopen(f"{arm.stack.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def _await_available(arm: Running) -> None:
    """Wait until Wardrop may choose every worker.

    Raises:
        RuntimeError: A worker is still missing after a minute.
    """
    deadline_s = time.monotonic() + _AVAILABLE_S
    while _total(arm, "wardrop_worker_available") < SPEC.workers:
        if time.monotonic() > deadline_s:
            raise RuntimeError("not every worker is available")
        time.sleep(0.05)


def _extra_cpu(rounds: list[dict[str, Figures]], base: str) -> dict[str, dict[str, float]]:
    """Median over rounds of the CPU time above that of another arm, µs per request."""
    if base not in rounds[0]:
        return {}
    return {
        arm: {
            phase: median(
                each[arm][phase]["router_cpu_us"] - each[base][phase]["router_cpu_us"]
                for each in rounds
            )
            for phase in figures
            if "router_cpu_us" in figures[phase]
        }
        for arm, figures in rounds[0].items()
        if arm != base
    }


if __name__ == "__main__":
    main()
