"""What relaxing a limit of the fleet saves."""

import numpy as np
import pytest
from typer.testing import CliRunner

from wardrop.commands.replay import app
from wardrop.replay import Engine, Fault, Fleet, ReplayError, affine
from wardrop.replay.generate import generate
from wardrop.replay.limits import relaxed, what_is_lost
from wardrop.replay.run import Policy

TIMING = affine(prefill_per_token_ms=0.1, decode_base_ms=1.0)


def test_memory_and_workers_save_where_memory_binds():
    # Long answers in a small memory: requests wait for blocks.
    tight = Fleet(workers=2, engine=Engine(timing=TIMING, num_blocks=64))
    saved = {
        one.limit: one
        for one in what_is_lost(
            lambda seed: generate("prefixes(requests=200,per_s=10,prefix=64,output=512)", seed),
            tight,
            Policy("least_loaded"),
            [0, 1, 2],
        )
    }
    memory, worker = saved["unlimited KV memory"], saved["one more worker"]
    assert memory.e2e > 0.3
    assert worker.e2e > 0.05
    assert 0.0 < memory.e2e_low <= memory.e2e <= memory.e2e_high
    assert memory.seeds == 3


def test_nothing_is_lost_on_an_idle_fleet():
    idle = Fleet(workers=4, engine=Engine(timing=TIMING))
    requests = generate("prefixes(requests=40,per_s=0.2,groups=40,zipf=0)", 0)
    found = what_is_lost(lambda _: requests, idle, Policy("least_loaded"), [0])
    for one in (one for one in found if one.limit != "shared cache"):
        assert abs(one.e2e) < 0.06, one
        assert np.isnan(one.e2e_low)


def test_relaxed_worlds_of_a_split_fleet_and_of_a_queue():
    split = Fleet.split(1, 2, speeds=(1.0, 0.5, 0.5))
    worlds = relaxed(split, Policy("toll", queue={}))
    assert "pooled queue" not in worlds
    assert worlds["unlimited KV memory"][0].engine.curve_blocks == split.engine.num_blocks
    assert worlds["shared cache"][0].shared_cache
    assert worlds["one more prefill worker"][0].speeds == (1.0, 1.0, 0.5, 0.5)
    assert worlds["one more decode worker"][0].speeds == (1.0, 0.5, 0.5, 1.0)


def test_bad_input_is_refused():
    requests = generate("prefixes(requests=5)", 0)
    with pytest.raises(ReplayError, match="no seed"):
        what_is_lost(lambda _: requests, Fleet(workers=1), Policy("toll"), [])
    faulty = Fleet(workers=2, faults=(Fault(0.0, 1, "hang", 5.0),))
    with pytest.raises(ReplayError, match="faults"):
        what_is_lost(lambda _: requests, faulty, Policy("toll"), [0])


def test_command_shows_the_savings():
    arguments = ["prefixes(requests=60,per_s=20)", "--workers", "2", "--policy", "toll"]
    ran = CliRunner().invoke(app, [*arguments, "--lost", "--seeds", "2"])
    assert ran.exit_code == 0, ran.output
    assert "one more worker saves" in ran.output
