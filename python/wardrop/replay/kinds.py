"""Kinds of traffic: generators whose figures come from public traces that anyone can look up.

Each docstring names its source, the figures that the defaults follow, and what is assumed. The
table in `docs/reference/workloads.md` sets the sources' figures beside the generators' own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wardrop.replay.draws import lengths, own, poisson
from wardrop.replay.workload import NO_PREDECESSOR, ReplayError, Workload, from_lists

_CALLS_SIGMA = 1.72
"""σ of the log-normal number of calls after a tool, by the source's median and 90th percentile."""

_HUMAN_SHARE = 0.11
"""Share of a session's calls that a person starts: 9.2 of 82.8 in the source."""

_TOOL_SIGMA = 1.5

QUESTIONS = 7.7
"""Mean questions on a document: 6,000 questions on 776 documents in LooGLE."""


def agent_loops(
    sessions: int = 150,
    per_s: float = 0.5,
    system: int = 6_000,
    systems: int = 4,
    grow: float = 200,
    output: float = 523,
    context: int = 32_000,
    tool_s: float = 1.0,
    human_s: float = 20.0,
    calls: float = 15,
    max_calls: int = 200,
    spread: float = 1.0,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """Coding agents: loops of model calls and tools, within a context that grows and is compacted.

    A session is a run of model calls. A person, or the result of a tool, starts each call. Source:
    TraceLab (arXiv 2606.30560, public pool of 4,265 sessions). Calls after a tool have a median of
    15 and a mean of 74 per session there, and are log-normal here. A person starts 11 % of all
    calls. An answer has 523 tokens in the mean, and 96 % of the prompt tokens come from a cache.
    Prompts have 154,000 tokens in the mean there;
    `context` keeps prompts shorter here. The pauses are assumed.

    Args:
        sessions: number of sessions.
        per_s: mean session starts per second, a Poisson process.
        system: tokens of the system prompt, with which every context begins.
        systems: number of system prompts; sessions choose uniformly.
        grow: mean tokens that the result of a tool, or a person's message, adds to the context.
        output: mean tokens of an answer; the next call's context holds the answer.
        context: tokens of a context at which the agent compacts it to its system prompt and a
            summary of a tenth of this size.
        tool_s: median pause for a tool in seconds, log-normal with σ 1.5.
        human_s: mean pause for a person in seconds, exponential.
        calls: median number of a session's calls after a tool.
        max_calls: most calls of a session. It cuts the long tail of the source.
        spread: coefficient of variation of the lengths, which are log-normal.
        block_size: tokens per block.
        seed: seed of all draws.

    Raises:
        ReplayError: `context` is not above `system`.
    """
    if context <= system:
        raise ReplayError(f"got context={context}; expected above system={system}")
    rng = np.random.default_rng(seed)
    rows = _Rows(block_size, next_id=systems * -(-system // block_size))
    for start in poisson(rng, sessions, per_s):
        head = int(rng.integers(systems)) * -(-system // block_size)
        context_now = _Context(rows, head, system)
        previous = -1
        for is_human in _calls(rng, calls, max_calls):
            context_now.grow(int(lengths(rng, 1, grow, spread)[0]))
            if context_now.tokens > context:
                context_now.compact(system + context // 10)
            human_pause_s = float(rng.exponential(human_s))
            tool_pause_s = max(tool_s, 0.0) * float(np.exp(rng.normal(0.0, _TOOL_SIGMA)))
            pause_s = human_pause_s if is_human else tool_pause_s
            answer = int(lengths(rng, 1, output, spread)[0])
            pause_ms = pause_s * 1e3 if previous >= 0 else 0.0
            previous = rows.add(float(start), context_now, answer, previous, pause_ms)
            context_now.grow(answer)
    return rows.workload("agent_loops")


def support(
    requests: int = 10_000,
    per_s: float = 10.0,
    template: int = 3_000,
    message: float = 1_155,
    output: float = 211,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """Support bots: every prompt is one long template and a message of its own.

    Source of the lengths: Azure LLM inference 2023, conversations. A prompt has 1,155 tokens in the
    mean with a coefficient of variation of 0.96, an answer 211 with 0.77. The template is assumed.

    Args:
        requests: number of requests.
        per_s: mean arrivals per second, a Poisson process.
        template: tokens of the template that all prompts share.
        message: mean tokens of a message.
        output: mean tokens of an answer.
        block_size: tokens per block.
        seed: seed of all draws.
    """
    rng = np.random.default_rng(seed)
    inputs = template + lengths(rng, requests, message, 0.96)
    head = template // block_size
    counts: NDArray[np.int64] = -(-inputs // block_size)
    ids = [np.concatenate((np.arange(head), tail)) for tail in own(counts - head, head)]
    return from_lists(
        "support",
        poisson(rng, requests, per_s),
        inputs,
        lengths(rng, requests, output, 0.77),
        np.concatenate(ids),
        counts,
        block_size,
    )


def documents(
    count: int = 400,
    per_s: float = 0.5,
    document: float = 24_000,
    questions: float = QUESTIONS,
    question: float = 64,
    output: float = 128,
    pause_s: float = 10.0,
    spread: float = 0.5,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """Questions on long documents: each prompt is a document and one question on it.

    Source: LooGLE (arXiv 2311.04939): documents of 24,000 tokens and more, 776 documents, about
    6,000 questions. Questions on one document do not wait for each other's answers. The pause, the
    spread and the length of an answer are assumed.

    Args:
        count: number of documents.
        per_s: mean documents that are opened per second, a Poisson process.
        document: mean tokens of a document.
        questions: mean questions on a document, geometric.
        question: mean tokens of a question.
        output: mean tokens of an answer.
        pause_s: mean seconds between two questions on a document, exponential.
        spread: coefficient of variation of the lengths, which are log-normal.
        block_size: tokens per block.
        seed: seed of all draws.

    Raises:
        ReplayError: `questions` is below 1.
    """
    if questions < 1:
        raise ReplayError(f"got questions={questions}; expected at least 1")
    rng = np.random.default_rng(seed)
    asked = rng.geometric(1 / questions, count)
    total = int(asked.sum())
    of_document = np.repeat(np.arange(count), asked)
    pauses = rng.exponential(pause_s * 1e3, total)
    first = np.concatenate(([0], np.cumsum(asked)[:-1]))
    pauses[first] = 0.0
    since = np.cumsum(pauses)
    arrival = poisson(rng, count, per_s)[of_document] + since - since[first][of_document]
    sizes = lengths(rng, count, document, spread)
    inputs = sizes[of_document] + lengths(rng, total, question, spread)
    whole = sizes // block_size
    shared = own(whole, 0)
    counts: NDArray[np.int64] = -(-inputs // block_size)
    tails = own(counts - whole[of_document], int(whole.sum()))
    order = np.argsort(arrival, kind="stable")
    rows: list[int] = order.tolist()
    ids = [np.concatenate((shared[int(of_document[i])], tails[i])) for i in rows]
    outputs = lengths(rng, total, output, spread)
    return from_lists(
        "documents",
        arrival[order],
        inputs[order],
        outputs,
        np.concatenate(ids),
        counts[order],
        block_size,
    )


def crowds(
    requests: int = 10_000,
    per_s: float = 10.0,
    share: float = 0.5,
    crowd: float = 170.0,
    for_s: float = 5.0,
    prefix: int = 1_024,
    message: float = 1_024,
    output: float = 28,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """Sudden crowds: a background without sharing, and crowds that share one prefix, new each time.

    Source: Azure LLM inference 2023, code completion. A prompt has 2,048 tokens in the mean, an
    answer 28. Counts of arrivals in 10 s have a variance of 72 times their mean; a Poisson process
    has 1. Sizes and share of the crowds follow this figure. The shared prefix is assumed.

    Args:
        requests: number of requests.
        per_s: mean arrivals per second over background and crowds.
        share: share of the requests that belong to crowds, 0 to 1.
        crowd: requests of a crowd.
        for_s: seconds of a crowd, in which its requests arrive uniformly.
        prefix: tokens of a crowd's prefix.
        message: mean tokens of the rest of a prompt.
        output: mean tokens of an answer.
        block_size: tokens per block.
        seed: seed of all draws.

    Raises:
        ReplayError: `share` is not from 0 to 1, or `crowd` is below 1.
    """
    if not 0 <= share <= 1 or crowd < 1:
        raise ReplayError(f"got share={share} and crowd={crowd}; expected 0 to 1, and at least 1")
    rng = np.random.default_rng(seed)
    span_ms = requests / per_s * 1e3 if per_s > 0 else 0.0
    crowded = round(requests * share)
    groups = max(round(crowded / crowd), 1)
    of_crowd = np.arange(crowded) % groups
    begins = rng.uniform(0, span_ms, groups)
    arrival = np.concatenate(
        (
            begins[of_crowd] + rng.uniform(0, for_s * 1e3, crowded),
            poisson(rng, requests - crowded, per_s * max(1 - share, 1e-9)),
        )
    )
    head = prefix // block_size
    inputs = prefix + lengths(rng, requests, message, 0.96)
    counts: NDArray[np.int64] = -(-inputs // block_size)
    # A background request has a head of its own.
    heads = np.full(requests, head)
    heads[crowded:] = 0
    tails = own(counts - heads, groups * head)
    order = np.argsort(arrival, kind="stable")
    rows: list[int] = order.tolist()
    ids = tails.copy()
    for i, group in enumerate(of_crowd.tolist()):
        ids[i] = np.concatenate((np.arange(group * head, (group + 1) * head), tails[i]))
    return from_lists(
        "crowds",
        arrival[order],
        inputs[order],
        lengths(rng, requests, output, 2.1),
        np.concatenate([ids[i] for i in rows]),
        counts[order],
        block_size,
    )


def tenants(
    requests: int = 6_000,
    per_s: float = 8.0,
    agents: float = 0.3,
    questions: float = 0.1,
    bots: float = 0.6,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """Tenants of one fleet: agent loops, questions on documents and support bots at once.

    The shares are assumed; the parts have the defaults of `agent_loops`, `documents` and `support`.

    Args:
        requests: number of requests, about; agents and documents come in whole sessions.
        per_s: mean requests per second of all parts.
        agents: share of the requests that are calls of agents.
        questions: share of the requests that are questions on documents.
        bots: share of the requests that go to support bots.
        block_size: tokens per block.
        seed: seed of all draws.

    Raises:
        ReplayError: A figure is not positive, or no share is above 0.
    """
    shares = np.array([agents, questions, bots])
    if (shares < 0).any() or shares.sum() <= 0 or requests < 1 or per_s <= 0:
        raise ReplayError(
            f"got requests={requests}, per_s={per_s} and shares {shares.tolist()}; expected "
            "positive figures and shares of which one is above 0"
        )
    counts = requests * shares / shares.sum()
    rates = per_s * shares / shares.sum()
    parts: list[Workload] = []
    if counts[0]:
        sessions = max(round(counts[0] / _CALLS_PER_SESSION), 1)
        starts_per_s = rates[0] / _CALLS_PER_SESSION
        parts.append(agent_loops(sessions, float(starts_per_s), block_size=block_size, seed=seed))
    if counts[1]:
        opened = max(round(counts[1] / QUESTIONS), 1)
        parts.append(
            documents(opened, float(rates[1] / QUESTIONS), block_size=block_size, seed=seed + 1)
        )
    if counts[2]:
        messages = max(round(counts[2]), 1)
        parts.append(support(messages, float(rates[2]), block_size=block_size, seed=seed + 2))
    return merge("tenants", parts)


_CALLS_PER_SESSION = 44.7
"""Mean model calls of a session of `agent_loops` at its defaults, over 20,000 sessions."""


def merge(name: str, parts: list[Workload]) -> Workload:
    """One workload of several that share no block, on one clock.

    Args:
        name: name of the result.
        parts: the workloads; all have the same block size.

    Raises:
        ReplayError: the block sizes differ.
    """
    sizes = {part.block_size for part in parts}
    if len(sizes) != 1:
        raise ReplayError(f"got parts with block sizes {sorted(sizes)}; expected one size")
    arrival = np.concatenate([part.arrival_ms for part in parts])
    order = np.argsort(arrival, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    ids: list[NDArray[np.int64]] = []
    after: list[NDArray[np.int64]] = []
    first_id = first_row = 0
    sequence: list[int] = order.tolist()
    for part in parts:
        bounds = part.block_start.astype(np.int64)
        blocks = part.blocks.astype(np.int64) + first_id
        ids += [blocks[bounds[i] : bounds[i + 1]] for i in range(len(part))]
        waits = part.after != NO_PREDECESSOR
        rows = np.where(waits, part.after.astype(np.int64) + first_row, -1)
        after.append(np.where(waits, place[np.maximum(rows, 0)], -1))
        first_id += int(part.blocks.max(initial=0)) + 1
        first_row += len(part)
    inputs = np.concatenate([part.input_tokens for part in parts])[order]
    outputs = np.concatenate([part.output_tokens for part in parts])[order]
    pauses = np.concatenate([part.think_ms for part in parts])[order]
    sorted_ids = [ids[i] for i in sequence]
    return from_lists(
        name,
        arrival[order],
        inputs.astype(np.int64),
        outputs.astype(np.int64),
        np.concatenate(sorted_ids),
        np.array([one.size for one in sorted_ids]),
        sizes.pop(),
        np.concatenate(after)[order],
        pauses,
    )


def _calls(rng: np.random.Generator, median: float, max_calls: int) -> NDArray[np.bool_]:
    """Model calls of one session; True where a person asked, False where a tool answered."""
    if median <= 0 or max_calls < 1:
        raise ReplayError(
            f"got calls={median} and max_calls={max_calls}; expected above 0 and at least 1"
        )
    after_tool = median * np.exp(rng.normal(0.0, _CALLS_SIGMA))
    count = 1 + round(min(float(after_tool), max_calls) / (1 - _HUMAN_SHARE))
    is_human = rng.random(min(count, max_calls)) < _HUMAN_SHARE
    is_human[0] = True
    return is_human


class _Rows:
    """Rows of a workload of sessions."""

    def __init__(self, block_size: int, next_id: int) -> None:
        if block_size < 1:
            raise ReplayError(f"got block_size={block_size}; expected at least 1")
        self.block_size = block_size
        self.next_id = next_id
        self.columns: list[tuple[float, int, int, int, float]] = []
        self.ids: list[NDArray[np.int64]] = []

    def fresh(self, count: int) -> NDArray[np.int64]:
        """Ids that no prompt has had."""
        self.next_id += count
        return np.arange(self.next_id - count, self.next_id)

    def add(
        self, start_ms: float, context: _Context, output: int, after: int, think_ms: float
    ) -> int:
        """Add a request with the context as its prompt; returns its row."""
        tail = self.fresh(1 if context.tokens % self.block_size else 0)
        self.columns.append((start_ms, context.tokens, output, after, think_ms))
        self.ids.append(np.concatenate((context.chain, tail)))
        return len(self.columns) - 1

    def workload(self, name: str) -> Workload:
        """The rows as a workload."""
        starts, inputs, outputs, after, think_ms = (
            np.asarray(column) for column in zip(*self.columns, strict=True)
        )
        counts = np.asarray([ids.size for ids in self.ids])
        ids = np.concatenate(self.ids)
        return from_lists(
            name, starts, inputs, outputs, ids, counts, self.block_size, after, think_ms
        )


class _Context:
    """The tokens of a session's next prompt, and the ids of its whole blocks."""

    def __init__(self, rows: _Rows, head: int, system: int) -> None:
        self._rows = rows
        self._system_blocks = system // rows.block_size
        self.tokens = system
        self.chain: NDArray[np.int64] = np.arange(head, head + self._system_blocks)

    def grow(self, tokens: int) -> None:
        """Append tokens."""
        self.tokens += tokens
        missing = self.tokens // self._rows.block_size - self.chain.size
        self.chain = np.concatenate((self.chain, self._rows.fresh(missing)))

    def compact(self, tokens: int) -> None:
        """Keep the system prompt, and replace all after it by a new summary."""
        self.tokens = self._system_blocks * self._rows.block_size
        self.chain = self.chain[: self._system_blocks]
        self.grow(max(tokens - self.tokens, 0))
