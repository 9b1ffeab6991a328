"""Runs all arms, interleaved and several times over, and writes the result beside the table.

    python -m bench.gateway [--rounds 5] [--arms round_robin,dynamo_kv,wardrop,wardrop_frontend]

Each round starts every arm anew, one after the other, so that what the machine does meanwhile falls
on all of them. Figures are medians over rounds. Extra CPU and added latency are differences to
round robin: of the medians, and of the best rounds, which is what is left when the machine was
least busy with other things.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.gateway.phases import (
    PROMPT_TOKENS,
    SPEC,
    TEXT_WORDS,
    Load,
    check_answer,
    check_routed,
    loads,
    run,
)
from bench.gateway.priority import go_before_others
from bench.gateway.text import aims, table
from bench.machine import command
from bench.rounds import medians, rotated

from wardrop.demo.arms import (
    DYNAMO_KV,
    ROUND_ROBIN,
    WARDROP,
    WARDROP_DIRECT,
    WARDROP_FRONTEND,
    Arm,
    running,
)
from wardrop.dynamo.namespace import NamespaceRefusedError, enter_or_reexec

ARMS = {arm.key: arm for arm in (ROUND_ROBIN, DYNAMO_KV, WARDROP, WARDROP_DIRECT, WARDROP_FRONTEND)}
USUAL = tuple(key for key in ARMS if key != WARDROP_FRONTEND.key)
"""Arms that need no native frontend."""
RESULT = Path(__file__).parents[1] / "results" / "gateway.json"

Round = dict[str, dict[str, dict[str, float]]]
"""Arm → phase → figures."""


def main() -> None:
    options = _options()
    try:
        enter_or_reexec()
    except NamespaceRefusedError as error:
        print(error, file=sys.stderr)
    prepared = loads(options.quick)
    arms = [ARMS[key] for key in options.arms.split(",")]
    # Another arm first in each round: none always gets the warmest or the quietest machine.
    rounds: list[Round] = [
        {
            arm.key: _measure(arm, prepared, number, options.before_others)
            for arm in rotated(arms, number)
        }
        for number in range(options.rounds)
    ]
    result = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command("bench.gateway"),
        "machine": _machine(),
        "workload": f"prompts of {PROMPT_TOKENS} token ids, or of {TEXT_WORDS} words as chat text,"
        f" that share nothing; {SPEC.workers} mock workers"
        " at 100 × speed, closed loop, driver on the same machine",
        "rounds": rounds,
        "median": medians(rounds),
        "best": _best(rounds),
        "over_round_robin": _over(medians(rounds)),
        "best_over_round_robin": _over(_best(rounds)),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(aims(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", default=",".join(USUAL))
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--quick", action="store_true", help="half a second a phase: a smoke test")
    parser.add_argument(
        "--before-others",
        action="store_true",
        help="root, on a machine with other work: schedule everything measured before the rest",
    )
    options = parser.parse_args()
    unknown = set(options.arms.split(",")) - set(ARMS)
    if unknown or options.rounds < 1:
        parser.error(f"arms: {', '.join(ARMS)}; rounds: at least 1")
    return options


def _measure(
    arm: Arm, prepared: list[Load], number: int, before_others: bool
) -> dict[str, dict[str, float]]:
    with running(arm, SPEC) as stack:
        if before_others:
            go_before_others()
        check_answer(stack)
        warm_up, *phases = prepared
        run(stack, warm_up)
        figures = {load.phase.key: run(stack, load) for load in phases}
        sent = sum(int(f["requests"]) for f in figures.values())
        said = check_routed(stack, arm, sent)
    shown = ", ".join(
        f"{key} {f['latency_p50_ms']:.2f} ms {f['requests_per_s']:.0f}/s "
        f"{f['router_cpu_us']:.0f} µs"
        for key, f in figures.items()
    )
    print(f"round {number}, {arm.key}: {shown} {said or ''}", file=sys.stderr)
    return figures


def _best(rounds: list[Round]) -> Round:
    """The best round of each figure: least time, most requests/s."""
    return {
        arm: {
            phase: {
                name: (max if name == "requests_per_s" else min)(
                    r[arm][phase][name] for r in rounds
                )
                for name in rounds[0][arm][phase]
            }
            for phase in rounds[0][arm]
        }
        for arm in rounds[0]
    }


def _over(figures: Round) -> Round:
    """Differences to round robin."""
    base = figures.get(ROUND_ROBIN.key)
    if base is None:
        return {}
    names = ("latency_p50_ms", "latency_p99_ms", "router_cpu_us")
    return {
        arm: {
            phase: {name: numbers[name] - base[phase][name] for name in names}
            for phase, numbers in phases.items()
        }
        for arm, phases in figures.items()
        if arm != ROUND_ROBIN.key
    }


def _machine() -> dict[str, Any]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg(),
        "python": platform.python_version(),
        "dynamo": version("ai-dynamo"),
        "wardrop": version("wardrop"),
        "commit": commit or None,
    }


if __name__ == "__main__":
    main()
