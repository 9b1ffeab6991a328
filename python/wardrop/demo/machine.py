"""The machine and the software versions of a run, for reports."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def footnote(dynamo_version: str) -> str:
    """Versions, CPU, cores and date of a run, in one sentence."""
    return (
        f"Wardrop {version('wardrop')}, Dynamo {dynamo_version}, Python "
        f"{platform.python_version()}, {cpu_model()}, {os.cpu_count()} cores, "
        f"{datetime.now(UTC):%Y-%m-%d}."
    )


def description(dynamo_version: str) -> dict[str, Any]:
    """Machine and versions for a JSON file."""
    return {
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "wardrop": version("wardrop"),
            "commit": _commit(),
            "dynamo": dynamo_version,
            "python": platform.python_version(),
        },
    }


def cpu_model() -> str:
    """Model name of the CPU, or the architecture where the kernel does not report a model."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """Commit of the checkout that holds this package; None for an installed package."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return answer.stdout.strip()
    return None
