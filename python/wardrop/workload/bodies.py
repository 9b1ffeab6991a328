"""Requests as JSON bodies of the OpenAI API.

A body asks the engine to ignore its end token, so that a reply is exactly as long as planned. It
also asks for usage and worker ids, from which reports are made.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np

from wardrop.workload.turn import Tokens, Turn


def completion_body(model: str, turn: Turn, *, stream: bool = True) -> bytes:
    """A body for `/v1/completions` with the prompt as token ids, which needs no tokeniser."""
    return _encode({"model": model, "prompt": turn.tokens.tolist()}, turn, stream)


def chat_body(model: str, turn: Turn, *, stream: bool = True) -> bytes:
    """A body for `/v1/chat/completions` with the prompt as the text of one user message.

    Each token id becomes one made-up word, so texts share prefixes exactly where the ids do. The
    tokeniser of the embedded model makes about 2.8 tokens of one word.
    """
    content = text_of(turn.tokens)
    return _encode(
        {"model": model, "messages": [{"role": "user", "content": content}]}, turn, stream
    )


def text_of(tokens: Tokens) -> str:
    """One made-up word per token id; the same id always gives the same word."""
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
