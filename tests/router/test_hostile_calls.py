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


LONG_LISTS = [
    "_core.Gateway().set_upstreams(long)",
    "_core.Gateway().restore_index('m', 'aggregated', b'', long, False)",
    "_core.Router(16).route([1], allowed=long)",
    "_core.Drive('http://127.0.0.1:1', long, duration_s=0.01, timeout_s=0.01)",
    "_core.Drive('http://127.0.0.1:1', [], duration_s=0.01, timeout_s=0.01, headers=long)",
    "_core.AnarchyMeter().record(0.0, 0, long, long, long, long)",
]


@pytest.mark.parametrize("call", LONG_LISTS)
def test_list_that_reports_a_trillion_items_is_refused(call: str) -> None:
    # A reservation for the reported length would end the process. Each item is refused by its type,
    # so no list is read to its limit.
    script = (
        "import numpy as np\nfrom wardrop import _core\n"
        "long = np.broadcast_to(np.array([None]), (2**40,))\n"
        f"try:\n    {call}\nexcept Exception as error:\n    print(type(error).__name__)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit_memory,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() in {"TypeError", "ValueError"}


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
