"""Dynamo's file discovery store: small JSON files under `$DYN_FILE_KV/v1/<bucket>/`.

Read only; a file that vanishes or is half written while we look is left out of that reading and
seen by the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import unquote

BUCKETS = ("instances", "mdc", "event_channels", "event_sources")

JsonObject = dict[str, object]


def default_root(environment: dict[str, str]) -> Path:
    """Where Dynamo itself keeps the store: `DYN_FILE_KV`, else `$TMPDIR/dynamo_store_kv`."""
    given = environment.get("DYN_FILE_KV")
    return Path(given) if given else Path(environment.get("TMPDIR") or "/tmp") / "dynamo_store_kv"


def entries(root: Path, bucket: str) -> Iterator[tuple[str, JsonObject]]:
    """Keys (decoded, `/`-separated) and contents of a bucket, in key order."""
    base = root / "v1" / bucket
    if not base.is_dir():
        return
    for path in sorted(base.rglob("*")):
        if path.name.startswith("."):
            continue
        try:
            content: object = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            yield unquote(path.relative_to(base).as_posix()), cast(JsonObject, content)
