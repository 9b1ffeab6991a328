"""`wardrop top`: the screen, and the command in front of a gateway."""

from __future__ import annotations

import http.server
import io
import threading

import msgspec
import pytest
from rich.console import Console
from tests.service.test_live_page import gateway_of, served
from typer.testing import CliRunner

from wardrop.commands.top import app
from wardrop.dynamo.ports import free_port
from wardrop.service.live.observation import (
    Anarchy,
    BoundFigure,
    Curve,
    CurveEvidence,
    Pool,
    PriceOfAnarchy,
    Worker,
)
from wardrop.service.live.percentiles import Percentiles
from wardrop.service.live.problems import Problem
from wardrop.service.live.snapshot import SCHEMA, ModelSnapshot, Snapshot, Viewers
from wardrop.terminal.numbers import seconds
from wardrop.terminal.top import render_top

CURVE = Curve([0.01, 0.05, 0.1, 0.2, 0.3], 0.02, 7, 7)


def worker(instance: int, **changes: object) -> Worker:
    made = Worker(
        str(instance),
        0,
        True,
        None,
        "synced",
        "exact",
        1.0,
        300,
        512,
        4,
        1024,
        2048,
        1.0,
        0,
        30,
        1000,
        970,
        CURVE,
    )
    return msgspec.structs.replace(made, **changes)


PRICE = PriceOfAnarchy(
    BoundFigure(1.4, None, None, 90),
    BoundFigure(2.1, 2.0, 2.2, 90),
    None,
    None,
    9,
    2.0,
    CurveEvidence(100, 100, 0.1, 0.25),
    0,
    0,
    50,
    0.01,
)


def snapshot(
    *workers: Worker,
    name: str = "m",
    problems: tuple[Problem, ...] = (),
    price: PriceOfAnarchy | None = PRICE,
) -> Snapshot:
    pool = Pool("aggregated", 2, 0.4, Anarchy(1.25, 1.2, 1.3, 9, 0.1, 0.05, 0.2), list(workers))
    point = {"running": 8.0, "waiting": 2.0}
    latency = Percentiles(0.066, 0.1, 0.133, 50)
    model = ModelSnapshot(name, 16, latency, None, price, [pool], list(problems), point)
    control = {"arrivals_per_second": 12.5, "knee_share": 0.7}
    return Snapshot(SCHEMA, 1e9, "transition", control, [model], 0, Viewers())


def text_of(shown: Snapshot, most_workers: int = 40, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_top(shown, most_workers))
    return console.export_text()


def test_screen_has_the_facts_of_the_page():
    ill = worker(11554574342565143337, available=False, fault="silent")
    problem = Problem("failure", "1 worker unavailable: …143337.")
    text = text_of(snapshot(worker(1), ill, problems=(problem,)))
    for expected in (
        "regime transition",
        "load against the knee 0.70",
        "arrivals 12.50 /s",
        "1 worker unavailable: …143337.",
        "TTFT p50 66 ms p99 133 ms",
        "ITL –",
        "price of anarchy at most",
        "TTFT 1.40",
        "E2E 2.10 (2.00 to 2.20)",
        "curve error 25 %",
        "loss of a decision 1.25",
        "1.20 to 1.30",
        "lost by placing: cache 10 %",
        "1 of 2 available",
        "97 %",
        "50 ms",
    ):
        assert expected in text, expected
    rows = [line for line in text.splitlines() if "143337 " in line or "│ 1 " in line]
    assert "silent" in rows[0], "the worst worker comes first"


def test_price_of_anarchy_that_is_missing_says_why():
    missing = msgspec.structs.replace(PRICE, ttft=None, e2e=None, missing="no_curves")
    assert "the latency curves have too few samples" in text_of(snapshot(worker(1), price=missing))
    assert "at most" not in text_of(snapshot(worker(1), price=None))


def test_healthy_fleet_says_so_and_markup_in_names_is_text():
    text = text_of(snapshot(worker(1), name="[red]m[/red]"))
    assert "All workers are available" in text
    assert "[red]m[/red]" in text


def test_workers_beyond_the_screen_are_counted():
    text = text_of(snapshot(*(worker(n) for n in range(64))), most_workers=10)
    assert "54 more workers are not shown" in text
    assert text.count("synced") == 10


def test_command_prints_one_screen_of_a_running_router():
    with gateway_of(("m", "aggregated", (1, 2))) as gateway, served(gateway) as api:
        ran = CliRunner().invoke(app, ["--once", "--url", api.url], env={"COLUMNS": "120"})
        assert ran.exit_code == 0, ran.output
        assert "aggregated: 2 of 2 available" in ran.output


def test_no_router_is_one_line_and_exit_code_1():
    ran = CliRunner().invoke(app, ["--once", "--url", f"http://127.0.0.1:{free_port()}"])
    assert ran.exit_code == 1
    assert "no admin API answers" in ran.output


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "ended the stream without a snapshot"),
        (b'event: snapshot\ndata: {"schema": "other"}\n\n', f"expected the schema {SCHEMA}"),
    ],
)
def test_stream_of_another_form_is_refused(body, text):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        ran = CliRunner().invoke(app, ["--once", "--url", url])
        thread.join()
    assert ran.exit_code == 1
    assert text in ran.output


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0996, "100 ms"),
        (0.9996, "1000 ms"),
        (9.996e-4, "1000 µs"),
        (9.6e-6, "9.6 µs"),
        (99.96, "100 s"),
        (1234.5, "1234 s"),
        (0.0123, "12 ms"),
        (0, "0 s"),
    ],
)
def test_times_are_written_without_an_exponent(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize("width", [44, 64, 80, 96, 110, 132])
def test_a_narrow_screen_leaves_columns_out_and_cuts_nothing(width):
    degraded = worker(3, trust_mode="load_only", trust_score=0.12)
    screen = text_of(snapshot(worker(1), degraded), width=width)
    # Names of workers are shortened with an ellipsis at their start alone.
    assert "…" not in screen
    for always in ("worker", "state", "requests", "load only 12 %", "loss of a decision 1.25"):
        assert always in " ".join(screen.split()), screen
    assert ("as predicted" in screen) == (width >= 96)
    assert ("2k prefill" in screen) == (width >= 64)
