"""The machine, commit and command that a recorded figure belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, number of CPUs, load average of one minute, Python version, commit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": next(models, platform.processor()),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "commit": commit,
    }


def command(module: str) -> str:
    """The command line of this run, without `--json FILE`: the file is a path of this machine."""
    arguments = list(sys.argv[1:])
    while "--json" in arguments:
        at = arguments.index("--json")
        del arguments[at : at + 2]
    kept = [each for each in arguments if not each.startswith("--json=")]
    return " ".join(["python -m", module, *kept])
