"""The command `wardrop serve`: the examples of its page, and wrong inputs."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fleet.letters import model_folder
from tests.waiting import DEADLINE_S, wait_until

from wardrop.dynamo.child_process import bound_to_parent
from wardrop.dynamo.ports import free_port
from wardrop.fleet.spec import read_fleet

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve-engines.md"


def wardrop(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wardrop", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)


def moved(text: str, engines) -> str:
    """An example of the page, with the sockets of scripted engines."""
    for number, engine in enumerate(engines, 1):
        for port, own in (
            (8000, engine.port),
            (5557, engine.events.events_port),
            (5558, engine.events.replay_port),
        ):
            text = text.replace(f"10.0.0.{number}:{port}", f"127.0.0.1:{own}")
    return text


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("source", ["flags", "file"])
def test_example_of_the_page_serves(engines, tmp_path: Path, source: str):
    pair = [engines(model="llama"), engines(model="llama")]
    folder = model_folder(tmp_path)
    start, from_file = [b for b in blocks("console") if "wardrop serve" in b]
    if source == "flags":
        line = start[start.index("wardrop serve") :].replace("\\\n", " ")
    else:
        fleet = tmp_path / "fleet.yaml"
        fleet.write_text(moved(blocks("yaml")[0], pair).replace("/models/llama", str(folder)))
        assert len(read_fleet(fleet).workers) == 2
        line = from_file.replace("fleet.yaml", str(fleet))
    port = free_port()
    line = moved(line, pair).replace("/models/llama", str(folder)).replace("8080", str(port))
    command = [sys.executable, "-m", *shlex.split(line), "--admin-port", "-1"]
    running = subprocess.Popen(
        bound_to_parent(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:

        def complete() -> int:
            assert running.poll() is None, running.stdout.read()
            body = json.dumps({"model": "llama", "prompt": "a" * 100, "max_tokens": 1})
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            try:
                connection.request(
                    "POST", "/v1/completions", body, {"content-type": "application/json"}
                )
                return connection.getresponse().status
            except OSError:
                return 0
            finally:
                connection.close()

        wait_until(lambda: complete() == 200, "an answer of an engine")
        # The text is known as tokens, so nothing was placed by load alone.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        connection.close()
        assert re.search(r'wardrop_abstentions_total{.*reason="no_tokeniser".*} 0', page)
        running.send_signal(signal.SIGTERM)
        assert running.wait(DEADLINE_S) == 0
    finally:
        if running.poll() is None:
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
        running.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "got no worker; add --worker http://HOST:PORT, or --fleet FILE"),
        (("--worker", "localhost:8000"), "url: got 'localhost:8000', expected http://HOST:PORT"),
        (("--worker", "ftp://a:1"), "expected http://HOST:PORT"),
        (("--worker", "http://a:1,evnts=tcp://a:2"), "got the field 'evnts'"),
        (("--worker", "http://a:1,ranks=x"), "ranks: got 'x', expected a whole number"),
        (("--worker", "http://a:1,replay=tcp://a:2"), "without events"),
        (("--worker", "http://a:1,events=tcp://a:65535,ranks=2"), "would be 65536"),
        (("--worker", "http://a:1", "--worker", "http://a:1/"), "twice"),
        (("--worker", "http://a:1", "--tokenizer", "/no/folder"), "which is no folder"),
        (("--worker", "http://a:1", "--policy", "tol"), 'unknown policy "tol"'),
        (("--fleet", "/no/file"), "/no/file: cannot be read as YAML"),
        (("--worker", "http://a:1", "--fleet-poll-interval-ms", "1"), "expected 50 to 60000"),
    ],
)
def test_wrong_input_ends_with_code_2_and_its_reason(arguments, says):
    ran = wardrop("serve", *arguments)
    assert (ran.returncode, says in ran.stderr) == (2, True), ran.stderr
    assert "Traceback" not in ran.stderr


def test_file_with_a_wrong_key_names_the_place(tmp_path: Path):
    file = tmp_path / "fleet.yaml"
    for text, says in (
        ("workers: [{url: 'http://a:1', rank: 2}]", "got the field 'rank'"),
        ("workers: [{events: 'tcp://a:1'}]", "field 'url' is missing"),
        ("workers: [{url: 'http://a:1'}, {url: 'tcp://a:1'}]", "workers[1]: url: got 'tcp://a:1'"),
        ("models: [{name: m, block_size: 0}]", "block_size: got 0"),
        ("workers: 3", "workers: got 3, expected a list"),
        ("[", "cannot be read as YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(says)):
            read_fleet(file)
