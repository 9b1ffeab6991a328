"""Requests as JSON bodies of the OpenAI API, with what Dynamo can add to its answers.

The engine is told to ignore its end token, so a reply is exactly as long as planned; usage and
worker ids come back with the answer and are what the reports are made of.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np

from wardrop.workload.turn import Tokens, Turn


def completion_body(model: str, turn: Turn, *, stream: bool = True) -> bytes:
    """`/v1/completions` with the prompt as token ids: nothing is left to tokenise."""
    return _encode({"model": model, "prompt": turn.tokens.tolist()}, turn, stream)


def chat_body(model: str, turn: Turn, *, stream: bool = True) -> bytes:
    """`/v1/chat/completions` with the prompt as text of one user message.

    Each token id becomes a made-up word, so the text shares prefixes exactly where the ids do; it
    has about 2.8 tokens of the embedded model per id.
    """
    content = text_of(turn.tokens)
    return _encode(
        {"model": model, "messages": [{"role": "user", "content": content}]}, turn, stream
    )


def text_of(tokens: Tokens) -> str:
    """One made-up word per token id, the same id always the same word."""
    words = _words()
    return " ".join(words[int(token) % len(words)] for token in tokens)


def _encode(head: dict[str, object], turn: Turn, stream: bool) -> bytes:
    body = head | {
        "max_tokens": turn.output_tokens,
        "ignore_eos": True,
        "stream": stream,
        "nvext": {"extra_fields": ["worker_id"]},
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return json.dumps(body, separators=(",", ":")).encode()


@cache
def _words() -> tuple[str, ...]:
    rng = np.random.default_rng(4)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return tuple("".join(rng.choice(letters, size=int(rng.integers(2, 8)))) for _ in range(4096))
