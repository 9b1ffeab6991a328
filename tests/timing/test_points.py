"""A timing table as the start of the learned curves."""

import json
from pathlib import Path

import numpy as np
import pytest

from wardrop._core import Gateway
from wardrop.config import Config, ConfigError, Control
from wardrop.dynamo.server import Server
from wardrop.timing import timing_points


def prefill_s(new: float) -> float:
    return 0.02 + 8e-5 * new + 4e-10 * new * new


def step_s(batch: float, kv: float) -> float:
    return 0.012 + 1e-4 * batch + 3e-8 * kv


def table(path: Path, **changed: object) -> Path:
    lengths = np.array([128.0, 1024, 4096, 8192, 32768])
    tokens, contexts = np.array([0.0, 4096, 65536, 500_000]), np.array([256.0, 2048, 16384])
    arrays = {
        "prefill_isl": lengths,
        "prefill_ttft_ms": 1e3 * np.array([prefill_s(n) for n in lengths]),
        "decode_active_kv_tokens": tokens,
        "decode_context_length": contexts,
        "decode_itl": np.array([[1e3 * step_s(k / c, k) for c in contexts] for k in tokens]),
    }
    np.savez(path, **{k: v for k, v in (arrays | changed).items() if v is not None})
    return path


def fleet_curves(timing) -> tuple[list[float], list[float]]:
    text = Config().gateway_json([], timing)
    gateway = Gateway(json.dumps(json.loads(text) | {"listen": "127.0.0.1:0"}))
    gateway.upsert_model(json.dumps({"name": "m", "block_size": 4}))
    gateway.upsert_worker(json.dumps({"model": "m", "role": "aggregated", "instance": 1}))
    (pool,) = json.loads(gateway.curves())
    gateway.stop()
    coefficients = pool["workers"][0]["coefficients"]
    return coefficients["prefill"], coefficients["step"]


def test_new_workers_start_at_the_tables_times(tmp_path):
    known, unknown = (
        fleet_curves(timing_points(table(tmp_path / "t.npz"))),
        fleet_curves(None),
    )
    for (p, d), is_known in ((known, True), (unknown, False)):
        prefill = [p[0] + p[1] * n + p[2] * n * n / 2 for n in (512, 6000, 20_000)]
        step = [d[0] + d[1] * b + d[2] * k for b, k in ((4, 10_000), (64, 200_000))]
        true = [prefill_s(n) for n in (512, 6000, 20_000)]
        true += [step_s(b, k) for b, k in ((4, 10_000), (64, 200_000))]
        errors = [abs(a / b - 1) for a, b in zip(prefill + step, true, strict=True)]
        assert (max(errors) < 0.1) is is_known, errors


def test_points_are_new_tokens_and_batches_that_an_engine_can_have(tmp_path):
    points = timing_points(table(tmp_path / "t.npz"))
    assert points["prefill"][0] == (128.0, 0.0, pytest.approx(prefill_s(128)))
    assert all(1 <= batch <= 1024 for batch, _, _ in points["step"])
    cached = np.array([0.0, 1000.0])
    both = 1e3 * np.array([[prefill_s(n + 0.1 * c) for c in cached] for n in range(100, 600, 100)])
    more = timing_points(
        table(
            tmp_path / "c.npz",
            prefill_isl=np.arange(100.0, 600, 100),
            prefill_cached=cached,
            prefill_ttft_ms=both,
        )
    )
    assert [point[:2] for point in more["prefill"][:2]] == [(100.0, 0.0), (100.0, 1000.0)]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"decode_itl": None}, "lacks decode_itl"),
        ({"prefill_ttft_ms": np.array([1.0])}, "prefill_ttft_ms has 1 figures, expected 5 x 1"),
    ],
)
def test_table_that_can_not_be_used_is_refused_at_start(tmp_path, changed, text):
    path = table(tmp_path / "t.npz", **changed)
    with pytest.raises(ConfigError, match=f"control.timing_table: .*{text}"):
        Server(Config(control=Control(timing_table=str(path))), [], {})


@pytest.mark.parametrize(
    ("content", "text"), [(None, "no timing table at"), (b"text", "timing table .*t.npz")]
)
def test_file_that_is_no_table_is_refused_at_start(tmp_path, content, text):
    path = tmp_path / "t.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        Server(Config(control=Control(timing_table=str(path))), [], {})


@pytest.mark.parametrize(
    ("routing", "text"),
    [
        ({"timing": {"prefill": [[1, 0, 0]]}}, r"routing.timing.prefill: got the point \(1.0, 0.0"),
        ({"timing": {"step": [[1, 1, 1]] * 50_001}}, "routing.timing.step: got 50001 points"),
        ({"handoff_s_per_token": -1}, "handoff_s_per_token"),
    ],
)
def test_bad_points_are_refused_by_the_gateway_too(routing, text):
    with pytest.raises(ValueError, match=text):
        Gateway(json.dumps({"routing": routing}))
