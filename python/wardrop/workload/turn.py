"""One request of a workload, and what can be said of many."""

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
        session: conversation it belongs to.
        time_s: arrival, seconds after the start; of a turn that follows another one, the think time
            between that one's last token and this one's departure.
        follows: index in the workload of the turn before, or None.
        tokens: the whole prompt.
        output_tokens: tokens to generate.
    """

    session: int
    time_s: float
    follows: int | None
    tokens: Tokens
    output_tokens: int


def reusable_share(turns: Sequence[Turn], block_size: int) -> float:
    """Share of prompt tokens in whole blocks that an earlier prompt of the workload began with.

    What an endless cache on a single worker would save; in [0, 1]. The order is that of the
    workload, so two requests in flight at once count as if the first had been cached already.
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
    """Figures that describe a workload: counts, prompt and output lengths, ideal reuse."""
    prompts = np.array([len(turn.tokens) for turn in turns])
    return {
        "requests": len(turns),
        "sessions": len({turn.session for turn in turns}),
        "prompt_tokens_mean": float(prompts.mean()),
        "prompt_tokens_p99": float(np.percentile(prompts, 99)),
        "output_tokens_mean": float(np.mean([turn.output_tokens for turn in turns])),
        "ideal_reuse": reusable_share(turns, block_size),
    }
