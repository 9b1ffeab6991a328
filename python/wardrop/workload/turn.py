"""One request of a workload, and figures of a whole workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A request.

    Attributes:
        session: Number of the conversation.
        time_s: Arrival in seconds after the start. For a request with `follows`, the think time in
            seconds after the last token of the previous turn.
        follows: Index of the previous turn in the workload; None for the first turn.
        tokens: The whole prompt.
        output_tokens: Tokens to generate.
    """

    session: int
    time_s: float
    follows: int | None
    tokens: Tokens
    output_tokens: int


def reusable_share(turns: Sequence[Turn], block_size: int) -> float:
    """Upper bound of prefix reuse with one unlimited cache: reused ÷ all prompt tokens, in [0, 1].

    A block counts as reused when an earlier prompt of the workload begins with the same blocks.
    Earlier means earlier in the list, also for requests that are in flight at the same time.

    Args:
        turns: The workload.
        block_size: Tokens per block; tokens after the last whole block are never reused.
    """
    seen: set[bytes] = set()
    reused = total = 0
    for turn in turns:
        total += len(turn.tokens)
        raw = turn.tokens.tobytes()
        whole = len(turn.tokens) // block_size
        prefix = b""
        ended = False
        for block in range(whole):
            content = raw[4 * block * block_size : 4 * (block + 1) * block_size]
            prefix = hash((prefix, content)).to_bytes(8, "little", signed=True)
            ended = ended or prefix not in seen
            reused += 0 if ended else block_size
            seen.add(prefix)
    return reused / total if total else 0.0


def summary(turns: Sequence[Turn], block_size: int) -> dict[str, float]:
    """Figures of a workload: counts, prompt and output lengths in tokens, and ideal reuse."""
    prompts = np.array([len(turn.tokens) for turn in turns])
    return {
        "requests": len(turns),
        "sessions": len({turn.session for turn in turns}),
        "prompt_tokens_mean": float(prompts.mean()),
        "prompt_tokens_p99": float(np.percentile(prompts, 99)),
        "output_tokens_mean": float(np.mean([turn.output_tokens for turn in turns])),
        "ideal_reuse": reusable_share(turns, block_size),
    }
