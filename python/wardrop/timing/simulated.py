"""Step times in the simulator's form: Dynamo's mock polynomial, a table, or an affine curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wardrop.timing.table import read_table

SimulatedTiming = dict[str, Any]
"""The `timing` field of a simulated engine: `kind` and the parameters of that kind."""

POLYNOMIAL: SimulatedTiming = {"kind": "polynomial"}
"""The default curves of Dynamo's mock workers."""


def load_timing(path: str | Path | None) -> SimulatedTiming:
    """Read a timing table for the simulator; `wardrop.timing.table` describes the file.

    Args:
        path: the file, or None or "polynomial" for the default curves of Dynamo's mock workers.

    Raises:
        TimingError: the file or an array is missing, or sizes do not fit.
    """
    if path is None or str(path) == "polynomial":
        return POLYNOMIAL
    table = read_table(path)
    timing: SimulatedTiming = {
        "kind": "table",
        "prefill_isl": table.prefill_isl.tolist(),
        "prefill_ttft_ms": table.prefill_ttft_ms.ravel().tolist(),
        "decode_active_kv_tokens": table.decode_active_kv_tokens.tolist(),
        "decode_context_length": table.decode_context_length.tolist(),
        "decode_itl": table.decode_itl_ms.ravel().tolist(),
    }
    if table.prefill_cached is not None:
        timing["prefill_cached"] = table.prefill_cached.tolist()
    return timing


def affine(
    *,
    prefill_base_ms: float = 0.0,
    prefill_per_token_ms: float = 0.0,
    decode_base_ms: float = 0.0,
    decode_per_kv_token_ms: float = 0.0,
    decode_per_sequence_ms: float = 0.0,
) -> SimulatedTiming:
    """Affine step times, all in ms.

    A prefill step takes `prefill_base + prefill_per_token · new tokens`. A decode step takes
    `decode_base + decode_per_kv_token · active KV tokens + decode_per_sequence · sequences`.
    """
    return {
        "kind": "affine",
        "prefill_base_ms": prefill_base_ms,
        "prefill_per_token_ms": prefill_per_token_ms,
        "decode_base_ms": decode_base_ms,
        "decode_per_kv_token_ms": decode_per_kv_token_ms,
        "decode_per_sequence_ms": decode_per_sequence_ms,
    }
