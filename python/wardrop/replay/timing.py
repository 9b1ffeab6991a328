"""Iteration times.

Dynamo's mock polynomial, a measured table, or an affine curve, in the simulator's form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wardrop.replay.workload import ReplayError

Timing = dict[str, Any]

POLYNOMIAL: Timing = {"kind": "polynomial"}

_ARRAYS = (
    "prefill_isl",
    "prefill_ttft_ms",
    "decode_active_kv_tokens",
    "decode_context_length",
    "decode_itl",
)


def load_timing(path: str | Path | None) -> Timing:
    """Read a timing table (`.npz`), as Dynamo's mocker reads with `--planner-profile-data`.

    Arrays: `prefill_isl` (P,) and `prefill_ttft_ms` (P,) in tokens and ms;
        `decode_active_kv_tokens` (K,),
    `decode_context_length` (C,) and `decode_itl` (K, C) in tokens and ms. An optional
    `prefill_cached` (Q,) makes `prefill_ttft_ms` (P, Q): prefill by new tokens and by cached
    length.

    Args:
        path: the file, or None or "polynomial" for Dynamo's default curves.

    Raises:
        ReplayError: the file or an array is missing.
    """
    if path is None or str(path) == "polynomial":
        return POLYNOMIAL
    file = Path(path)
    if not file.is_file():
        raise ReplayError(f"no timing table at {file}; give an .npz file or `polynomial`")
    with np.load(file) as arrays:
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise ReplayError(
                f"{file} lacks {', '.join(missing)}; it has {', '.join(arrays.files)}"
            )
        names = [*_ARRAYS, *(["prefill_cached"] if "prefill_cached" in arrays else [])]
        return {
            "kind": "table",
            **{name: np.asarray(arrays[name], float).ravel().tolist() for name in names},
        }


def affine(
    *,
    prefill_base_ms: float = 0.0,
    prefill_per_token_ms: float = 0.0,
    decode_base_ms: float = 0.0,
    decode_per_kv_token_ms: float = 0.0,
    decode_per_sequence_ms: float = 0.0,
) -> Timing:
    """Prefill `base + per_token · new tokens`.

    step `base + per_kv_token · KV tokens + per_sequence · batch`, in ms.
    """
    return {
        "kind": "affine",
        "prefill_base_ms": prefill_base_ms,
        "prefill_per_token_ms": prefill_per_token_ms,
        "decode_base_ms": decode_base_ms,
        "decode_per_kv_token_ms": decode_per_kv_token_ms,
        "decode_per_sequence_ms": decode_per_sequence_ms,
    }
