"""Options become a fleet and its traffic, or an error that says which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wardrop.demo.plan import Options, make_plan, pools
from wardrop.timing import itl_ms, prefill_ms, write_table

QUICK = Options(workers=2, seconds=4)


@pytest.fixture
def timing(tmp_path: Path) -> Path:
    return write_table(tmp_path / "b200.npz")


def test_the_timing_table_is_the_documented_formula(timing: Path) -> None:
    table = np.load(timing)
    # The measured points that the formula was fitted to, with its stated error.
    for tokens, measured_ms in ((128, 14), (1024, 41), (8192, 274), (32768, 1249)):
        got_ms = np.interp(tokens, table["prefill_isl"], table["prefill_ttft_ms"])
        assert got_ms == pytest.approx(measured_ms, rel=0.075)
    for batch, measured_ms in ((1, 9.2), (64, 12.4), (256, 23.0)):
        kv = np.abs(table["decode_active_kv_tokens"] - 2048 * batch).argmin()
        context = np.abs(table["decode_context_length"] - 2048).argmin()
        assert table["decode_itl"][kv, context] == pytest.approx(measured_ms, rel=0.1)
    assert table["prefill_ttft_ms"] == pytest.approx(prefill_ms(table["prefill_isl"]))
    assert (np.diff(table["decode_itl"], axis=0) >= 0).all()
    assert itl_ms(np.array([1.0]), np.array([2048.0])) == pytest.approx([9.253], abs=0.01)


def test_load_follows_the_workers_that_prefill(timing: Path) -> None:
    def rate(options: Options) -> float:
        plan = make_plan(replace(options, seconds=60), timing)
        return plan.facts["requests"] / 60

    assert rate(replace(QUICK, workers=4)) == pytest.approx(20, rel=0.25)
    assert rate(replace(QUICK, disagg="2x4")) == pytest.approx(10, rel=0.25)


def test_a_split_is_a_split(timing: Path) -> None:
    plan = make_plan(replace(QUICK, disagg="2x4"), timing)
    assert (plan.spec.workers, plan.spec.prefill, plan.spec.decode) == (0, 2, 4)
    assert list(pools(plan.spec)) == ["prefill", "decode"]


def test_the_same_seed_plans_the_same_requests(timing: Path) -> None:
    one, two = (make_plan(QUICK, timing).turns for _ in range(2))
    assert [t.tokens.tobytes() for t in one] == [t.tokens.tobytes() for t in two]
    other = make_plan(replace(QUICK, seed=1), timing).turns
    assert [t.tokens.tobytes() for t in one] != [t.tokens.tobytes() for t in other]


def test_a_trace_takes_the_place_of_the_generator(timing: Path, tmp_path: Path) -> None:
    rows = [
        {"timestamp": 500 * i, "input_length": 600, "output_length": 3, "hash_ids": [1, 2 + i]}
        for i in range(6)
    ]
    trace = tmp_path / "t.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = make_plan(replace(QUICK, trace=trace), timing)
    assert [len(t.tokens) for t in plan.turns] == [600] * 6
    assert "t.jsonl" in dict(plan.settings)["traffic"]


def test_the_settings_that_matter_are_said(timing: Path) -> None:
    settings = dict(make_plan(QUICK, timing).settings)
    assert "2 mock workers" in settings["fleet"]
    assert "10 requests/s" in settings["traffic"]
    assert "Zipf" in settings["shared"]
    own = dict(make_plan(replace(QUICK, system_prompts=0), timing).settings)
    assert "own system prompt" in own["shared"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (replace(QUICK, workers=0), "workers"),
        (replace(QUICK, disagg="2y4"), "2y4"),
        (replace(QUICK, rate=1e-9), "requests_per_s"),
        (replace(QUICK, seconds=0.01, rate=0.001), "no request falls"),
        (replace(QUICK, trace=Path("/nonexistent.jsonl")), "no trace at"),
    ],
)
def test_a_bad_option_is_named(options: Options, what: str, timing: Path) -> None:
    with pytest.raises(ValueError, match=what):
        make_plan(options, timing)
