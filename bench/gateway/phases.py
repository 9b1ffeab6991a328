"""The loads that every arm gets: short prompts that share nothing, engines without time."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from urllib.request import Request, urlopen

import numpy as np

from wardrop.demo.arms import Arm, Stack
from wardrop.demo.drive import Driven, Row, drive
from wardrop.dynamo.embedded import FleetSpec
from wardrop.workload import Turn, chat_body, completion_body
from wardrop.workload.bodies import text_of

MODEL = "bench"
PROMPT_TOKENS = 256
MESSAGE_WORDS = 142
"""Made-up words of a message; eight questions and seven answers make about 6,000 tokens."""
TEXT_WORDS = 151
"""Made-up words of a text prompt; with the template about 420 tokens of the embedded model."""
SPEC = FleetSpec(
    workers=4,
    process_per_worker=False,
    model_name=MODEL,
    block_size=16,
    blocks=16_384,
    speedup_ratio=100.0,
)
"""Four workers, engine time taken out, caches that hold the whole bench."""

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Phase:
    """One load in a closed loop.

    Attributes:
        key: Name in the result.
        concurrency: Requests in flight.
        output_tokens: Tokens per answer; more than one is streamed.
        text: Prompts are chat text instead of token ids.
        seconds: Longest time.
        requests: Requests that are made beforehand.
        turns: Turns of a conversation. Each turn sends all messages before it.
    """

    key: str
    concurrency: int
    output_tokens: int
    text: bool
    seconds: float
    requests: int
    turns: int = 1


PHASES = (
    Phase("ids_c1", 1, 1, text=False, seconds=3.0, requests=1500),
    Phase("ids_c32_t1", 32, 1, text=False, seconds=4.0, requests=16_000),
    Phase("ids_c32_t128", 32, 128, text=False, seconds=5.0, requests=4_000),
    Phase("text_c1", 1, 1, text=True, seconds=3.0, requests=1000),
    Phase("text_c32_t1", 32, 1, text=True, seconds=4.0, requests=10_000),
    Phase("streams_c1", 1, 8, text=False, seconds=3.0, requests=1000),
    Phase("talk_c8", 8, 1, text=True, seconds=60.0, requests=384, turns=8),
)
_WARM_UP = Phase("warm_up", 16, 4, text=False, seconds=2.0, requests=400)


@dataclass(frozen=True)
class Load:
    """Requests of a phase, made once and sent to every arm."""

    phase: Phase
    path: str
    rows: list[Row]


def loads(quick: bool) -> list[Load]:
    """All phases with their bodies, the warm-up first; `quick` shortens them for a test."""
    phases = [_WARM_UP, *PHASES]
    if quick:
        phases = [replace(p, seconds=0.5, requests=min(p.requests, 200)) for p in phases]
    return [_load(number, phase) for number, phase in enumerate(phases)]


def _load(number: int, phase: Phase) -> Load:
    rng = np.random.default_rng([7, number])
    if phase.turns > 1:
        return Load(phase, "/v1/chat/completions", _conversations(phase, rng))
    body = chat_body if phase.text else completion_body
    length = TEXT_WORDS if phase.text else PROMPT_TOKENS
    rows: list[Row] = []
    for _ in range(phase.requests):
        tokens = rng.integers(300, 8000, size=length, dtype=np.uint32)
        turn = Turn(0, 0.0, None, tokens, phase.output_tokens)
        rows.append((0.0, None, body(MODEL, turn, stream=phase.output_tokens > 1)))
    path = "/v1/chat/completions" if phase.text else "/v1/completions"
    return Load(phase, path, rows)


def _conversations(phase: Phase, rng: np.random.Generator) -> list[Row]:
    """Requests of several conversations; every first turn precedes every second turn."""

    def message(role: str) -> dict[str, str]:
        words = rng.integers(0, 4096, size=MESSAGE_WORDS, dtype=np.uint32)
        return {"role": role, "content": text_of(words)}

    talks: list[list[dict[str, str]]] = [[] for _ in range(phase.requests // phase.turns)]
    rows: list[Row] = []
    for _ in range(phase.turns):
        for talk in talks:
            talk.append(message("user"))
            body = {"model": MODEL, "messages": talk, "max_tokens": phase.output_tokens}
            body |= {"ignore_eos": True, "nvext": {"extra_fields": ["worker_id"]}}
            rows.append((0.0, None, json.dumps(body, separators=(",", ":")).encode()))
            talk.append(message("assistant"))
    return rows


def run(stack: Stack, load: Load) -> dict[str, float]:
    """Drive one phase; latency in ms, rate in requests/s, CPU of the routing processes in µs.

    Raises:
        RuntimeError: a request failed, so the figures would mean nothing.
    """
    driven = drive(
        stack.url + load.path,
        load.rows,
        router_pids=stack.router_pids,
        duration_s=load.phase.seconds,
        timeout_s=_TIMEOUT_S,
        concurrency=load.phase.concurrency,
    )
    return _figures(driven, load.phase)


def _figures(driven: Driven, phase: Phase) -> dict[str, float]:
    columns = driven.columns
    failed = [o for o in columns["outcome"] if o not in ("ok", "unsent")]
    if failed:
        raise RuntimeError(f"{phase.key}: {len(failed)} requests failed: {driven.first_error}")
    ok = [i for i, outcome in enumerate(columns["outcome"]) if outcome == "ok"]
    short = [i for i in ok if columns["completion_tokens"][i] != phase.output_tokens]
    if short:
        raise RuntimeError(f"{phase.key}: {len(short)} answers have another length than asked for")
    latency_ms = np.array([1e3 * (columns["end_s"][i] - columns["sent_s"][i]) for i in ok])
    return {
        "requests": len(ok),
        "latency_p50_ms": float(np.percentile(latency_ms, 50)),
        "latency_p99_ms": float(np.percentile(latency_ms, 99)),
        "requests_per_s": len(ok) / columns["elapsed_s"],
        "router_cpu_us": 1e6 * sum(driven.router_cpu_s) / len(ok),
        "gateway_cpu_us": 1e6 * sum(driven.router_cpu_s[1:]) / len(ok),
        "driver_cpu_share": driven.driver_cpu_s / columns["elapsed_s"],
        "prompt_tokens": float(np.mean([columns["prompt_tokens"][i] for i in ok])),
    }


def check_routed(stack: Stack, arm: Arm, requests: int) -> dict[str, float]:
    """What the gateway says it did with the requests: decided on each, abstained on none.

    Args:
        stack: still running.
        arm: without a gateway there is nothing to check.
        requests: how many it got.

    Returns:
        Decisions, and prompts handed over as token ids.

    Raises:
        RuntimeError: it decided on fewer; the figures would be those of Dynamo's own routing.
    """
    if not (arm.gateway or arm.native):
        return {}
    with urlopen(f"{stack.url}/metrics", timeout=_TIMEOUT_S) as response:
        lines = response.read().decode().splitlines()

    def total(name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    decided, abstained = total("wardrop_decisions_total"), total("wardrop_abstentions_total")
    if decided < requests or abstained:
        raise RuntimeError(f"of {requests} requests Wardrop decided {decided}, left {abstained}")
    return {"decisions": decided, "handovers": total("wardrop_token_id_handovers_total")}


def check_answer(stack: Stack) -> None:
    """One request whose answer is looked at before any clock starts.

    Raises:
        RuntimeError: the answer is not what was asked for.
    """
    tokens = np.arange(300, 300 + PROMPT_TOKENS, dtype=np.uint32)
    body = completion_body(MODEL, Turn(0, 0.0, None, tokens, 3), stream=False)
    request = Request(
        f"{stack.url}/v1/completions", data=body, headers={"content-type": "application/json"}
    )
    with urlopen(request, timeout=_TIMEOUT_S) as response:
        answer = json.load(response)
    usage = answer["usage"]
    worker = answer["nvext"]["worker_id"]["decode_worker_id"]
    if (usage["prompt_tokens"], usage["completion_tokens"]) != (PROMPT_TOKENS, 3):
        raise RuntimeError(f"asked for 256 prompt tokens and 3 of answer, got {usage}")
    if worker not in stack.workers["aggregated"]:
        raise RuntimeError(f"worker {worker} is none of {stack.workers}")
