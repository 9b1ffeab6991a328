"""Where learned latency curves start: the points of a timing table."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from wardrop.replay.timing import load_timing

Point = tuple[float, float, float]

_MOST_SEQUENCES = 1024
_MOST_POINTS = 20_000


def timing_points(path: Path) -> dict[str, list[Point]]:
    """The points of a timing table (`.npz`, as `dynamo.mocker --planner-profile-data` takes it).

    Returns:
        `prefill`: (new tokens, cached tokens, seconds); `step`: (sequences, active KV tokens,
        seconds), of batches of 1 to 1,024 sequences.

    Raises:
        ValueError: no such file, an array is missing, or sizes do not fit.
    """
    try:
        table = load_timing(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"timing table {path}: {error}") from error
    if table["kind"] != "table":
        raise ValueError(f"timing table: got {str(path)!r}, expected an .npz file")
    arrays = {name: cast(list[float], values) for name, values in table.items() if name != "kind"}
    lengths, cached = arrays["prefill_isl"], arrays.get("prefill_cached", [0.0])
    prefill = _grid(path, "prefill_ttft_ms", arrays, lengths, cached)
    tokens, contexts = arrays["decode_active_kv_tokens"], arrays["decode_context_length"]
    step = [
        (kv / context, kv, seconds)
        for kv, context, seconds in _grid(path, "decode_itl", arrays, tokens, contexts)
        if context > 0 and 1 <= kv / context <= _MOST_SEQUENCES
    ]
    # A large table is thinned out evenly: a fit does not need more.
    return {
        "prefill": prefill[:: 1 + len(prefill) // _MOST_POINTS],
        "step": step[:: 1 + len(step) // _MOST_POINTS],
    }


def _grid(
    path: Path, name: str, arrays: dict[str, list[float]], rows: list[float], columns: list[float]
) -> list[Point]:
    values = arrays[name]
    if len(values) != len(rows) * len(columns):
        raise ValueError(
            f"timing table {path}: {name} has {len(values)} figures, expected "
            f"{len(rows)} x {len(columns)}"
        )
    pairs = ((row, column) for row in rows for column in columns)
    return [
        (row, column, ms / 1e3) for (row, column), ms in zip(pairs, values, strict=True) if ms > 0
    ]
