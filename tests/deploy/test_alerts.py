"""Alert rules and dashboard: their forms, their runbooks, and promtool's verdict on each rule."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULE_TESTS = ROOT / "deploy" / "prometheus" / "alerts_test.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "wardrop.json").read_text())
RUNBOOK = ROOT / "docs" / "how-to" / "alerts.md"
ALERTS = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [rule["expr"] for rule in ALERTS] + [target["expr"] for target in TARGETS]
PARTS_OF_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def metric_names() -> set[str]:
    """Names of metrics in the sources, with the prefix."""
    text = "".join(path.read_text() for path in (ROOT / "rust").rglob("*.rs"))
    return {f"wardrop_{name}" for name in re.findall(r'"([a-z][a-z0-9_]+)"', text)}


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    ran = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, cwd=RULES.parent
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_expressions_name_metrics_that_the_router_has():
    known = metric_names()
    for expression in EXPRESSIONS:
        named = set(re.findall(r"wardrop_\w+", expression))
        unknown = {name for name in named if PARTS_OF_HISTOGRAM.sub("", name) not in known}
        assert not unknown, expression


def test_every_alert_has_a_runbook_and_a_summary():
    headings = set(re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert headings == {rule["alert"] for rule in ALERTS}
    for rule in ALERTS:
        anchor = rule["annotations"]["runbook"]
        assert anchor == f"docs/how-to/alerts.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_every_alert_fires_in_one_test_and_stays_silent_on_a_healthy_router():
    silent, firing = set(), set()
    for one in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for check in one["alert_rule_test"]:
            (firing if check["exp_alerts"] else silent).add(check["alertname"])
    assert silent == firing == {rule["alert"] for rule in ALERTS}


def test_promtool_accepts_the_rules():
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))


def test_promtool_runs_the_tests_of_the_rules():
    promtool("test", "rules", str(RULE_TESTS))


def test_panels_have_a_description_and_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["description"].endswith(".")
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
