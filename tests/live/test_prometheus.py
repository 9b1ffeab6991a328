"""A real Prometheus in front of a running router: every rule and every panel evaluates."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from tests.deploy.test_alerts import ALERTS, DASHBOARD, RULES, TARGETS
from tests.live.load import Load
from tests.live.router import running
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]

SILENT = {"left: {{reason}}"}
"""Legends of queries that are empty while the router abstains from nothing."""


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[str]:
    """A Prometheus that reads one router each second; its address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "wardrop", "static_configs": [{"targets": [target]}]}],
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(settings))  # YAML is a superset of JSON
    address = f"127.0.0.1:{free_port()}"
    log = (folder / "prometheus.log").open("w")
    process = subprocess.Popen(
        [
            program,
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=log,
        stderr=log,
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def ask(base: str, path: str, **query: str) -> dict:
    with urlopen(f"{base}{path}?{urlencode(query)}", timeout=10) as answer:
        return json.load(answer)["data"]


def value(base: str, expression: str) -> list[dict]:
    """Series of a query. An error names the expression."""
    try:
        return ask(base, "/api/v1/query", query=expression)["result"]
    except HTTPError as error:
        with error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None


def filled(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    for name in ("router", "model"):
        expression = expression.replace(f"${name}", ".+")
    return expression.replace("$__rate_interval", "30s")


def test_rules_and_panels_evaluate_on_a_running_router(tmp_path):
    spec = FleetSpec(workers=2, speedup_ratio=4, process_per_worker=False)
    with Fleet(spec) as fleet, running(fleet) as router, Load(router, 400, 8) as load:
        load.rate = 20
        prompt = random.Random(3).choices(range(300, 3000), k=40 * spec.block_size)
        with prometheus(router.url.removeprefix("http://"), tmp_path) as base:
            wait_until(lambda: is_up(base), "a scrape of the router")
            left: list[set[str]] = []

            def all_there() -> bool:
                router.complete(prompt)  # An answer with a count of cached tokens.
                left.append({target["expr"] for target in TARGETS if not has_series(base, target)})
                return not left[-1]

            try:
                wait_until(all_there, "series for every panel")
            except AssertionError:
                raise AssertionError(f"no series for {left[-1]}") from None
            wait_until(lambda: all(r["health"] == "ok" for r in rules(base).values()), "every rule")
            assert set(rules(base)) == {rule["alert"] for rule in ALERTS}
            firing = {name for name, rule in rules(base).items() if rule["state"] == "firing"}
            assert not firing, "nothing fires on a healthy router"
            for variable in DASHBOARD["templating"]["list"][1:]:
                named = variable["definition"].removeprefix("label_values(")[:-1]
                selector, _, label = named.rpartition(", ")
                found = ask(base, f"/api/v1/label/{label}/values", **{"match[]": filled(selector)})
                assert found, variable["name"]


def is_up(base: str) -> bool:
    """Whether Prometheus has started and has read the router."""
    try:
        return bool(ask(base, "/api/v1/query", query='up{job="wardrop"} == 1')["result"])
    except OSError:
        return False


def has_series(base: str, target: dict) -> bool:
    found = value(base, filled(target["expr"]))
    return bool(found) or target["legendFormat"] in SILENT


def rules(base: str) -> dict[str, dict]:
    groups = ask(base, "/api/v1/rules")["groups"]
    return {rule["name"]: rule for group in groups for rule in group["rules"]}
