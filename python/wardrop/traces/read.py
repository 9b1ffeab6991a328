"""Trace files in, typed rows out: the file is opened, unpacked, and its format recognised.

A `.csv` file is an Azure trace. In any other file the first row decides: `schema` marks Wardrop's
decision records, `hash_ids` a Mooncake trace, `event_type` a Dynamo request trace. A folder holds
decision records, in one file or several.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import zstandard

from wardrop.traces.azure import parse_azure
from wardrop.traces.dynamo import parse_dynamo
from wardrop.traces.fields import MAX_LINE_BYTES, Line
from wardrop.traces.mooncake import parse_mooncake
from wardrop.traces.records import (
    FILES,
    Window,
    WindowRequest,
    is_record,
    parse_records,
    parse_windows,
)
from wardrop.traces.rows import TraceError, TraceFile

_LONG_WINDOW = 2**27
"""Window of the zstd decoder in bytes: enough for files packed with `--long=27`."""


def read_trace(
    path: str | Path, *, limit: int | None = None, model: str | None = None
) -> TraceFile:
    """Read a trace file.

    Args:
        path: a Mooncake, Dynamo or Wardrop `.jsonl` file or an Azure `.csv` file, plain, `.gz` or
            `.zst`; or a folder of Wardrop's decision records.
        limit: read at most this many rows; all rows by default.
        model: model whose decision records are read; None where the records hold one model. Traces
            of other formats name no model.

    Raises:
        TraceError: the file cannot be read, has no rows, is of no known format, or has a bad row.
    """
    path = Path(path)
    files = _files(path)
    try:
        lines = _lines_of_all(files)
        if ".csv" in path.suffixes:
            trace = parse_azure(path.name, lines, limit)
        else:
            trace = _json_trace(path.name, lines, limit, model)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
        raise TraceError(f"cannot read the trace {path}: {error}") from error
    if not trace.rows:
        raise TraceError(f"{path.name} has no rows; expected at least one request")
    return trace


def read_windows(path: str | Path) -> Iterator[WindowRequest | Window]:
    """The requests and the windows of decision records, in file order.

    Args:
        path: a file of decision records, plain, `.gz` or `.zst`, or a folder of them.

    Raises:
        TraceError: the file cannot be read, or has a bad row.
    """
    path = Path(path)
    try:
        yield from parse_windows(_lines_of_all(_files(path)))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
        raise TraceError(f"cannot read the records {path}: {error}") from error


def _files(path: Path) -> list[Path]:
    """The file, or the files of a folder of decision records, oldest first."""
    if path.is_dir():
        files = sorted(path.glob(FILES))
        if not files:
            raise TraceError(f"no decision records in {path}; expected files named {FILES}")
        return files
    if not path.is_file():
        raise TraceError(
            f"no trace at {path}; expected a .jsonl or .csv file, plain, .gz or .zst, or a folder "
            "of decision records"
        )
    return [path]


def _lines_of_all(files: Sequence[Path]) -> Iterator[Line]:
    for path in files:
        with _open(path) as file:
            yield from _lines(path.name, file)


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


def _json_trace(
    name: str, lines: Iterator[Line], limit: int | None, model: str | None
) -> TraceFile:
    first = next(lines, None)
    if first is None:
        return TraceFile(name, ())
    keys = first.decode(_KEYS)
    lines = itertools.chain([first], lines)
    if is_record(keys):
        return parse_records(name, lines, limit, model)
    if model is not None:
        raise TraceError(f"{name}: got --model {model}; expected it with decision records alone")
    event = keys.get("event")
    if "event_type" in keys or (event is not None and b'"event_type"' in bytes(event)):
        return parse_dynamo(name, lines, limit)
    if "hash_ids" in keys:
        return parse_mooncake(name, itertools.islice(lines, limit))
    raise TraceError(
        f"{first.place}: got a row with the keys {sorted(keys)[:8]}; expected the keys of "
        "a Mooncake row (timestamp, input_length, output_length, hash_ids), of a Dynamo "
        "request_end event or of a decision record (schema)"
    )
