from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from wardrop.dynamo.discovery import file_source
from wardrop.dynamo.discovery.file_source import FileSource
from wardrop.dynamo.discovery.file_store import entry_files


def write(root: Path, entries) -> None:
    """Bring a store to a content, as Dynamo does: whole files by rename, removals by unlink."""
    wanted = {}
    for bucket, items in entries.snapshot.items():
        for key, content in items.items():
            wanted[root / "v1" / bucket / quote(key, safe="")] = json.dumps(content)
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            draft = path.with_name(".draft")
            draft.write_text(text)
            draft.rename(path)
    for path in root.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()


def instances(view) -> list[int]:
    return sorted(key[2] for key in view.workers)


def test_joins_and_leaves_are_seen_while_running(tmp_path, entries):
    async def run() -> None:
        views = FileSource(tmp_path, 0.01).views()
        assert instances(await anext(views)) == []
        write(tmp_path, entries.worker(1).worker(2))
        while instances(view := await anext(views)) != [1, 2]:
            pass
        assert view.problems == ()
        del entries.snapshot["instances"]["dynamo/backend/generate/1"]
        write(tmp_path, entries)
        assert instances(await anext(views)) == [2]
        write(tmp_path, entries.worker(1))  # a worker that comes back
        assert instances(await anext(views)) == [1, 2]

    asyncio.run(asyncio.wait_for(run(), 10))


def test_half_written_file_keeps_what_it_said_before(tmp_path, entries):
    write(tmp_path, entries.worker(1))
    source = FileSource(tmp_path, 0.01)
    assert source._poll()
    card = tmp_path / "v1" / "mdc" / quote("dynamo/backend/generate/1", safe="")
    whole = card.read_text()
    card.write_text(whole[: len(whole) // 2])
    assert source._poll()
    view = source._view()
    assert instances(view) == [1]
    assert "mdc/dynamo/backend/generate/1 is not JSON" in view.problems[0]
    changed = json.loads(whole)
    changed["card_json"]["runtime_config"]["total_kv_blocks"] = 7
    card.write_text(json.dumps(changed))
    assert source._poll()
    (worker,) = source._view().workers.values()
    assert worker.total_kv_blocks == 7


def test_touched_file_is_no_change(tmp_path, entries):
    write(tmp_path, entries.worker(1))
    source = FileSource(tmp_path, 0.01)
    assert source._poll()
    for path in tmp_path.rglob("*"):
        os.utime(path)
    assert not source._poll()


def test_missing_store_is_reported_and_gives_an_empty_view(tmp_path):
    source = FileSource(tmp_path / "nowhere", 0.01)

    async def first():
        return await anext(source.views())

    view = asyncio.run(first())
    assert not view.workers
    assert "does not exist" in (source.last_error or "")


@pytest.mark.parametrize("comes_back", [False, True])
def test_store_that_goes_away_during_a_poll_leaves_the_last_view_in_force(
    tmp_path, entries, monkeypatch, comes_back
):
    write(tmp_path, entries.worker(1).worker(2))
    source = FileSource(tmp_path, 0.01)
    assert source._poll()

    def walk_a_moved_folder(base: Path):
        away = tmp_path / "away"
        if (tmp_path / "v1").exists():
            (tmp_path / "v1").rename(away)
        found = list(entry_files(base))
        if comes_back:
            away.rename(tmp_path / "v1")
        return found

    monkeypatch.setattr(file_source, "entry_files", walk_a_moved_folder)
    assert not source._poll()
    assert instances(source._view()) == [1, 2]
    assert "the last view stays in force" in str(source.last_error)
