"""Run chaos: `python -m tests.chaos`.

The variables CHAOS_SECONDS, CHAOS_SEED, CHAOS_RATE and CHAOS_WITHOUT set the run."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.chaos.run import Settings, run

from wardrop.dynamo.namespace import enter_or_reexec


def main() -> int:
    """Run with the settings of the environment; 1 where a rule is broken."""
    enter_or_reexec()
    settings = Settings(
        seed=int(os.environ.get("CHAOS_SEED", "1")),
        seconds=float(os.environ.get("CHAOS_SECONDS", "120")),
        rate=float(os.environ.get("CHAOS_RATE", "8")),
        without=frozenset(os.environ.get("CHAOS_WITHOUT", "").split()),
        arguments=tuple(os.environ.get("CHAOS_ARGUMENTS", "").split()),
    )
    report = asyncio.run(run(settings))
    for line in report.lines():
        print(line)
    log = os.environ.get("CHAOS_LOG")
    if log:
        Path(log).write_text(report.router_log)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
