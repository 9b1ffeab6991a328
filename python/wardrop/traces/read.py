"""Trace files in, typed rows out: the file is opened, unpacked, and its format recognised.

A `.csv` file is an Azure trace. In any other file the first row decides: `hash_ids` marks a
Mooncake trace, `event_type` a Dynamo request trace.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import zstandard

from wardrop.traces.azure import parse_azure
from wardrop.traces.dynamo import parse_dynamo
from wardrop.traces.fields import MAX_LINE_BYTES, Line
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
        with _open(path) as file:
            lines = _lines(path.name, file)
            if ".csv" in path.suffixes:
                trace = parse_azure(path.name, lines, limit)
            else:
                trace = _json_trace(path.name, lines, limit)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
        raise TraceError(f"cannot read the trace {path}: {error}") from error
    if not trace.rows:
        raise TraceError(f"{path.name} has no rows; expected at least one request")
    return trace


@contextmanager
def _open(path: Path) -> Generator[BinaryIO]:
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw, "rb") as file:
                yield cast(BinaryIO, file)
        elif path.suffix == ".zst":
            decoder = zstandard.ZstdDecompressor(max_window_size=_LONG_WINDOW)
            yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, decoder.stream_reader(raw))))
        else:
            yield raw


def _lines(name: str, file: BinaryIO) -> Iterator[Line]:
    """The lines that are not blank, each with its number. A line is read up to a limit."""
    for number in itertools.count(1):
        text = file.readline(MAX_LINE_BYTES + 1)
        if not text:
            return
        if len(text) > MAX_LINE_BYTES:
            raise TraceError(
                f"{name}:{number}: got a line of more than {MAX_LINE_BYTES} bytes, expected a "
                "trace with one request a line"
            )
        if text.strip():
            yield Line(f"{name}:{number}", text)


_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _json_trace(name: str, lines: Iterator[Line], limit: int | None) -> TraceFile:
    first = next(lines, None)
    if first is None:
        return TraceFile(name, ())
    keys = first.decode(_KEYS)
    lines = itertools.chain([first], lines)
    event = keys.get("event")
    if "event_type" in keys or (event is not None and b'"event_type"' in bytes(event)):
        return parse_dynamo(name, lines, limit)
    if "hash_ids" in keys:
        return parse_mooncake(name, itertools.islice(lines, limit))
    raise TraceError(
        f"{first.place}: got a row with the keys {sorted(keys)[:8]}; expected the keys of "
        "a Mooncake row (timestamp, input_length, output_length, hash_ids) or of a Dynamo "
        "request_end event"
    )
