"""`wardrop demo` against a real Dynamo: what it leaves behind, and what it does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from tests.waiting import wait_until

from wardrop.demo.arms import has_native
from wardrop.demo.live_page import BROWSERS
from wardrop.dynamo.install import DynamoMissingError, dynamo_version

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

SHORT = ("--seconds", "6", "--workers", "2")
ENDLESS = ("--seconds", "600", "--workers", "2")
"""For tests that end a demo themselves: a busy machine cannot finish it first."""


def _obey_interrupts() -> None:
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Run:
    """A demo in a process of its own, recognisable by a mark that all its children inherit."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.mark = f"WARDROP_TEST_MARK={uuid.uuid4().hex}"
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        name, _, value = self.mark.partition("=")
        self.output = folder / "output.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wardrop", "demo", "--out", str(folder / "out"), *options],
                env={**os.environ, name: value, "TMPDIR": str(self.scratch), "COLUMNS": "200"},
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_obey_interrupts,
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def processes(self) -> list[int]:
        """Living processes with our mark."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def await_children(self, count: int) -> None:
        """Until the demo and `count` more run; so a test of the end has something to end."""

        def run() -> bool:
            assert self.process.poll() is None, self.text()
            return len(self.processes()) >= 1 + count

        wait_until(run, f"{count} children of the demo", 180)

    def await_nothing_left(self) -> None:
        wait_until(lambda: not self.processes(), "the end of the demo's processes")


@pytest.fixture(autouse=True)
def _dynamo() -> None:
    try:
        dynamo_version(sys.executable)
    except DynamoMissingError as error:
        pytest.skip(f"NO LIVE TEST RUNS: {error}")


def test_a_short_demo_leaves_table_figures_picture_and_page_and_nothing_else(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, *SHORT, "--json", str(tmp_path / "demo.json"))
    assert run.process.wait(500) == 0, run.text()
    text = run.text()
    for piece in ("Dynamo, round robin", "Dynamo, KV router", "Wardrop", "router CPU per request"):
        assert piece in text
    result = json.loads((tmp_path / "demo.json").read_text())
    wardrop = "wardrop_frontend" if has_native() else "wardrop"
    assert list(result["arms"]) == ["round_robin", "dynamo_kv", wardrop]
    planned = result["workload"]["requests"]
    for arm in result["arms"].values():
        figures = arm["figures"]
        assert (figures["requests"], figures["errors"]) == (planned, 0), figures["first_error"]
        assert 10 < figures["ttft_p50_ms"] <= figures["ttft_p95_ms"] < 60_000
        assert 5 < figures["itl_p50_ms"] < 1000
        assert 0 <= figures["cached_share"] <= result["workload"]["ideal_reuse"] + 0.01
        assert 1 <= figures["spread"]["aggregated"] <= 2
        assert 100 < figures["router_cpu_us"] < 1e6
        assert len(arm["curves"]["ttft_ms"]) == planned
    page = (tmp_path / "out" / "demo.html").read_text()
    assert page.count("<svg") == 2
    assert (tmp_path / "out" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    run.await_nothing_left()
    assert list(run.scratch.iterdir()) == []


def test_the_live_page_of_the_running_gateway_is_reached_and_pictured(tmp_path: Path) -> None:
    run = Run(tmp_path, *SHORT, "--door", "gateway")

    def page() -> tuple[int, bytes]:
        assert run.process.poll() is None, run.text()
        found = re.search(r"live page, while Wardrop runs: (http://\S+)", run.text())
        if found is None:
            return 0, b""
        try:
            with urlopen(found[1], timeout=5) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    wait_until(lambda: page()[0] == 200, "the live page", 300)
    assert b"/v1/live" in page()[1]
    assert run.process.wait(500) == 0, run.text()
    if any(shutil.which(name) for name in BROWSERS):
        assert (tmp_path / "out" / "live.png").read_bytes()[:4] == b"\x89PNG"
    run.await_nothing_left()
    assert list(run.scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_and_removes_everything(
    tmp_path: Path, number: signal.Signals
) -> None:
    run = Run(tmp_path, *ENDLESS)
    run.await_children(2)
    run.process.send_signal(number)
    assert run.process.wait(90) == 128 + number, run.text()
    run.await_nothing_left()
    assert list(run.scratch.iterdir()) == []


def test_a_killed_demo_takes_its_children_with_it(tmp_path: Path) -> None:
    run = Run(tmp_path, *ENDLESS)
    run.await_children(2)
    run.process.kill()
    run.process.wait(10)
    run.await_nothing_left()


def test_a_demo_that_can_not_start_an_arm_says_why_and_stops_everything(tmp_path: Path) -> None:
    run = Run(tmp_path, *SHORT, "--seconds", "1", "--dynamo-flags=--no-such-flag")
    assert run.process.wait(500) == 1
    assert "no-such-flag" in run.text()
    run.await_nothing_left()
    (kept,) = run.scratch.iterdir()  # the logs, and their place was named
    assert str(kept) in run.text().replace("\n", "")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--disagg", "2y4"), "PREFILLxDECODE"),
        (("--policy", "tolll"), "--policy: unknown policy"),
        (("--ramp", "--arms", "tol"), "--arms: got 'tol'"),
        (("--door", "window"), "--door: got 'window'"),
    ],
)
def test_a_bad_option_ends_before_anything_starts(
    tmp_path: Path, options: tuple[str, ...], text: str
) -> None:
    run = Run(tmp_path, *options)
    assert run.process.wait(90) == 2
    assert text in run.text()
    assert not (tmp_path / "out").exists()
