"""The points of a timing table, from which the learned latency curves of a router start."""

from __future__ import annotations

from pathlib import Path

from wardrop.timing.table import Floats, read_table

Point = tuple[float, float, float]
"""Two coordinates in tokens or sequences, and a duration in seconds."""

_MAX_SEQUENCES = 1024
_MAX_POINTS = 20_000


def timing_points(path: Path) -> dict[str, list[Point]]:
    """The points of a timing table; `wardrop.timing.table` describes the file.

    Returns:
        `prefill`: (new tokens, cached tokens, seconds); `step`: (sequences, active KV tokens,
        seconds), of batches of 1 to 1,024 sequences.

    Raises:
        TimingError: the file or an array is missing, or sizes do not fit.
    """
    table = read_table(path)
    cached = [0.0] if table.prefill_cached is None else table.prefill_cached.tolist()
    prefill = _points(table.prefill_ttft_ms, table.prefill_isl.tolist(), cached)
    kv_tokens = table.decode_active_kv_tokens.tolist()
    contexts = table.decode_context_length.tolist()
    step = [
        (kv / context, kv, seconds)
        for kv, context, seconds in _points(table.decode_itl_ms, kv_tokens, contexts)
        if context > 0 and 1 <= kv / context <= _MAX_SEQUENCES
    ]
    # A large table is thinned out evenly: a fit does not need more points.
    return {
        "prefill": prefill[:: 1 + len(prefill) // _MAX_POINTS],
        "step": step[:: 1 + len(step) // _MAX_POINTS],
    }


def _points(grid_ms: Floats, rows: list[float], columns: list[float]) -> list[Point]:
    return [
        (row, column, ms / 1e3)
        for row, line in zip(rows, grid_ms.tolist(), strict=True)
        for column, ms in zip(columns, line, strict=True)
        if ms > 0
    ]
