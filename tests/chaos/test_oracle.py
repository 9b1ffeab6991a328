"""Negative controls: each rule of the oracle catches the violation that it is for."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from tests.chaos.oracle import (
    MAX_ATTEMPTS,
    RECOVERY_S,
    Bounds,
    Exchange,
    Fault,
    judge_attempts,
    judge_blocks,
    judge_books,
    judge_exchanges,
    judge_faults,
    judge_memory,
    judge_prompts,
    slope,
)
from tests.chaos.recorder import Attempt

WHOLE = Exchange(
    request_id="chaos-1-1",
    sent_s=100.0,
    ended_s=101.0,
    status=200,
    asked_tokens=8,
    got_tokens=8,
    done=True,
    error=None,
    first_byte_s=100.2,
    silence_s=0.1,
)
FAILED = replace(WHOLE, status=503, done=False, got_tokens=None, error="no worker")
KILL = Fault("kill_worker", 100.5, 100.6, fired=1, spares=False)
GARBAGE = replace(KILL, kind="clients_garbage", spares=True)
LENIENT = Bounds(whole_share=0.0)


def rules(exchange: Exchange, *faults: Fault, bounds: Bounds = LENIENT) -> list[str]:
    return [found.rule for found in judge_exchanges([exchange], faults, bounds, lag_s=0.0)]


def test_whole_answer_breaks_no_rule():
    assert judge_exchanges([WHOLE] * 20, [], Bounds(), lag_s=0.0) == []


@pytest.mark.parametrize(
    ("exchange", "rule"),
    [
        (replace(WHOLE, status=0, done=False, first_byte_s=None), "lost"),
        (replace(WHOLE, done=False), "lost"),
        (replace(FAILED, error=None), "unclear"),
        (replace(WHOLE, got_tokens=7), "tokens"),
        (replace(WHOLE, got_tokens=16), "tokens"),
        (replace(WHOLE, got_tokens=None), "tokens"),
        (replace(WHOLE, silence_s=2.6), "silence"),
        (replace(WHOLE, first_byte_s=116.0, ended_s=117.0), "first byte"),
        (replace(WHOLE, first_byte_s=None, ended_s=190.0), "first byte"),
    ],
)
def test_planted_violation_is_found(exchange: Exchange, rule: str):
    assert rule in rules(exchange, KILL)


def test_silence_of_the_client_itself_is_nobodys_fault():
    silent = replace(WHOLE, silence_s=2.6)
    assert judge_exchanges([silent], [], Bounds(), lag_s=0.2) == []


def test_failure_is_allowed_near_a_harmful_fault_only():
    assert rules(FAILED, KILL) == []
    assert rules(FAILED) == ["collateral"]
    assert rules(FAILED, GARBAGE) == ["collateral"], "a fault that spares requests excuses nothing"
    long_before = replace(KILL, begin_s=10.0, end_s=99.9 - RECOVERY_S)
    assert rules(FAILED, long_before) == ["collateral"]
    later = replace(KILL, begin_s=101.1, end_s=102.0)
    assert rules(FAILED, later) == ["collateral"]


def test_too_many_failures_are_no_service():
    answers = [WHOLE] * 8 + [FAILED] * 2
    assert [v.rule for v in judge_exchanges(answers, [KILL], Bounds(), 0.0)] == ["service"]
    assert [v.rule for v in judge_exchanges([], [KILL], Bounds(), 0.0)] == ["service"]


def test_request_sent_after_its_answer_began_is_found_and_an_earlier_retry_is_not():
    name = WHOLE.request_id
    early, late = Attempt(None, sent_s=100.1), Attempt(None, sent_s=100.3)
    unanswered = replace(FAILED, first_byte_s=None)
    assert judge_attempts({name: [early, early]}, [WHOLE]) == []
    assert judge_attempts({name: [early, late]}, [unanswered]) == []
    assert judge_attempts({"of nobody": [early, late]}, [WHOLE]) == []
    assert [v.rule for v in judge_attempts({name: [early, late]}, [WHOLE])] == ["duplicate"]
    assert [v.rule for v in judge_attempts({name: [late, early]}, [WHOLE])] == ["duplicate"]
    storm = {name: [early] * (MAX_ATTEMPTS + 1)}
    assert [v.rule for v in judge_attempts(storm, [WHOLE])] == ["storm"]


def test_wrong_prompt_is_found_and_an_empty_comparison_too():
    assert judge_prompts({"a": [1, 2]}, {"a": [1, 2]}) == []
    assert [v.rule for v in judge_prompts({"a": [1, 2]}, {"a": [1, 3]})] == ["prompt"]
    assert [v.rule for v in judge_prompts({"a": [1, 2]}, {"a": [1, 2, 2]})] == ["prompt"]
    assert [v.rule for v in judge_prompts({}, {})] == ["prompt"]


def test_fault_that_never_fired_is_found():
    unfired = replace(KILL, fired=0)
    assert judge_faults([KILL, unfired], ["kill_worker"]) == []
    assert [v.rule for v in judge_faults([unfired], ["kill_worker"])] == ["fault"]
    assert [v.rule for v in judge_faults([KILL], ["kill_worker", "cut_feed"])] == ["fault"]


def test_blocks_of_an_ended_life_are_found():
    assert judge_blocks({"m": 3.0}, {"m": 3.0}) == []
    assert [v.rule for v in judge_blocks({"m": 5.0}, {"m": 3.0})] == ["blocks"]
    assert [v.rule for v in judge_blocks({}, {"m": 3.0})] == ["blocks"]


def test_open_book_is_found():
    assert judge_books({"load": 0.0}) == []
    assert [v.rule for v in judge_books({"load": 0.0, "in_flight": 1.0})] == ["books"]


def walk(kb_per_minute: float, noise_kb: float) -> list[tuple[float, float]]:
    """An hour of samples each half second, with noise that depends on its past."""
    dice, drift = random.Random(3), 0.0
    samples: list[tuple[float, float]] = []
    for number in range(7200):
        drift = 0.99 * drift + dice.gauss(0, noise_kb)
        samples.append((number / 2, 80_000 + kb_per_minute * number / 120 + drift))
    return samples


def test_slope_of_a_leak_is_found_and_noise_is_not():
    flat, leak = walk(0.0, 50.0), walk(200.0, 50.0)
    assert judge_memory(flat, 100.0, 20_000.0) == []
    assert slope(leak).per_minute == pytest.approx(200.0, abs=20.0)
    assert [v.rule for v in judge_memory(leak, 100.0, 20_000.0)] == ["memory"]
    assert [v.rule for v in judge_memory(walk(500.0, 50.0), math.inf, 20_000.0)] == ["memory"]
