"""The simulator against Dynamo's replay 1.4.2, request by request.

Needs `.venv-142` (`make .make/dynamo-1.4.2`) or WARDROP_DYNAMO_142, a Python with ai-dynamo 1.4.2.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from wardrop.replay.generate import generate, mooncake_rows

ROOT = Path(__file__).parents[2]
DYNAMO = Path(os.environ.get("WARDROP_DYNAMO_142", ROOT / ".venv-142/bin/python"))

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not DYNAMO.exists(), reason=f"no Dynamo 1.4.2 at {DYNAMO}: make .make/dynamo-1.4.2"
    ),
]


def bench():
    path = ROOT / "bench/replay/against_dynamo.py"
    spec = importlib.util.spec_from_file_location("against_dynamo", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["against_dynamo"] = module
    spec.loader.exec_module(module)
    return module


def trace(tmp_path, text):
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(mooncake_rows(generate(text, 7))))
    return path


@pytest.mark.parametrize("num_blocks", [16_384, 1_024])
def test_an_aggregated_fleet_agrees_with_room_and_without(tmp_path, num_blocks):
    against = bench()
    text = "prefixes(requests=1000,per_s=14,groups=150,prefix=4096,suffix=1500,output=180)"
    setting = against.Setting(trace(tmp_path, text), 8, num_blocks)
    outcome = against.compare(DYNAMO, setting, seeds=2)
    if num_blocks == 16_384:
        # Without preemption the engines do the same thing at the same moment.
        assert outcome["round_robin"]["identical_rows"] > 0.99
    for policy in ("round_robin", "dynamo"):
        for name, row in outcome[policy]["figures"].items():
            assert row["ratio"] == pytest.approx(1, abs=0.05), (policy, name)


def test_a_split_agrees_where_prompts_share_nothing_and_none_waits(tmp_path):
    against = bench()
    text = "prefixes(requests=150,per_s=0.4,groups=5000,zipf=0,prefix=64,suffix=4000,output=150)"
    setting = against.Setting(trace(tmp_path, text), (2, 2))
    outcome = against.compare(DYNAMO, setting, seeds=1)
    assert outcome["round_robin"]["identical_rows"] > 0.95
    for name in ("TTFT mean ms", "E2E mean ms", "ITL mean ms"):
        row = outcome["round_robin"]["figures"][name]
        assert row["ratio"] == pytest.approx(1, abs=0.01), name


def test_a_split_agrees_under_load_once_prefill_workers_answer_as_dynamos_do(tmp_path):
    against = bench()
    text = "prefixes(requests=900,per_s=9,groups=60,prefix=2048,suffix=4000,output=60)"
    setting = against.Setting(trace(tmp_path, text), (3, 3))
    outcome = against.compare(DYNAMO, setting, seeds=2)
    for policy in ("round_robin", "dynamo"):
        for name, row in outcome[policy]["figures"].items():
            assert row["ratio"] == pytest.approx(1, abs=0.05), (policy, name)
    # The control: real engines hand over at the first token, and that is not what it does.
    plain = against.Setting(setting.trace, (3, 3), prefill_answers=False)
    ours, _ = against.ours(against.load(setting.trace), plain, "round_robin", 0)
    dynamo_ms = outcome["round_robin"]["figures"]["TTFT mean ms"]["dynamo"][0]
    assert ours.summary()["ttft_mean_s"] * 1e3 < 0.95 * dynamo_ms
