"""Sweeps resume, reports are self-contained, tuning is scored on held-out requests."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from wardrop.commands.replay import app
from wardrop.replay import Fleet, Policy, ReplayError
from wardrop.replay import sweep as sweeps
from wardrop.replay.chart import heat_ramp, png
from wardrop.replay.generate import generate
from wardrop.replay.report import html, verdict
from wardrop.replay.sweep import Cell, Plan, sweep
from wardrop.replay.table import COLUMNS, columns, means, tables
from wardrop.replay.tune import tune
from wardrop.slo import Slo


def plan(policies=("round_robin", "dynamo"), loads=(1.0, 3.0), seeds=(0, 1), requests=120):
    return Plan(
        lambda seed: generate(f"prefixes(requests={requests},per_s=40)", seed),
        Fleet(workers=3, sample_ms=200),
        [Policy(name) for name in policies],
        list(loads),
        list(seeds),
    )


def test_a_sweep_gives_its_cells_in_order_and_does_not_depend_on_threads():
    one, many = sweep(plan(), threads=1), sweep(plan(), threads=4)
    assert one == many
    assert [(c.policy, c.load, c.seed) for c in one][:3] == [
        ("round_robin", 1.0, 0),
        ("dynamo", 1.0, 0),
        ("round_robin", 1.0, 1),
    ]


def test_an_interrupted_sweep_goes_on_and_runs_no_cell_twice(tmp_path, monkeypatch):
    path = tmp_path / "cells.jsonl"
    whole = sweep(plan(), resume=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][: len(lines[3]) // 2])
    ran = []
    original = sweeps.run_cell
    monkeypatch.setattr(sweeps, "run_cell", lambda *rest: (ran.append(rest[0]), original(*rest))[1])
    again = sweep(plan(), resume=path)
    assert len(ran) == len(whole) - 3
    assert [c.figures for c in again] == [c.figures for c in whole]


def test_cells_of_another_workload_are_run_again(tmp_path):
    path = tmp_path / "cells.jsonl"
    sweep(plan(policies=("round_robin",), loads=(1.0,), seeds=(0,)), resume=path)
    other = plan(policies=("round_robin",), loads=(1.0,), seeds=(0,), requests=130)
    cells = sweep(other, resume=path)
    assert cells[0].figures["completed"] == 130


def test_an_empty_sweep_and_an_unknown_policy_are_errors():
    with pytest.raises(ReplayError):
        sweep(plan(loads=()))
    with pytest.raises(ValueError, match="nothing"):
        sweep(plan(policies=("nothing",)))


def test_the_report_is_self_contained_and_escapes_names():
    cells = sweep(plan())
    page = html({"trace": "<script>", "closed_loop": False}, cells, Slo())
    assert "<script>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.count("<figure>") == 8 + 2 * (2 + 2)
    assert page.count("data:image/png;base64") == 4


def cell(policy, value, seed):
    return Cell(policy, 1.0, seed, {"ttft_mean_s": value})


def test_a_verdict_calls_no_winner_while_seeds_overlap():
    apart = [cell("a", 1.0, 0), cell("a", 1.1, 1), cell("b", 1.2, 0), cell("b", 1.3, 1)]
    assert "b is 19.0 % behind" in verdict(apart, "ttft_mean_s", "s")[0]
    mixed = [cell("a", 1.0, 0), cell("a", 1.25, 1), cell("b", 1.2, 0), cell("b", 1.3, 1)]
    assert "no clear winner" in verdict(mixed, "ttft_mean_s", "s")[0]


def test_pixels_come_back_from_the_png():
    zlib = pytest.importorskip("zlib")
    pixels = heat_ramp(np.linspace(0, 1, 12).reshape(3, 4))
    raw = png(pixels)
    start = raw.index(b"IDAT") + 4
    rows = zlib.decompress(raw[start : raw.index(b"IEND") - 8])
    stride = 1 + 4 * 3
    body = b"".join(rows[i * stride + 1 : (i + 1) * stride] for i in range(3))
    assert body == pixels.tobytes()


def test_tuning_is_scored_on_the_part_that_was_not_searched():
    tuned = tune(
        plan(policies=("dynamo",), loads=(4.0,), seeds=(0,), requests=400),
        grid={"prefill_load_scale": [1.0, 4.0], "router_temperature": [0.0, 0.5]},
    )
    assert tuned.searched <= 1.0
    assert 2 <= tuned.tried <= 9
    assert {c.figures["completed"] for c in tuned.cells} == {200.0}


def test_tuning_asks_for_one_policy_with_a_grid():
    with pytest.raises(ReplayError, match="expected one"):
        tune(plan())
    with pytest.raises(ReplayError, match="no grid"):
        tune(plan(policies=("round_robin",)))
    with pytest.raises(ReplayError, match="objective"):
        tune(plan(policies=("dynamo",)), objective="beauty")


LONG = "dynamo(router_temperature=0.5,prefill_load_scale=2)+queue(kappa=10)"


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_a_terminal_and_cut_no_figure(width):
    cells = sweep(replace(plan(policies=("round_robin",)), policies=[Policy.parse(LONG)]))
    console = Console(width=width, record=True, file=io.StringIO())
    for part in tables(cells, width=width):
        console.print(part)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for load, rows in means(cells).items():
        for name, _, digits in columns(cells):
            assert f"{rows[LONG][name]:.{digits}f}" in text, (load, name)


def test_a_piped_table_has_one_line_for_each_load_and_policy():
    ran = CliRunner().invoke(app, ["paper(requests=20)", "--policy", f"round_robin,{LONG}"])
    assert ran.exit_code == 0, ran.output
    (line,) = [line for line in ran.stdout.splitlines() if LONG in line]
    assert len(line.split()) == 2 + len(COLUMNS)
    assert "…" not in ran.stdout


def test_a_bad_policy_is_refused_before_anything_is_drawn():
    ran = CliRunner().invoke(app, ["paper(requests=20)", "--policy", "toll,tolll"])
    assert ran.exit_code == 2
    assert ran.stderr.startswith("wardrop replay: ")
    assert "tolll" in ran.stderr
    assert "simulations" not in ran.stderr


def test_the_command_writes_all_three_forms(tmp_path):
    out = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html")}
    arguments = ["prefixes(requests=80,per_s=20)", "--rate", "1,2", "--seeds", "2"]
    arguments += ["--policy", "round_robin,dynamo(router_temperature=0.5)", "--workers", "2"]
    for kind, path in out.items():
        arguments += [f"--{kind}", str(path)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert len(json.loads(out["json"].read_text())["cells"]) == 8
    assert len(out["csv"].read_text().splitlines()) == 9
    assert out["html"].read_text().startswith("<!doctype html>")
    assert "dynamo(router_temperature=0.5)" in out["csv"].read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-file.jsonl"],
        ["paper", "--policy", "nothing"],
        ["paper", "--rate", "fast"],
        ["paper", "--disagg", "3"],
        ["paper", "--part", "0.9:0.1"],
    ],
)
def test_the_command_names_bad_input_and_exits_with_2(arguments):
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 2
    assert "wardrop replay" in ran.output


def test_the_command_tunes(tmp_path):
    ran = CliRunner().invoke(
        app, ["prefixes(requests=120,per_s=60)", "--tune", "dynamo", "--workers", "2"]
    )
    assert ran.exit_code == 0, ran.output
    assert "on the part held out" in ran.output
