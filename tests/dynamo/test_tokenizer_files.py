from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wardrop.dynamo import tokenizer_files
from wardrop.dynamo.discovery.fleet_view import Model
from wardrop.dynamo.tokenizer_files import TokenizerFilesError, tokenizer_folder


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A worker's metadata server: its address, its folder, and what was asked of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder, asked
    server.shutdown()
    thread.join()
    server.server_close()


def model(url: str, **changes: object) -> Model:
    names = ("tokenizer.json", "tokenizer_config.json")
    places = tuple((name, f"{url}/{name}") for name in names)
    return replace(Model("tiny", 16, source_path="/no/such/folder", files=places), **changes)  # type: ignore[arg-type]


def test_folder_on_this_machine_is_used_as_it_is(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    found = asyncio.run(tokenizer_folder(Model("tiny", 16, source_path=str(tmp_path))))
    assert found == tmp_path


def test_files_of_another_machine_are_fetched_once_per_content(files, tmp_path: Path):
    url, folder, asked = files
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "tokenizer_config.json").write_text('{"b": 2}')
    cache = tmp_path / "cache"
    first = asyncio.run(tokenizer_folder(model(url), cache))
    assert (first / "tokenizer.json").read_text() == '{"a": 1}'
    assert (first / "tokenizer_config.json").read_text() == '{"b": 2}'
    assert len(asked) == 2
    assert asyncio.run(tokenizer_folder(model(url), cache)) == first
    (folder / "tokenizer_config.json").write_text('{"b": 3}')
    assert asyncio.run(tokenizer_folder(model(url), cache)) != first
    assert not list((cache / "cards").glob(".draft-*"))


def test_missing_file_is_reported_and_leaves_nothing_behind(files, tmp_path: Path):
    url, folder, _ = files
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerFilesError, match=r"files of 'tiny' cannot be fetched.*404"):
        asyncio.run(tokenizer_folder(model(url), tmp_path / "cache"))
    assert list((tmp_path / "cache" / "cards").iterdir()) == []


def test_too_large_a_file_is_refused(files, tmp_path: Path, monkeypatch):
    url, folder, _ = files
    monkeypatch.setattr(tokenizer_files, "MAX_FILE_BYTES", 1000)
    (folder / "tokenizer.json").write_text("x" * 2000)
    with pytest.raises(TokenizerFilesError, match="larger than 1000 bytes"):
        asyncio.run(tokenizer_folder(model(url), tmp_path / "cache"))


def test_file_name_of_a_card_can_not_leave_the_folder(files, tmp_path: Path):
    url, folder, _ = files
    (folder / "tokenizer.json").write_text("{}")
    places = (
        ("../../evil.json", f"{url}/tokenizer.json"),
        ("tokenizer.json", f"{url}/tokenizer.json"),
    )
    found = asyncio.run(tokenizer_folder(model(url, files=places), tmp_path / "cache"))
    assert sorted(path.name for path in found.iterdir()) == ["evil.json", "tokenizer.json"]


@pytest.mark.parametrize("place", ["hf://org/model/tokenizer.json", "/no/such/tokenizer.json"])
def test_place_that_cannot_be_read_is_reported(place: str):
    with pytest.raises(TokenizerFilesError, match="cannot be read from this machine"):
        asyncio.run(tokenizer_folder(Model("tiny", 16, files=(("tokenizer.json", place),))))


@pytest.mark.parametrize("name", ["tiktoken.model", "qwen.tiktoken"])
def test_folder_with_a_tiktoken_tokenizer_alone_is_enough(files, tmp_path: Path, name):
    here = tmp_path / "here"
    here.mkdir()
    (here / name).write_text("")
    assert asyncio.run(tokenizer_folder(Model("tiny", 16, source_path=str(here)))) == here
    local = Model("tiny", 16, files=((name, str(here / name)),))
    assert asyncio.run(tokenizer_folder(local)) == here
    url, served, _ = files
    (served / name).write_text("content")
    remote = Model("tiny", 16, files=((name, f"{url}/{name}"),))
    found = asyncio.run(tokenizer_folder(remote, tmp_path / "cache"))
    assert (found / name).read_text() == "content"


def test_card_without_a_tokenizer_says_which_files_would_do(tmp_path: Path):
    card = Model("tiny", 16, files=(("config.json", str(tmp_path / "config.json")),))
    with pytest.raises(TokenizerFilesError, match=r"tokenizer\.json or tiktoken\.model"):
        asyncio.run(tokenizer_folder(card))
