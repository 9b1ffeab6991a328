"""Wrong command lines and files: exit code 2, a reason that names the input, and no traceback.

Each line is one mistake that a user makes. Nothing may start before the mistake is named.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wardrop.cli import main
from wardrop.commands import SUBCOMMANDS, TOPICS

FILES = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\n\n",
    "no_json.jsonl": b"hello\n",
    "other_keys.jsonl": b'{"a": 1}\n',
    "half_row.jsonl": b'{"timestamp": 0, "input_length": 5, "output_len',
    "text_length.jsonl": b'{"timestamp":0,"input_length":"x","output_length":1,"hash_ids":[1]}\n',
    "negative.jsonl": b'{"timestamp":0,"input_length":-5,"output_length":1,"hash_ids":[1]}\n',
    "no_gzip.jsonl.gz": b"not packed",
    "no_zstd.jsonl.zst": b"not packed",
    "columns.csv": b"a,b\n1,2\n",
    "time.csv": b"TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
    "list.yaml": b"- 1\n",
    "stage.yaml": b"routng: {}\n",
    "key.yaml": b"routing: {polcy: toll}\n",
    "value.yaml": b"http: {port: eighty}\n",
    "range.yaml": b"http: {port: 70000}\n",
    "broken.yaml": b"routing: [\n",
    "policy.yaml": b"routing: {policy: tol}\n",
    "table.npz": b"no table",
    "curves.json": b"{}",
}

SIMULATE = ("replay", "advise")
TRACE = "prefixes(requests=20)"

MISTAKES: list[tuple[str, str]] = [
    # The command line itself.
    ("", "usage"),
    ("replya", "replay"),
    ("--verison", "--version"),
    ("dynamo stray", "stray"),
    # Traces.
    *((f"{name} no-such-file.jsonl", "no-such-file.jsonl") for name in SIMULATE),
    *((f"{name} {{empty.jsonl}}", "no rows") for name in SIMULATE),
    ("replay {blank.jsonl}", "no rows"),
    ("replay {no_json.jsonl}", "no_json.jsonl:1"),
    ("replay {other_keys.jsonl}", "hash_ids"),
    ("replay {half_row.jsonl}", "half_row.jsonl:1"),
    ("replay {text_length.jsonl}", "input_length"),
    ("replay {negative.jsonl}", "input_length"),
    ("replay {no_gzip.jsonl.gz}", "cannot read"),
    ("replay {no_zstd.jsonl.zst}", "cannot read"),
    ("replay {columns.csv}", "ContextTokens"),
    ("replay {time.csv}", "TIMESTAMP"),
    ("replay .", "no decision records in ."),
    # Generators.
    ("replay prefixes(requests=0)", "requests"),
    ("replay prefixes(per_s=-1)", "-1 requests/s"),
    ("replay prefixes(request=5)", "request"),
    ("replay prefixes(requests=x)", "requests"),
    ("replay prefixes(requests=5", "NAME(parameter=value,…)"),
    ("replay agents(sessions=0)", "sessions"),
    # Policies.
    (f"replay {TRACE} --policy tol", "tol"),
    (f"replay {TRACE} --policy toll(ttf=1)", "ttf"),
    (f"replay {TRACE} --policy toll(ttft=-1)", "ttft"),
    (f"replay {TRACE} --policy toll+queu()", "queu"),
    (f"replay {TRACE} --policy toll+queue(kapa=1)", "kapa"),
    (f"replay {TRACE} --policy toll+queue(kappa=-1)", "kappa"),
    (f"replay {TRACE} --policy sticky(min_share=2)", "min_share"),
    (f"replay {TRACE} --policy toll(", "expected"),
    (f"replay {TRACE} --policy ''", "expected"),
    # Fleets, loads and limits.
    *((f"{name} {TRACE} --disagg 3", "PREFILLxDECODE") for name in SIMULATE),
    *((f"{name} {TRACE} --disagg 0x4", "PREFILLxDECODE") for name in SIMULATE),
    *((f"{name} {TRACE} --workers 0", "--workers") for name in SIMULATE),
    *((f"{name} {TRACE} --workers two", "--workers") for name in SIMULATE),
    *((f"{name} {TRACE} --timing none.npz", "none.npz") for name in SIMULATE),
    *((f"{name} {TRACE} --timing {{table.npz}}", "table.npz") for name in SIMULATE),
    *((f"{name} {TRACE} --part 0.9:0.1", "part") for name in SIMULATE),
    *((f"{name} {TRACE} --part a:b", "--part") for name in SIMULATE),
    *((f"{name} {TRACE} --polcy toll", "--pol") for name in ("replay",)),
    (f"replay {TRACE} --rate x", "--rate"),
    (f"replay {TRACE} --rate 0", "rate"),
    (f"replay {TRACE} --rate ,", "load"),
    (f"replay {TRACE} --concurrency 0", "concurrency"),
    (f"replay {TRACE} --seeds 0", "--seeds"),
    (f"replay {TRACE} --feed-loss 2", "--feed-loss"),
    (f"replay {TRACE} --tune toll", "grid"),
    (f"replay {TRACE} --tune dynamo --objective speed", "speed"),
    (f"replay {TRACE} --ttft-slo-s 0", "SLO"),
    (f"replay {TRACE} --json /no/such/folder/x.json", "/no/such/folder"),
    (f"replay {TRACE} --html /no/such/folder/x.html", "/no/such/folder"),
    (f"advise {TRACE} --objective speed", "speed"),
    (f"advise {TRACE} --loads 2", "1 among them"),
    (f"advise {TRACE} --seeds 1", "--seeds"),
    (f"advise {TRACE} --out /proc/none", "/proc/none"),
    # Configuration.
    ("config check no.yaml", "no.yaml"),
    ("config check {list.yaml}", "mapping"),
    ("config check {stage.yaml}", "routing"),
    ("config check {key.yaml}", "policy"),
    ("config check {value.yaml}", "http.port"),
    ("config check {range.yaml}", "70000"),
    ("config check {broken.yaml}", "YAML"),
    ("config check {policy.yaml}", "tol"),
    ("config chekc", "check"),
    ("dynamo --config no.yaml", "no.yaml"),
    ("dynamo --http-port 70000", "http.port"),
    ("dynamo --policy tol", "tol"),
    ("dynamo --policy-parameters ttft", "policy-parameters"),
    ("dynamo --queue-parameters kapa=3", "kapa"),
    ("dynamo --no-queue --queue-parameters kappa=3", "queue"),
    ("dynamo --tenant-weights gold=-1", "gold"),
    ("dynamo --upstream ftp://x:1", "ftp://x:1"),
    ("dynamo --predicted sometimes", "sometimes"),
    ("dynamo --shadows nothing", "nothing"),
    ("dynamo --polcy toll", "--pol"),
    # Commands that ask a running router.
    ("set kappa", "kappa"),
    ("set kappa=1 --url ftp://x", "ftp://x"),
    ("curves --url nonsense", "nonsense"),
    ("curves --restore no.json", "no.json"),
    ("shadows --url http://", "http://"),
    ("audit no.jsonl", "no.jsonl"),
    ("audit {no_json.jsonl}", "no_json.jsonl"),
    ("audit --last 0", "--last"),
    ("audit --event nothing", "nothing"),
    # Games and the demo.
    ("games split --gpus 8 --trace no.jsonl", "no.jsonl"),
    ("games split --gpus 1", "gpus"),
    ("games split", "--gpus"),
    ("games split --gpus 8 --ttft 0", "0.0"),
    ("games poa --family nothing", "nothing"),
    ("games routing --workers 0", "workers"),
    ("games spilt", "split"),
    ("demo --workers 0", "workers"),
    ("demo --disagg x", "PREFILLxDECODE"),
    ("demo --trace no.jsonl", "no.jsonl"),
    ("demo --policy tol", "tol"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("inputs")
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


def arguments(line: str, folder: Path) -> list[str]:
    words = ["" if word == "''" else word for word in line.split()]
    for name in FILES:
        words = [word.replace(f"{{{name}}}", str(folder / name)) for word in words]
    return words


@pytest.mark.parametrize(("line", "named"), MISTAKES, ids=[line or "-" for line, _ in MISTAKES])
def test_a_wrong_input_ends_with_2_and_names_itself(
    line: str,
    named: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as ended:
        main(arguments(line, folder))
    text = "".join(capfd.readouterr())
    assert ended.value.code == 2, text
    assert named in text
    assert "Traceback" not in text


def test_every_subcommand_has_one_topic():
    listed = [name for names in TOPICS.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(SUBCOMMANDS) <= set(listed)


@pytest.mark.parametrize("door", ["dynamo", "serve"])
def test_the_printed_defaults_are_a_file_without_a_change(door, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["config", "defaults", "--for", door])
    file = tmp_path / "defaults.yaml"
    file.write_text(capsys.readouterr().out)
    with pytest.raises(SystemExit) as ended:
        main(["config", "check", str(file), "--for", door, "--output", "json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == {}


def test_a_check_prints_what_differs(tmp_path, capsys):
    file = tmp_path / "own.yaml"
    file.write_text("routing: {policy: dynamo, queue: false}\n")
    with pytest.raises(SystemExit):
        main(["config", "check", str(file), "--output", "json"])
    assert json.loads(capsys.readouterr().out) == {
        "routing.policy": {"value": "dynamo", "default": "toll"},
        "routing.queue": {"value": False, "default": True},
    }


def test_the_schema_names_every_stage_and_type(capsys):
    with pytest.raises(SystemExit):
        main(["config", "schema"])
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["http"]["properties"]["port"]["type"] == "integer"
    assert schema["properties"]["predicted"]["properties"]["used"]["enum"] == [
        "off",
        "alone",
        "beside",
    ]
