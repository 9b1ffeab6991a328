"""Runs every fault behind both doors, and writes `bench/results/reliability.json`.

python -m bench.reliability [--only kill_worker,stop_worker] [--doors dynamo,wardrop] [--rounds 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.machine import machine
from bench.reliability.crowds import large_prompts, slow_clients
from bench.reliability.door import DOORS
from bench.reliability.feeds import invented_ranks, many_workers, same_id_restart, silent_feed
from bench.reliability.process_faults import kill_frontend, kill_worker, stop_frontend, stop_worker
from bench.reliability.text import tables

from wardrop.dynamo.namespace import enter_or_reexec

RESULT = Path(__file__).parents[1] / "results" / "reliability.json"

FAULTS: dict[str, Callable[[str], Awaitable[dict[str, Any]]]] = {
    "kill_worker": kill_worker,
    "stop_worker": stop_worker,
    "kill_frontend": kill_frontend,
    "stop_frontend": stop_frontend,
    "same_id_restart": same_id_restart,
    "silent_feed": silent_feed,
    "many_workers": many_workers,
    "large_prompts": large_prompts,
    "invented_ranks": invented_ranks,
    "slow_clients": slow_clients,
}


def main() -> None:
    """Measure, print, and merge into the result file."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default=",".join(FAULTS), help="faults, with commas")
    options.add_argument("--doors", default=",".join(DOORS), help="doors, with commas")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--table", action="store_true", help="only print the tables")
    options.add_argument("--json", type=Path, default=RESULT)
    chosen = options.parse_args()
    if chosen.table:
        print("\n".join(tables(json.loads(chosen.json.read_text()))))
        return
    enter_or_reexec()
    result: dict[str, Any] = {}
    if chosen.json.exists():
        result = json.loads(chosen.json.read_text())
    result["machine"] = machine()
    faults = result.setdefault("faults", {})
    for name in chosen.only.split(","):
        rows: dict[str, list[Any]] = {door: [] for door in chosen.doors.split(",")}
        for _ in range(chosen.rounds):
            for door, kept in rows.items():
                begin_s = time.monotonic()
                try:
                    row = asyncio.run(FAULTS[name](door))
                except Exception as error:  # one fault that cannot be measured costs itself
                    row = {"could not be measured": f"{type(error).__name__}: {error}"[:2000]}
                kept.append(row)
                print(f"{name} {door} ({time.monotonic() - begin_s:.0f} s): {json.dumps(row)}")
                sys.stdout.flush()
        faults[name] = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"python -m bench.reliability --only {name} --rounds {chosen.rounds}",
            **rows,
        }
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
