"""What the generator of conversations claims."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from wardrop.workload import ConversationSpec, Turn, generate, reusable_share, summary

SPEC = ConversationSpec(
    requests_per_s=30,
    seconds=200,
    system_tokens=64,
    user_tokens=24,
    reply_tokens=12,
    max_prompt_tokens=4096,
    seed=3,
)


def raw(turns: list[Turn]) -> list[tuple[object, ...]]:
    return [(t.session, t.time_s, t.follows, t.tokens.tobytes(), t.output_tokens) for t in turns]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    assert raw(generate(SPEC)) == raw(generate(SPEC))
    assert raw(generate(SPEC)) != raw(generate(replace(SPEC, seed=4)))


def test_requests_come_at_the_stated_rate_from_the_first_second_on() -> None:
    turns = generate(SPEC)
    times = departures(turns)
    expected = SPEC.requests_per_s * SPEC.seconds
    # Turns come in sessions of mean 6, so the count is over-dispersed: about sqrt(2 · 6 · n).
    assert abs(len(turns) - expected) < 4 * np.sqrt(12 * expected)
    first, last = (np.mean((times >= a) & (times < a + 50)) for a in (0, 150))
    assert 0.75 < first / last < 1.33


def test_sessions_arrive_as_a_poisson_process() -> None:
    starts = [t.time_s for t in generate(replace(SPEC, turns=1))]
    gaps = np.diff(starts)
    assert gaps.mean() == pytest.approx(1 / SPEC.requests_per_s, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)  # exponential: variation 1
    counts, _ = np.histogram(starts, bins=200, range=(0, SPEC.seconds))
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.25)  # Poisson: dispersion 1


def test_a_session_has_the_stated_mean_number_of_turns() -> None:
    spec = replace(SPEC, seconds=4000, requests_per_s=2, think_s=0.1)
    turns = generate(spec)
    assert len(turns) / len({t.session for t in turns}) == pytest.approx(spec.turns, rel=0.1)


def test_system_prompts_are_chosen_by_zipfs_law() -> None:
    spec = replace(SPEC, turns=1, seconds=400, system_prompts=8, zipf_exponent=1.0, spread=0)
    counts = Counter(t.tokens[:64].tobytes() for t in generate(spec))
    shares = np.array([n for _, n in counts.most_common()]) / counts.total()
    law = 1 / np.arange(1, 9)
    assert shares == pytest.approx(law / law.sum(), abs=0.02)


def test_a_turn_begins_with_the_whole_turn_before_and_its_reply() -> None:
    turns = generate(SPEC)
    linked = [t for t in turns if t.follows is not None]
    assert len(linked) > len(turns) / 2
    for turn in linked:
        before = turns[turn.follows]
        assert turn.session == before.session
        assert np.array_equal(turn.tokens[: len(before.tokens)], before.tokens)
        assert len(turn.tokens) > len(before.tokens) + before.output_tokens


def test_a_turn_only_follows_an_earlier_one() -> None:
    assert all(t.follows is None or t.follows < i for i, t in enumerate(generate(SPEC)))


def test_nothing_is_shared_without_system_prompts_and_second_turns() -> None:
    alone = generate(replace(SPEC, system_prompts=0, turns=1))
    assert reusable_share(alone, 16) == 0
    assert reusable_share(generate(SPEC), 16) > 0.5


def test_reuse_counts_exactly_the_blocks_seen_before() -> None:
    def turn(*blocks: int, extra: int = 0) -> Turn:
        tokens = np.repeat(np.array(blocks, dtype=np.uint32), 4)
        return Turn(0, 0, None, np.append(tokens, np.full(extra, 9, dtype=np.uint32)), 1)

    turns = [turn(1, 2, extra=3), turn(1, 2, extra=3), turn(1, 3, 2), turn(2, 1)]
    # 0 of 11, 8 of 11, 4 of 12 (the last block's prefix differs), 0 of 8
    assert reusable_share(turns, 4) == pytest.approx(12 / 42)


def test_a_summary_describes_the_workload() -> None:
    turns = generate(SPEC)
    figures = summary(turns, 16)
    assert figures["requests"] == len(turns)
    assert figures["prompt_tokens_mean"] == pytest.approx(np.mean([len(t.tokens) for t in turns]))


def test_tokens_and_lengths_stay_in_their_bounds() -> None:
    spec = replace(SPEC, spread=2.5, first_token=50, last_token=60)
    for turn in generate(spec):
        assert 1 <= len(turn.tokens) <= spec.max_prompt_tokens
        assert turn.output_tokens >= 1
        assert turn.tokens.min() >= 50
        assert turn.tokens.max() <= 60


@pytest.mark.parametrize(
    ("field", "value"),
    [("requests_per_s", 0), ("turns", 0.5), ("seconds", -1), ("first_token", 9000)],
)
def test_a_law_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: got"):
        replace(SPEC, **{field: value})


def departures(turns: list[Turn]) -> np.ndarray:
    """Departures if answers took as long as planned."""
    ends: list[float] = []
    times: list[float] = []
    for turn in turns:
        at = turn.time_s + (0 if turn.follows is None else ends[turn.follows])
        times.append(at)
        ends.append(at + SPEC.planned_ttft_s + SPEC.planned_itl_s * turn.output_tokens)
    return np.array(times)
