"""Dynamo's file discovery store: small JSON files under `$DYN_FILE_KV/v1/<bucket>/`.

Read only; a file that vanishes or is half written while we look is left out of that reading and
seen by the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import cast
from urllib.parse import unquote

BUCKETS = ("instances", "mdc", "event_channels", "event_sources")

MAX_ENTRY_BYTES = 1 << 20
"""An entry larger than this is not read; a model card is about 4 kB."""

JsonObject = dict[str, object]


def default_root(environment: Mapping[str, str]) -> Path:
    """Where Dynamo itself keeps the store: `DYN_FILE_KV`, else `$TMPDIR/dynamo_store_kv`."""
    given = environment.get("DYN_FILE_KV")
    return Path(given) if given else Path(environment.get("TMPDIR") or "/tmp") / "dynamo_store_kv"


def entries(root: Path, bucket: str) -> Iterator[tuple[str, JsonObject]]:
    """Keys (decoded, `/`-separated) and contents of a bucket, in key order."""
    base = root / "v1" / bucket
    for path in sorted(base.rglob("*")):
        content = None if path.name.startswith(".") else read_entry(path)
        if content is not None:
            yield entry_key(path.relative_to(base)), content


def entry_key(path: PurePath) -> str:
    """Key of a file, from its path inside the bucket."""
    return unquote(path.as_posix())


def read_entry(path: Path) -> JsonObject | None:
    """Content of a file; None when it is no (whole) JSON object, too large, or gone."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_ENTRY_BYTES + 1)
        content: object = json.loads(text) if len(text) <= MAX_ENTRY_BYTES else None
    except (OSError, ValueError):
        return None
    return cast(JsonObject, content) if isinstance(content, dict) else None
