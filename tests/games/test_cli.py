"""The command line: every command answers, speaks JSON, explains itself, and fails with advice."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wardrop.commands.games import app

RUN = CliRunner()
COMMANDS = ["split", "caching", "routing", "poa", "coupled", "plots"]


def invoke(*arguments: str):
    return RUN.invoke(app, list(arguments), env={"COLUMNS": "100", "NO_COLOR": "1"})


def test_help_names_every_command_and_shows_examples() -> None:
    text = invoke("--help").output
    for command in COMMANDS:
        assert command in text
    assert "wardrop games split --trace" in text
    assert "Exit codes" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_documents_each_flag_with_its_variable(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert "WARDROP_" in result.output


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["routing", "--requests", "6"], {"price_of_anarchy", "four_cycle_residual_s"}),
        (["routing", "--requests", "4", "--workers", "2", "--overlap", "max"], {"equilibria"}),
        (["routing", "--requests", "40", "--workers", "4"], {"price_of_anarchy_at_least"}),
        (["routing", "--requests", "900", "--workers", "300"], {"certified_gap_s"}),
        (["poa", "--family", "affine", "--points", "3"], {"points"}),
        (["split", "--gpus", "16", "--requests", "300", "--brute-force"], {"share_of_best"}),
        (["caching", "--requests", "200", "--objects", "16"], {"price_of_today", "replication"}),
    ],
)
def test_json_is_one_object_with_its_assumptions(arguments: list[str], keys: set[str]) -> None:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.output)
    assert keys <= body.keys()
    assert body["assumptions"]
    plain = invoke(*arguments)
    assert plain.exit_code == 0
    assert "assumes" in plain.output


def test_split_reads_a_trace_and_marks_its_choice(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"input_length": 3000, "output_length": 50, "hash_ids": [1, 2, 3, 4, 5, 6]}
    path.write_text("\n".join(json.dumps(row | {"timestamp": 100 * i}) for i in range(200)))
    result = invoke("split", "--trace", str(path), "--gpus", "16", "--ttft", "0.5", "--itl", "0.03")
    assert result.exit_code == 0, result.output
    assert "prefill +" in result.output
    assert "> " in result.output
    assert "█" in result.output


def test_a_flag_can_come_from_its_variable() -> None:
    result = RUN.invoke(app, ["routing", "--json"], env={"WARDROP_REQUESTS": "3"})
    assert "3 requests" in json.loads(result.output)["title"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["split", "--gpus", "4"], "at least 2 workers"),
        (["split", "--gpus", "24", "--trace", "none.jsonl"], "expected a .jsonl or .csv file"),
        (["split", "--gpus", "24", "--ttft", "0"], "expected both > 0"),
        (["poa", "--family", "cubic"], "expected one of"),
        (["poa", "--points", "1"], "at least 2"),
        (["routing", "--overlap", "all"], "frozen, max, earlier or sum"),
        (["routing", "--requests", "0"], "at least 1"),
        (["caching", "--routing", "random"], "round_robin or affinity"),
        (["coupled", "--delay", "-1", "--workers", "1"], "at least 2"),
        (["plots", "--only", "x.png"], "expected one of"),
    ],
)
def test_wrong_input_exits_two_with_what_to_do(arguments: list[str], says: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_coupled_prints_a_recommendation() -> None:
    result = invoke("coupled", "--workers", "6", "--rate", "10", "--delay", "60", "--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.output)
    assert body["prefill_workers"] + body["decode_workers"] == 6
    assert body["dead_band_log_error"] > 0


def test_no_block_id_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"input_length": 512, "output_length": 5, "hash_ids": [987654321]}
    path.write_text("\n".join(json.dumps(row | {"timestamp": 100 * i}) for i in range(50)))
    for extra in ([], ["--json"]):
        assert "987654321" not in invoke("caching", "--trace", str(path), *extra).output
