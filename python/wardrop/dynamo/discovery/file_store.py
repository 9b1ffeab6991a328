"""Dynamo's file store for discovery: small JSON files under `$DYN_FILE_KV/v1/<bucket>/`.

The store is only read. A file that vanishes or is half written during a reading is missing in that
reading; the next reading finds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import cast
from urllib.parse import unquote

from wardrop.dynamo.discovery.store_reader import MAX_ENTRY_BYTES, JsonObject


def default_root(environment: Mapping[str, str]) -> Path:
    """Dynamo's own folder of the store: `DYN_FILE_KV`, else `$TMPDIR/dynamo_store_kv`."""
    given = environment.get("DYN_FILE_KV")
    return Path(given) if given else Path(environment.get("TMPDIR") or "/tmp") / "dynamo_store_kv"


def entries(root: Path, bucket: str) -> Iterator[tuple[str, JsonObject]]:
    """Keys and contents of a bucket, in the order of the files' paths."""
    base = root / "v1" / bucket
    for path in sorted(base.rglob("*")):
        content = None if path.name.startswith(".") else read_entry(path)
        if content is not None:
            yield entry_key(path.relative_to(base)), content


def entry_key(path: PurePath) -> str:
    """Key of an entry, decoded, from the path of its file inside the bucket."""
    return unquote(path.as_posix())


def read_entry(path: Path) -> JsonObject | None:
    """Content of a file; None where it does not exist, is too large, or is no whole JSON object."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_ENTRY_BYTES + 1)
        content: object = json.loads(text) if len(text) <= MAX_ENTRY_BYTES else None
    except (OSError, ValueError):
        return None
    return cast(JsonObject, content) if isinstance(content, dict) else None
