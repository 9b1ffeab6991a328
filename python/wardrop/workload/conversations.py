"""Multi-turn conversations over shared system prompts.

A session draws a system prompt by Zipf's law (P(rank k) ∝ k^−s), then alternates user message and
reply a geometric number of times. Sessions arrive as a Poisson process. A turn leaves an
exponential think time after the previous reply. Message and reply lengths are log-normal.

The process is in its steady state when the clock starts. Sessions that began earlier continue with
their next turn and their whole history, so the rate is constant from the first second.

The history of a session grows by the user message and by as many tokens as the reply has. A mock
engine replies with random ids that no prompt can repeat, so generated tokens take the place of the
reply. An engine prefills these tokens once, as it does when generated text is tokenised differently
in the next prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wardrop.workload.turn import Tokens, Turn

_LIFETIMES_BEFORE = 5
"""Sessions older than this many mean lifetimes at the start are left out: e^−5 are alive."""


@dataclass(frozen=True)
class ConversationSpec:
    """The distributions of a workload.

    Attributes:
        requests_per_s: Mean rate of requests while answers take as long as planned. Sessions arrive
            at this rate divided by the mean number of turns.
        seconds: Turns that would leave at or after this time, with answers as fast as planned, are
            left out. Every fleet therefore gets the same requests, and a slow fleet ends later.
        system_prompts: Number of system prompts; 0 gives every session a prompt of its own.
        zipf_exponent: Exponent of Zipf's law; 0 is uniform.
        system_tokens: Median length of a system prompt.
        user_tokens: Median length of a user message.
        reply_tokens: Median length of a reply.
        spread: Sigma of the three log-normal distributions.
        turns: Mean number of turns of a session, at least 1.
        think_s: Mean think time.
        planned_ttft_s: Planned time to the first token of an answer.
        planned_itl_s: Planned time of each token.
        max_prompt_tokens: A session ends before its prompt would exceed this length.
        first_token, last_token: Range of token ids, both included.
        seed: Seed of all draws.
    """

    requests_per_s: float = 40.0
    seconds: float = 40.0
    system_prompts: int = 32
    zipf_exponent: float = 1.0
    system_tokens: int = 2500
    user_tokens: int = 800
    reply_tokens: int = 80
    spread: float = 0.6
    turns: float = 6.0
    think_s: float = 2.0
    planned_ttft_s: float = 0.15
    planned_itl_s: float = 0.012
    max_prompt_tokens: int = 16_384
    first_token: int = 300
    last_token: int = 7999
    seed: int = 0

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float, float]] = {
            "requests_per_s": (self.requests_per_s, 1e-6, 1e5),
            "seconds": (self.seconds, 1e-3, 86_400),
            "system_prompts": (self.system_prompts, 0, 1e6),
            "zipf_exponent": (self.zipf_exponent, 0, 10),
            "system_tokens": (self.system_tokens, 1, 1e6),
            "user_tokens": (self.user_tokens, 1, 1e6),
            "reply_tokens": (self.reply_tokens, 1, 1e5),
            "spread": (self.spread, 0, 3),
            "turns": (self.turns, 1, 1e3),
            "think_s": (self.think_s, 0, 3600),
            "planned_ttft_s": (self.planned_ttft_s, 0, 60),
            "planned_itl_s": (self.planned_itl_s, 0, 1),
            "max_prompt_tokens": (self.max_prompt_tokens, 1, 1e7),
            "first_token": (self.first_token, 0, self.last_token),
            "last_token": (self.last_token, self.first_token, 2**32 - 1),
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise ValueError(f"{name}: got {value}, expected {low:g} to {high:g}")


def generate(spec: ConversationSpec) -> list[Turn]:
    """The workload of a specification, in order of the earliest possible departure.

    Args:
        spec: The distributions; `spec.seed` decides every draw.

    Returns:
        Turns. `follows` is always a smaller index.
    """
    turn_s = spec.think_s + spec.planned_ttft_s + spec.planned_itl_s * spec.reply_tokens
    before_s = _LIFETIMES_BEFORE * spec.turns * turn_s
    arrivals = _poisson(
        np.random.default_rng([spec.seed, 0]),
        spec.requests_per_s / spec.turns,
        -before_s,
        spec.seconds,
    )
    popularity = _zipf(spec.system_prompts, spec.zipf_exponent)
    drafts: list[tuple[float, int, int, Turn]] = []
    for session, arrival_s in enumerate(arrivals):
        # One generator per session: one session more or less changes no other session.
        rng = np.random.default_rng([spec.seed, 1, session])
        rank = (
            int(rng.choice(len(popularity), p=popularity))
            if spec.system_prompts
            else 1_000_000 + session
        )
        drafts += _session(spec, rng, session, float(arrival_s), _system_prompt(spec, rank))
    drafts.sort(key=lambda draft: draft[:3])
    place = {(session, number): i for i, (_, session, number, _) in enumerate(drafts)}
    return [
        Turn(
            turn.session,
            turn.time_s,
            place.get((session, number - 1)),
            turn.tokens,
            turn.output_tokens,
        )
        for _, session, number, turn in drafts
    ]


def _session(
    spec: ConversationSpec,
    rng: np.random.Generator,
    session: int,
    arrival_s: float,
    history: Tokens,
) -> list[tuple[float, int, int, Turn]]:
    """The turns of one session, each with earliest departure, session and number in the session.

    The field `follows` of a turn is still None.
    """
    turns: list[tuple[float, int, int, Turn]] = []
    earliest_s = arrival_s
    for number in range(int(rng.geometric(1 / spec.turns))):
        think_s = float(rng.exponential(spec.think_s)) if spec.think_s else 0.0
        user = _tokens(spec, rng, _length(rng, spec.user_tokens, spec.spread))
        reply = _tokens(spec, rng, _length(rng, spec.reply_tokens, spec.spread))
        earliest_s += think_s if number else 0.0
        prompt = np.concatenate([history, user])
        if len(prompt) > spec.max_prompt_tokens or earliest_s >= spec.seconds:
            break
        if earliest_s >= 0:
            time_s = think_s if turns else earliest_s
            turn = Turn(session, time_s, None, prompt, len(reply))
            turns.append((earliest_s, session, number, turn))
        history = np.concatenate([prompt, reply])
        earliest_s += spec.planned_ttft_s + spec.planned_itl_s * len(reply)
    return turns


def _system_prompt(spec: ConversationSpec, rank: int) -> Tokens:
    rng = np.random.default_rng([spec.seed, 2, rank])
    return _tokens(spec, rng, _length(rng, spec.system_tokens, spec.spread))


def _tokens(spec: ConversationSpec, rng: np.random.Generator, count: int) -> Tokens:
    return rng.integers(
        spec.first_token, spec.last_token, size=count, dtype=np.uint32, endpoint=True
    )


def _length(rng: np.random.Generator, median: int, spread: float) -> int:
    """A log-normal length with the given median, at least 1 and at most 8 × the median."""
    return max(1, min(8 * median, round(median * math.exp(spread * float(rng.standard_normal())))))


def _poisson(rng: np.random.Generator, per_s: float, begin_s: float, end_s: float) -> list[float]:
    """Arrival times of a Poisson process on [begin, end)."""
    times: list[float] = []
    now_s = begin_s + float(rng.exponential(1 / per_s))
    while now_s < end_s:
        times.append(now_s)
        now_s += float(rng.exponential(1 / per_s))
    return times


def _zipf(ranks: int, exponent: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """P(rank k) ∝ k^−s for k = 1 … ranks."""
    weights = np.arange(1, ranks + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum() if ranks else weights
