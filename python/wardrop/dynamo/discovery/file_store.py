"""Dynamo's file store for discovery: small JSON files under `$DYN_FILE_KV/v1/<bucket>/`.

The store is only read. A file that vanishes or is half written during a reading is missing in that
reading; the next reading finds it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import cast
from urllib.parse import unquote

from wardrop.dynamo.discovery.entries import MAX_ENTRIES, MAX_ENTRY_BYTES

JsonObject = dict[str, object]

_MAX_DEPTH = 16
"""Folders below each other that are searched for entries."""


def default_root(environment: Mapping[str, str]) -> Path:
    """Dynamo's own folder of the store: `DYN_FILE_KV`, else `$TMPDIR/dynamo_store_kv`."""
    given = environment.get("DYN_FILE_KV")
    return Path(given) if given else Path(environment.get("TMPDIR") or "/tmp") / "dynamo_store_kv"


def entry_files(base: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of a bucket with their status, at most `MAX_ENTRIES`; none without the folder.

    Raises:
        OSError: A folder cannot be listed, for example because no descriptor is free. Nothing is
            then known about the entries in it, so a partial list would be wrong.
    """
    folders = [(base, 0)]
    found = 0
    while folders:
        folder, depth = folders.pop()
        try:
            listed = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for item in listed:
            if item.name.startswith("."):
                continue
            try:
                if item.is_dir(follow_symlinks=False):
                    if depth < _MAX_DEPTH:
                        folders.append((Path(item.path), depth + 1))
                    continue
                status = item.stat()
            except FileNotFoundError:
                continue
            if found == MAX_ENTRIES:
                return
            found += 1
            yield Path(item.path), status


def entries(root: Path, bucket: str) -> Iterator[tuple[str, JsonObject]]:
    """Keys and contents of a bucket, in the order of the files' paths."""
    base = root / "v1" / bucket
    for path in sorted(path for path, _ in entry_files(base)):
        try:
            content: object = json.loads(read_entry(path))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield entry_key(path.relative_to(base)), cast(JsonObject, content)


def entry_key(path: PurePath) -> str:
    """Key of an entry, decoded, from the path of its file inside the bucket."""
    return unquote(path.as_posix())


def read_entry(path: Path) -> bytes:
    """Content of a file, cut after one byte more than an entry may have.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(MAX_ENTRY_BYTES + 1)
