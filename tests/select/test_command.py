"""The command `wardrop select` with the file of its guide."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.picker.processes import ROOT, Process, call

PAGE = (ROOT / "docs/how-to/select.md").read_text()


def test_the_command_serves_the_workers_of_its_file(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "select.yaml"
    file.write_text(block)
    command = [sys.executable, "-m", "wardrop", "select", "--config", str(file)]
    command += ["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    process = Process(command, tmp_path / "select.log")
    try:
        url = "http://" + process.find(r"HTTP on (127\.0\.0\.1:\d+)")
        assert call("GET", f"{url}/ready").body["schedulable_workers"] == 1
        chosen = call("POST", f"{url}/select", {"model_name": "m", "token_ids": [1, 2, 3]})
        assert chosen.body["endpoint"] == "http://10.0.0.1:8000"
        assert process.terminate() == 0
    finally:
        process.kill()


def test_wrong_settings_are_refused_with_a_text(tmp_path: Path) -> None:
    file = tmp_path / "select.yaml"
    for content, named in [
        ("routing: {queue: true}", "expected false"),
        ("routing: {policy: nothing}", "nothing"),
        ("worker: []", "worker"),
        ("workers: [{worker_id: -1}]", "not a worker"),
    ]:
        file.write_text(content)
        command = [sys.executable, "-m", "wardrop", "select", "--config", str(file)]
        process = Process(command, tmp_path / "select.log")
        assert process.child.wait(60) == 2, process.text()
        assert named in process.text()
        assert "Traceback" not in process.text()
