"""The `dynamo` policy against Dynamo 1.6.1 itself: same state, same question, same worker."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dynamo.llm", reason="Dynamo is not installed: nothing to compare with")
pytest.importorskip("zmq", reason="pyzmq is not installed: no KV events can be sent to Dynamo")

SETTINGS: list[dict[str, float]] = [
    {},
    {"overlap_score_credit": 0.5, "prefill_load_scale": 4.0},
    {"overlap_score_credit_decay": 1.5, "decode_active_request_weight": 2.5},
    {"host_cache_hit_weight": 0.5, "disk_cache_hit_weight": 0.1},
]


def compare(states: int, seed: int, dynamos: dict[str, float], ours: dict[str, float]) -> Any:
    program = Path(__file__).with_name("parity.py")
    command = [sys.executable, str(program), str(states), str(seed), json.dumps(dynamos)]
    alone = ["unshare", "-rn"]  # no network at all, where the kernel lets us
    works = shutil.which("unshare") and not subprocess.run([*alone, "true"], check=False).returncode
    done = subprocess.run(
        [*(alone if works else []), *command, json.dumps(ours)],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(states: int, seed: int, setting: dict[str, float]) -> None:
    counts = compare(states, seed, setting, setting)
    print(f"\n{setting or 'defaults'}: {counts}")
    assert counts["states"] == states
    assert min(counts["with_overlap"], counts["with_lower_tier"], counts["removed"]) > states / 50
    assert counts["agree"] >= 0.999 * counts["unique"], counts["differences"]
    assert counts.get("agree_tied", 0) == counts.get("tied", 0), counts["differences"]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_wardrop_picks_as_dynamo_does(setting: dict[str, float]) -> None:
    check(400, 11, setting)


@pytest.mark.heavy
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_wardrop_picks_as_dynamo_does_in_12000_states(setting: dict[str, float]) -> None:
    check(3000, 1000, setting)


def test_another_weight_is_noticed() -> None:
    counts = compare(400, 11, {}, {"prefill_load_scale": 3.0})
    assert counts["agree"] < 0.99 * counts["unique"]
