"""Many models: equal files are read once, and the number of models is bounded."""

import json
import resource
from pathlib import Path

import pytest
from tests.gateway.test_prompt_files import TOKENIZER, write_model

MODELS = 100
MAX_MODELS = 1024


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def model(name: str, folder: Path | None = None, checksum: str = "c") -> str:
    fields = {"name": name, "block_size": 4, "checksums": [checksum]}
    return json.dumps(fields | ({"folder": str(folder)} if folder else {}))


def test_models_with_equal_files_share_one_tokeniser(serve, tmp_path: Path):
    words = {f"word{number}": number for number in range(60_000)}
    tokenizer = {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": {"[UNK]": 60_000, **words}}}  # type: ignore[dict-item]
    folder = write_model(tmp_path, tokenizer__json=tokenizer)
    running = serve(prompt={"handover": False})
    running.gateway.upsert_model(model("first", folder))
    before = resident_bytes()
    for number in range(MODELS):
        running.gateway.upsert_model(model(f"m{number}", folder))
    grown = resident_bytes() - before
    size = (folder / "tokenizer.json").stat().st_size
    assert grown < MODELS * size / 4, f"{grown} bytes for {MODELS} models with files of {size}"
    reports = {report["name"]: report for report in running.status()["models"]}
    assert all(reports[f"m{number}"]["has_tokeniser"] for number in range(MODELS))
    assert not any(reports[f"m{number}"]["problems"] for number in range(MODELS))


def test_a_model_beyond_the_limit_is_refused_and_counted(serve):
    running = serve(workers=(1,))
    for number in range(MAX_MODELS - 1):  # the fixture has registered one model
        running.gateway.upsert_model(model(f"m{number}"))
    with pytest.raises(ValueError, match=f"one more model than the {MAX_MODELS}"):
        running.gateway.upsert_model(model("last"))
    assert running.metric("models_refused_total") == 1
    running.gateway.upsert_model(model("m0", checksum="d"))  # a change of a known model
    running.gateway.remove_model("m1")
    running.gateway.upsert_model(model("last"))
    status, _, _ = running.complete([1, 2, 3, 4])
    assert status == 200
