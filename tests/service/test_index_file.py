"""The file of the index: read once, written whole or not at all, and never a reason to fail."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from wardrop._core import Gateway
from wardrop.config import Config, ConfigError, IndexFile, load
from wardrop.dynamo.server import Server
from wardrop.service.index_file import SavedIndex

POOL = ("m", "aggregated")


@pytest.fixture
def gateway():
    made = Gateway(json.dumps({"listen": "127.0.0.1:0"}))
    made.upsert_model(json.dumps({"name": "m", "block_size": 4}))
    made.upsert_worker(json.dumps({"model": "m", "role": "aggregated", "instance": 1}))
    made.upsert_worker(json.dumps({"model": "m", "role": "decode", "instance": 2}))
    feed = {"topic": "kv-events", "model": "m", "role": "aggregated", "publisher_id": 77}
    made.subscribe(json.dumps({**feed, "endpoint": "tcp://127.0.0.1:1", "instance": 1}))
    made.begin_dump("m", "aggregated")
    made.load_dump("m", "aggregated", "[]")  # known as a whole: it holds nothing
    yield made
    made.stop()


def saved_index(gateway, path: Path, **settings) -> SavedIndex:
    return SavedIndex(gateway, IndexFile(file=str(path), **settings), dump_follows=True)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_file_is_written_whole_and_read_back(gateway, tmp_path, caplog):
    path = tmp_path / "index"
    with caplog.at_level("INFO"):
        kept = saved_index(gateway, path)
        kept.load()
        asyncio.run(kept.save())
        aggregated, decode = json.loads(gateway.saved_index(path.read_bytes()))["pools"]
        assert (aggregated["whole"], decode["whole"]) == (1, 0)
        assert path.stat().st_mode & 0o777 == 0o600
        assert [entry.name for entry in tmp_path.iterdir()] == ["index"], "nothing left beside it"
        again = saved_index(gateway, path)
        again.load()
        again.restore(POOL, [77])
    assert "restored 1 workers with 0 blocks" in caplog.messages[-1]
    before = path.stat().st_mtime_ns
    asyncio.run(again.save())
    assert path.stat().st_mtime_ns > before, "decode workers publish no events: nothing to wait for"
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "first bytes are others"),
        (b"\x00" * 100, "first bytes are others"),
        (b"wdfleet\0\x07\0\0\0" + b"\0" * 16, "version 7"),
        (b"wdfleet\0\x01\0\0\0" + b"\xff" * 16, "cut off or damaged"),
        (b"x" * 5000, "--index-max-bytes 4096"),
    ],
)
def test_file_that_is_no_index_costs_one_warning_and_nothing_else(
    gateway, tmp_path, caplog, content, text
):
    path = tmp_path / "index"
    path.write_bytes(content)
    kept = saved_index(gateway, path, max_bytes=4096)
    kept.load()
    kept.restore(POOL, [77])
    assert len(warnings(caplog)) == 1
    assert text in warnings(caplog)[0]
    assert str(path) in warnings(caplog)[0]
    asyncio.run(kept.save())
    assert gateway.saved_index(path.read_bytes()), "the next file is a good one"


def test_old_file_is_not_used(gateway, tmp_path, caplog, monkeypatch):
    path = tmp_path / "index"
    asyncio.run(saved_index(gateway, path).save())
    kept = saved_index(gateway, path, max_age_s=1.0)
    saved_s = time.time()
    monkeypatch.setattr(time, "time", lambda: saved_s + 3600)
    kept.load()
    assert "--index-max-age-s is 1" in warnings(caplog)[0]


def test_unreadable_file_is_not_used(gateway, tmp_path, caplog):
    (tmp_path / "index").mkdir()
    kept = saved_index(gateway, tmp_path / "index")
    kept.load()
    asyncio.run(kept.save())
    assert len(warnings(caplog)) == 2, "reading, and writing"
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_index_beyond_the_bound_is_not_written_and_said_once(gateway, tmp_path, caplog):
    path = tmp_path / "index"
    path.write_bytes(b"old")
    for instance in range(2, 100):
        worker = {"model": "m", "role": "aggregated", "instance": instance}
        gateway.upsert_worker(json.dumps(worker))
    kept = saved_index(gateway, path, max_bytes=1024)
    for _ in range(3):
        asyncio.run(kept.save())
    assert path.read_bytes() == b"old"
    assert len(warnings(caplog)) == 1


def test_what_was_read_is_not_lost_before_it_was_taken_over(gateway, tmp_path):
    path = tmp_path / "index"
    asyncio.run(saved_index(gateway, path).save())
    before = path.read_bytes()
    kept = saved_index(gateway, path)
    kept.load()
    gateway.remove_model("m")
    asyncio.run(kept.save())
    assert path.read_bytes() == before, "discovery has not named its workers yet"


def test_index_of_a_fleet_that_does_not_exist_is_reported(gateway, tmp_path, caplog):
    path = tmp_path / "index"
    asyncio.run(saved_index(gateway, path).save())
    gateway.remove_worker("m", "aggregated", 1)
    gateway.upsert_worker(json.dumps({"model": "m", "role": "aggregated", "instance": 2}))
    kept = saved_index(gateway, path)
    kept.load()
    kept.restore(POOL, [77])
    assert "1 left" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"index.interval_s": "0"}, "index.interval_s: got 0.0, expected 0.1 to 86400"),
        ({"index.max_bytes": "12"}, "index.max_bytes: got 12, expected 1024"),
        ({"index.max_age_s": "soon"}, "--index-max-age-s: got 'soon', expected a number"),
    ],
)
def test_wrong_setting_is_refused_with_its_name(flags, text):
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        load(flags, {})


def test_place_that_can_not_be_written_is_refused_at_start(tmp_path):
    for path, text in [
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "index", "does not exist; make it"),
    ]:
        config = Config(index=IndexFile(file=str(path)))
        with pytest.raises(ConfigError, match=f"index.file: got .*{text}"):
            Server(config, [], {**os.environ, "DYN_DISCOVERY_BACKEND": "file"})
