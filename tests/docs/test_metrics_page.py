"""Names and labels of all metrics, as the generated page lists them from the sources."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location(
    "reference_metrics", ROOT / "docs" / "_ext" / "reference_metrics.py"
)
assert SPEC is not None
assert SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)

ROW = re.compile(r"\| `(wardrop_\w+)` \| (\w+) \| ([^|]+) \| (.+) \|$")
ROWS = [ROW.fullmatch(line) for line in reference.page(ROOT / "rust").splitlines() if "`w" in line]
METRICS = [found.groups() for found in ROWS if found is not None]

MEANINGS = {
    "model": "name of a model",
    "worker_id": "instance of a worker",
    "dp_rank": "rank of a worker",
    "worker_type": "role of a worker",
    "mode": "mode of the trust in the index",
    "policy": "name of a policy",
    "statistic": "mean, a percentile, or a ratio of sums",
    "relaxed": "limit of the fleet that a shadow relaxes",
    "figure": "figure of a shadow that is compared",
    "latency": "ttft or itl",
    "source": "what a cost was lost to",
    "stage": "stage of a decision",
    "result": "what became of the counted thing",
    "reason": "why the counted thing happened",
    "code": "HTTP status",
    "error_code": "code of an error in the router's own answers",
    "limit": "limit that refused a request",
    "wait": "what a client was awaited for",
    "part": "part of the process",
    "setting": "name of a setting",
    "way": "how the two parts of a split request went",
    "misfit": "what shows that the price does not fit",
    "time": "first_token or step: the time that was predicted",
}
"""Every label with its one meaning."""


@pytest.mark.parametrize(("name", "kind"), sorted({metric[:2] for metric in METRICS}))
def test_a_counter_ends_with_total_and_nothing_else_does(name: str, kind: str) -> None:
    assert (kind == "counter") == name.endswith("_total")
    assert not re.search(r"_(ms|us|minutes|kib|mib)(_|$)", name), "base units: seconds and bytes"


def test_every_label_has_one_stated_meaning() -> None:
    labels = {label for *_, shown, _ in METRICS for label in re.findall(r"`(\w+)`", shown)}
    assert labels == set(MEANINGS)


def test_no_label_carries_several_quantities() -> None:
    assert "quantity" not in MEANINGS
    shown = {name: labels for name, _, labels, _ in METRICS}
    assert shown["wardrop_control_regime"] == "–"
    assert shown["wardrop_limit_all_bodies_bytes"] == "–"
