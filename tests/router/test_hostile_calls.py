"""No argument makes a function of the native module panic or abort."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.router.hostile_calls import functions

SCRIPT = Path(__file__).with_name("hostile_calls.py")
MEMORY_BYTES = 8 << 30


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


@pytest.mark.parametrize("seed", range(3))
def test_every_function_of_the_stub_refuses_hostile_arguments(seed: int, tmp_path: Path) -> None:
    # Some functions write a file under any name: they must not write into the repository.
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(SCRIPT), str(seed), "12"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit_memory,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["faults"] == []
    # A method without arguments is called as often as the others.
    assert set(found["calls"]) == set(functions())
    assert min(found["calls"].values()) == 12
