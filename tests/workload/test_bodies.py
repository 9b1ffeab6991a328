"""Bodies say what the turn says."""

import json

import numpy as np

from wardrop.workload import Turn, chat_body, completion_body

TURN = Turn(0, 0.0, None, np.array([300, 301, 300], dtype=np.uint32), 7)


def test_a_completion_carries_the_tokens_and_the_length() -> None:
    body = json.loads(completion_body("tiny", TURN))
    assert body["prompt"] == [300, 301, 300]
    assert body["max_tokens"] == 7
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert "stream_options" not in json.loads(completion_body("tiny", TURN, stream=False))


def test_a_chat_says_the_same_word_for_the_same_token() -> None:
    body = json.loads(chat_body("tiny", TURN))
    words = body["messages"][0]["content"].split()
    assert len(words) == 3
    assert words[0] == words[2] != words[1]
