"""Trace files in, typed rows out: the file is opened, unpacked, and its format recognised.

A `.csv` file is an Azure trace. In any other file the first row decides: `hash_ids` marks a
Mooncake trace, `event_type` a Dynamo request trace.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import zstandard

from wardrop.traces.azure import parse_azure
from wardrop.traces.dynamo import parse_dynamo
from wardrop.traces.fields import Line
from wardrop.traces.mooncake import parse_mooncake
from wardrop.traces.rows import TraceError, TraceFile

_LONG_WINDOW = 2**27
"""Window of the zstd decoder in bytes: enough for files packed with `--long=27`."""


def read_trace(path: str | Path, *, limit: int | None = None) -> TraceFile:
    """Read a trace file.

    Args:
        path: a Mooncake or Dynamo `.jsonl` file or an Azure `.csv` file, plain, `.gz` or `.zst`.
        limit: read at most this many rows; all rows by default.

    Raises:
        TraceError: the file cannot be read, has no rows, is of no known format, or has a bad row.
    """
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"no trace at {path}; expected a .jsonl or .csv file, plain, .gz or .zst")
    try:
        with _open_text(path) as text:
            if ".csv" in path.suffixes:
                trace = parse_azure(path.name, text, limit)
            else:
                trace = _json_trace(path.name, text, limit)
    except (OSError, EOFError, UnicodeDecodeError, zstandard.ZstdError) as error:
        raise TraceError(f"cannot read the trace {path}: {error}") from error
    if not trace.rows:
        raise TraceError(f"{path.name} has no rows; expected at least one request")
    return trace


@contextmanager
def _open_text(path: Path) -> Generator[Iterator[str]]:
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw, "rt", encoding="utf-8") as text:
                yield iter(text)
        elif path.suffix == ".zst":
            decoder = zstandard.ZstdDecompressor(max_window_size=_LONG_WINDOW)
            yield iter(io.TextIOWrapper(decoder.stream_reader(raw), encoding="utf-8"))
        else:
            yield iter(io.TextIOWrapper(raw, encoding="utf-8"))


def _json_trace(name: str, text: Iterable[str], limit: int | None) -> TraceFile:
    lines = _json_lines(name, text)
    first = next(lines, None)
    if first is None:
        return TraceFile(name, ())
    lines = itertools.chain([first], lines)
    event = first.values.get("event", first.values)
    if isinstance(event, dict) and "event_type" in event:
        return parse_dynamo(name, lines, limit)
    if "hash_ids" in first.values:
        return parse_mooncake(name, itertools.islice(lines, limit))
    raise TraceError(
        f"{first.place}: got a row with the keys {sorted(first.values)[:8]}; expected the keys of "
        "a Mooncake row (timestamp, input_length, output_length, hash_ids) or of a Dynamo "
        "request_end event"
    )


def _json_lines(name: str, text: Iterable[str]) -> Iterator[Line]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row: object = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise TraceError(f"{name}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise TraceError(f"{name}:{number} is not a JSON object; expected one object a line")
        yield Line(f"{name}:{number}", cast(dict[str, object], row))
