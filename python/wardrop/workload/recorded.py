"""Requests of a recorded trace: the recorded lengths and shared prefixes, with made-up tokens.

Where it stands: between `wardrop.traces`, which reads the files, and a load driver. Each block id
becomes a fixed run of random tokens, so equal leading ids are an equal prefix.
"""

from __future__ import annotations

import numpy as np

from wardrop.traces import TraceError, TraceFile, TraceRow, spread_evenly
from wardrop.workload.turn import Tokens, Turn


def turns_of_trace(
    trace: TraceFile,
    *,
    seconds: float,
    requests_per_s: float | None = None,
    max_prompt_tokens: int = 1 << 20,
    first_token: int = 300,
    last_token: int = 7999,
    seed: int = 0,
) -> list[Turn]:
    """The requests at the beginning of a trace.

    Requests that share a timestamp are spread evenly up to the next timestamp. Load is scaled by
    dividing every gap by one factor, never by repeating rows. No request waits for another one: the
    recorded times already hold what users waited for.

    Args:
        trace: the recorded rows.
        seconds: length of the run after scaling; later rows are left out.
        requests_per_s: mean rate to scale to, over all rows; None keeps the rate of the trace.
        max_prompt_tokens: rows with longer prompts are left out, because a mock engine answers
            a prompt beyond its limit with nothing.
        first_token: smallest token id.
        last_token: largest token id.
        seed: seed of the tokens that stand for the block ids.

    Raises:
        TraceError: a row has no timestamp, no block size fits the rows, or no row is left.
    """
    trace = trace.by_arrival()
    tokens_of = _BlockTokens(trace.tokens_per_block(), first_token, last_token, seed)
    arrivals_s = spread_evenly(trace.arrival_s())
    scale = 1.0
    if requests_per_s is not None and arrivals_s[-1] > 0:
        scale = requests_per_s / (len(trace.rows) / arrivals_s[-1])
    turns: list[Turn] = []
    for number, (arrival_s, row) in enumerate(zip(arrivals_s.tolist(), trace.rows, strict=True)):
        if arrival_s / scale >= seconds:
            break
        if row.input_tokens <= max_prompt_tokens:
            tokens = tokens_of.prompt(number, row)
            turns.append(Turn(len(turns), arrival_s / scale, None, tokens, row.output_tokens))
    if not turns:
        raise TraceError(
            f"{trace.name}: no row is left of {len(trace.rows)}: none arrives within {seconds:g} s "
            f"with at most {max_prompt_tokens} prompt tokens; give more seconds or a higher rate"
        )
    return turns


class _BlockTokens:
    """The made-up tokens of block ids: the same id always stands for the same tokens."""

    def __init__(self, block_size: int, first_token: int, last_token: int, seed: int) -> None:
        self._block_size = block_size
        self._range = (first_token, last_token)
        self._seed = seed
        self._blocks: dict[int, Tokens] = {}

    def prompt(self, number: int, row: TraceRow) -> Tokens:
        """The prompt of a row; blocks without an id get tokens that no other row has."""
        parts = [self._block(block) for block in row.hash_ids]
        rest = row.input_tokens - self._block_size * len(parts)
        if rest > 0:
            parts.append(self._draw([self._seed, 4, number], rest))
        return np.concatenate(parts)[: row.input_tokens]

    def _block(self, block: int) -> Tokens:
        if block not in self._blocks:
            # A seed has no sign; a signed id and its unsigned form are one name.
            seed = [self._seed, 3, block % 2**64]
            self._blocks[block] = self._draw(seed, self._block_size)
        return self._blocks[block]

    def _draw(self, seed: list[int], count: int) -> Tokens:
        low, high = self._range
        rng = np.random.default_rng(seed)
        return rng.integers(low, high, size=count, dtype=np.uint32, endpoint=True)
