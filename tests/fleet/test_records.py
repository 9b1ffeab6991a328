"""Recorded traffic becomes an experiment: `wardrop serve` records, replay and advise read."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.fleet.engine import BLOCK_TOKENS
from tests.fleet.test_serve import tokens
from typer.testing import CliRunner

from wardrop.commands.advise import app as advise_app
from wardrop.commands.replay import app as replay_app
from wardrop.config import Config, Records
from wardrop.replay.traces import workload_of
from wardrop.traces import read_trace

GAPS_S = (0.0, 0.15, 0.05, 0.3, 0.1, 0.2)


@pytest.fixture
def recorded(route, engines, tmp_path) -> tuple[Path, list[list[int]], list[float], list[int]]:
    """A folder of records, and what was sent: prompts, arrival times and answer lengths."""
    folder = tmp_path / "records"
    router = route(engines(), engines(), config=Config(records=Records(dir=str(folder))))
    shared = tokens(1, 4)[: 4 * BLOCK_TOKENS]
    prompts = [[*shared, *tokens(at + 2, 2)] if at % 2 else tokens(at + 20, 3) for at in range(6)]
    outputs = [3 + at for at in range(6)]
    sent_s: list[float] = []
    threads = []
    start_s = time.monotonic()
    due_s = 0.0
    for prompt, answer, gap_s in zip(prompts, outputs, GAPS_S, strict=True):
        due_s += gap_s
        time.sleep(max(start_s + due_s - time.monotonic(), 0))
        sent_s.append(time.monotonic())
        one = threading.Thread(
            target=router.complete, args=(prompt,), kwargs={"max_tokens": answer}
        )
        one.start()
        threads.append(one)
    for one in threads:
        one.join()
    router.gateway.stop()
    return folder, prompts, sent_s, outputs


def prefix_ids(prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """A small id for each distinct block with everything before it, in order of first use."""
    names: dict[tuple[int, ...], int] = {}
    return [
        tuple(
            names.setdefault(tuple(prompt[:end]), len(names))
            for end in range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS)
        )
        for prompt in prompts
    ]


def renamed(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    names: dict[int, int] = {}
    return [tuple(names.setdefault(block, len(names)) for block in row) for row in rows]


def test_trace_equals_what_was_sent(recorded):
    folder, prompts, sent_s, outputs = recorded
    trace = read_trace(folder)
    assert len(trace.rows) == len(prompts)
    assert trace.tokens_per_block() == BLOCK_TOKENS
    assert [row.input_tokens for row in trace.rows] == [len(prompt) for prompt in prompts]
    assert [row.output_tokens for row in trace.rows] == outputs
    assert renamed([row.hash_ids for row in trace.rows]) == prefix_ids(prompts)
    # A busy machine may hold up a request between its client and the router.
    assert np.abs(trace.arrival_s() - (np.array(sent_s) - sent_s[0])).max() < 0.1
    assert workload_of(trace).block_size == BLOCK_TOKENS


def test_replay_and_advise_read_the_folder(recorded, tmp_path):
    folder, prompts, _, _ = recorded
    out = tmp_path / "cells.json"
    ran = CliRunner().invoke(
        replay_app,
        [str(folder), "--policy", "round_robin,toll", "--workers", "2", "--json", str(out)],
    )
    assert ran.exit_code == 0, ran.output
    cells = json.loads(out.read_text())["cells"]
    assert [cell["figures"]["completed"] for cell in cells] == [len(prompts)] * 2
    arguments = [str(folder), "--workers", "2", "--loads", "1", "--seeds", "2", "--no-try-split"]
    advised = CliRunner().invoke(
        advise_app, [*arguments, "--no-try-workers", "--out", str(tmp_path / "advice")]
    )
    assert advised.exit_code == 0, advised.output
    assert (tmp_path / "advice" / "wardrop.yaml").exists()


def test_several_models_need_a_choice(recorded):
    folder, *_ = recorded
    [path] = folder.glob("requests-*.jsonl")
    other = [line.replace('"model":"m"', '"model":"n"') for line in path.read_text().splitlines()]
    (folder / "requests-9.jsonl").write_text("\n".join(other[:3]) + "\n")
    ran = CliRunner().invoke(replay_app, [str(folder), "--policy", "toll", "--workers", "2"])
    assert ran.exit_code == 2
    assert "models m (6), n (2); expected one model: choose it with --model" in ran.output
    assert len(read_trace(folder, model="n").rows) == 2
    assert len(read_trace(folder, model="m").rows) == 6
