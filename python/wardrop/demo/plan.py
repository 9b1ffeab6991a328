"""Fleet and traffic of the demo, from its options, with a description in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wardrop.dynamo.embedded import FleetSpec, split_fleet
from wardrop.traces import read_trace
from wardrop.workload import ConversationSpec, Turn, generate, summary, turns_of_trace

MODEL = "mock-70b"
BLOCK_SIZE = 16
BLOCKS_PER_WORKER = 16_384
MAX_MODEL_LEN = 131_072
RATE_PER_WORKER = 5.0
"""Requests/s for each worker that prefills.

At this rate round robin is at its knee, where routing matters. At 2 the arms do not differ.
"""


@dataclass(frozen=True)
class Plan:
    """Fleet and traffic.

    Attributes:
        spec: The fleet.
        turns: The requests.
        seconds: Planned length of the run.
        settings: Name and description of each part of the plan, for people.
        facts: Figures of the traffic; see `wardrop.workload.summary`.
    """

    spec: FleetSpec
    turns: list[Turn]
    seconds: float
    settings: list[tuple[str, str]]
    facts: dict[str, float]


@dataclass(frozen=True)
class Options:
    """The options of `wardrop demo` that decide a plan; its help text explains each."""

    workers: int = 8
    disagg: str | None = None
    seconds: float = 36.0
    rate: float | None = None
    seed: int = 0
    trace: Path | None = None
    system_prompts: int = 32
    turns: float = 6.0


def make_plan(options: Options, timing_table: Path) -> Plan:
    """The plan for the options.

    Args:
        options: The options.
        timing_table: Timing table of the mock workers (.npz).

    Raises:
        ValueError: An option is out of range, or the trace cannot be used.
    """
    spec = FleetSpec(
        workers=options.workers,
        process_per_worker=False,
        model_name=MODEL,
        block_size=BLOCK_SIZE,
        blocks=BLOCKS_PER_WORKER,
        max_model_len=MAX_MODEL_LEN,
        timing_table=timing_table,
    )
    if options.disagg is not None:
        spec = split_fleet(options.disagg, spec)
    if not 1 <= spec.workers + spec.prefill + spec.decode <= 256:
        raise ValueError(f"workers: got {options.workers}, expected 1 to 256")
    prefilling = spec.workers or spec.prefill
    rate = options.rate if options.rate is not None else RATE_PER_WORKER * prefilling
    longest = min(MAX_MODEL_LEN, BLOCK_SIZE * BLOCKS_PER_WORKER // 2)
    if options.trace is not None:
        turns = turns_of_trace(
            read_trace(options.trace),
            seconds=options.seconds,
            requests_per_s=options.rate,
            max_prompt_tokens=longest,
            seed=options.seed,
        )
        traffic = [("traffic", f"rows of {options.trace.name}, {_scaled(options.rate)}")]
    else:
        law = ConversationSpec(
            requests_per_s=rate,
            seconds=options.seconds,
            seed=options.seed,
            system_prompts=options.system_prompts,
            turns=options.turns,
        )
        turns = generate(law)
        traffic = _law_in_words(law)
    if not turns:
        raise ValueError(
            f"no request falls into {options.seconds:g} s at {rate:g} requests/s; raise one of them"
        )
    facts = summary(turns, BLOCK_SIZE)
    settings = [("fleet", _fleet_in_words(spec)), *traffic, *_facts_in_words(facts)]
    settings.append(("seed", str(options.seed)))
    return Plan(spec, turns, options.seconds, settings, facts)


def _fleet_in_words(spec: FleetSpec) -> str:
    parts = (
        f"{spec.workers} mock workers"
        if spec.workers
        else f"{spec.prefill} prefill and {spec.decode} decode mock workers"
    )
    cache = spec.blocks * spec.block_size
    return (
        f"{parts}, timed as a 70B model on 4 B200 each; {cache:,} tokens of KV cache per worker in "
        f"blocks of {spec.block_size}"
    )


def _law_in_words(law: ConversationSpec) -> list[tuple[str, str]]:
    shared = (
        f"{law.system_prompts} system prompts of about {law.system_tokens:,} tokens, popularity by "
        f"Zipf's law with exponent {law.zipf_exponent:g}"
        if law.system_prompts
        else f"an own system prompt of about {law.system_tokens:,} tokens for every conversation"
    )
    return [
        (
            "traffic",
            f"conversations, open loop, Poisson arrivals, {law.requests_per_s:g} requests/s "
            f"planned for {law.seconds:g} s",
        ),
        (
            "conversation",
            f"{law.turns:g} turns on average (geometric), messages of about {law.user_tokens} and "
            f"replies of about {law.reply_tokens} tokens (log-normal, σ {law.spread:g}), think "
            f"time {law.think_s:g} s on average (exponential)",
        ),
        ("shared", shared),
    ]


def _facts_in_words(facts: dict[str, float]) -> list[tuple[str, str]]:
    return [
        (
            "requests",
            f"{facts['requests']:,.0f} of {facts['sessions']:,.0f} conversations; prompts of "
            f"{facts['prompt_tokens_mean']:,.0f} tokens on average (p99 "
            f"{facts['prompt_tokens_p99']:,.0f}), answers of {facts['output_tokens_mean']:,.0f}",
        ),
        (
            "ideal reuse",
            f"{100 * facts['ideal_reuse']:.0f} % of prompt tokens, by one endless cache",
        ),
    ]


def _scaled(rate: float | None) -> str:
    return "its own arrivals" if rate is None else f"gaps scaled to {rate:g} requests/s"


def pools(spec: FleetSpec) -> Sequence[str]:
    """Names of the pools of a fleet, in the order of its parts."""
    return ("aggregated",) if spec.workers else ("prefill", "decode")
