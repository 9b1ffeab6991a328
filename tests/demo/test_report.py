"""Table, picture and page say what the figures say, and stand alone."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from wardrop.demo.figures import Curves, Figures
from wardrop.demo.output import doubts
from wardrop.demo.picture import DARK, LIGHT, draw_png
from wardrop.demo.report import Page, html
from wardrop.demo.table import cells, lines, table

SLOW = Figures(
    requests=1000,
    errors=0,
    outcomes={"ok": 1000},
    ttft_p50_ms=200.0,
    ttft_p95_ms=600.0,
    ttft_p99_ms=900.0,
    ttft_mean_ms=250.0,
    itl_p50_ms=10.02,
    itl_p95_ms=40.0,
    cached_share=0.25,
    spread={"aggregated": 1.5},
    router_cpu_us=7000.0,
    gateway_cpu_us=None,
    elapsed_s=40.0,
    output_tokens=90_000,
    lateness_p99_ms=2.0,
    loop_lag_p99_ms=2.0,
    driver_cpu_share=0.05,
    first_error=None,
)
FAST = replace(SLOW, ttft_p50_ms=120.0, itl_p50_ms=10.04, cached_share=0.5, router_cpu_us=8000.0)
LABELS = ["slow", "fast & <new>"]


def some_curves(seed: int) -> Curves:
    rng = np.random.default_rng(seed)
    return Curves(
        ttft_ms=np.sort(rng.lognormal(5, 0.6, 200)),
        time_s=np.arange(1.0, 21.0, 2),
        ttft_p50_ms=rng.uniform(100, 200, 10),
        ttft_p95_ms=rng.uniform(300, 500, 10),
        cached_share=rng.uniform(0, 1, 10),
        pools=["aggregated"] * 4,
        load_time_s=np.arange(0, 20.5, 0.5),
        load=rng.uniform(0, 9, (4, 40)),
    )


def page() -> str:
    curves = [some_curves(1), some_curves(2)]
    settings = [("fleet", "4 workers")]
    numbers = [SLOW, FAST]
    return html(
        Page("Title", "Lead.", LABELS, numbers, curves, ["aggregated"], settings, "footnote")
    )


def best(name: str) -> list[bool]:
    line = next(line for line in lines(["aggregated"]) if line.name == name)
    return [is_best for _, is_best in cells(line, [SLOW, FAST])]


def test_the_better_figure_is_marked_whichever_way_is_better() -> None:
    assert best("time to first token, p50") == [False, True]
    assert best("cached prompt tokens") == [False, True]
    assert best("router CPU per request") == [True, False]


def test_figures_that_print_alike_have_no_winner() -> None:
    assert best("gap between tokens, p50") == [False, False]  # 10.02 and 10.04 both print 10.0
    assert best("requests") == [False, False]


def test_a_split_has_a_spread_for_each_pool() -> None:
    names = [line.name for line in lines(["prefill", "decode"])]
    assert "busiest worker ÷ mean, prefill" in names
    assert "busiest worker ÷ mean, decode" in names


def test_the_terminal_table_has_every_arm_and_line() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table(LABELS, [SLOW, FAST], ["aggregated"]))
    text = console.export_text()
    for piece in (*LABELS, "200", "120", "25.0", "50.0", "8,000"):
        assert piece in text


class Outside(HTMLParser):
    """Collects what a page would load and the ids it defines."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "d")):
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_names_everything() -> None:
    reader = Outside()
    text = page()
    reader.feed(text)
    assert reader.loads == []
    assert "@import" not in text
    assert "url(http" not in text
    for piece in ("Title", "fast & <new>", "4 workers", "busiest worker ÷ mean"):
        assert piece in reader.text
    assert "<new>" not in text  # escaped


def test_light_and_dark_pictures_stand_in_one_page() -> None:
    text = page()
    assert text.count("<svg") == 2
    assert LIGHT.arms[1].lower() in text.lower()
    assert DARK.arms[1].lower() in text.lower()


def test_the_png_has_ink_in_every_part(tmp_path: Path) -> None:
    path = tmp_path / "demo.png"
    draw_png(path, LABELS, [some_curves(1), some_curves(2)], "Title", "note")
    from matplotlib.image import imread

    image = imread(path)[:, :, :3]
    assert image.shape[0] > 1000
    assert image.shape[1] > 1500
    for rows in np.array_split(image, 4):
        for part in np.array_split(rows, 2, axis=1):
            assert part.std() > 0.02


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"lateness_p99_ms": 50.0}, "driver itself"),
        ({"loop_lag_p99_ms": 50.0}, "driver itself"),
        ({"itl_p50_ms": 0.001}, "in bundles"),
        ({"errors": 3, "outcomes": {"ok": 9, "timeout": 3}, "first_error": "x"}, "timeout"),
        ({"outcomes": {"ok": 9, "unsent": 1}}, "never sent"),
    ],
)
def test_reasons_to_doubt_the_figures_are_listed(change: dict[str, object], what: str) -> None:
    assert doubts(["a"], [SLOW]) == []
    (said,) = doubts(["a"], [replace(SLOW, **change)])
    assert what in said
