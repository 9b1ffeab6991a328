"""Timing tables: measured step times of one engine, as an `.npz` file.

The format is that of Dynamo's mock workers (`dynamo.mocker --planner-profile-data`). Arrays, with P
prompt lengths, Q cached lengths, K sizes of the active KV cache and C mean contexts:

    prefill_isl               (P,)            new tokens of a prefill step
    prefill_cached            (Q,), optional  tokens found in the cache; without it Q = 1
    prefill_ttft_ms           (P,) or (P, Q)  duration of the prefill step, ms
    decode_active_kv_tokens   (K,)            KV tokens in use by the decode batch
    decode_context_length     (C,)            mean context of the batch, tokens
    decode_itl                (K, C)          duration of a decode step, ms
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wardrop.errors import InputError

Floats = NDArray[np.float64]

_REQUIRED = (
    "prefill_isl",
    "prefill_ttft_ms",
    "decode_active_kv_tokens",
    "decode_context_length",
    "decode_itl",
)


class TimingError(InputError):
    """A timing table that cannot be used. The text names the file and the array."""


@dataclass(frozen=True)
class TimingTable:
    """The arrays of a timing table; see the module for names and units.

    Attributes:
        prefill_isl: (P,) new tokens.
        prefill_cached: (Q,) cached tokens, or None where the table has no such axis.
        prefill_ttft_ms: (P, Q) prefill durations in ms; Q is 1 where `prefill_cached` is None.
        decode_active_kv_tokens: (K,) active KV tokens.
        decode_context_length: (C,) mean context in tokens.
        decode_itl_ms: (K, C) decode step durations in ms.
    """

    prefill_isl: Floats
    prefill_cached: Floats | None
    prefill_ttft_ms: Floats
    decode_active_kv_tokens: Floats
    decode_context_length: Floats
    decode_itl_ms: Floats


def read_table(path: str | Path) -> TimingTable:
    """Read a timing table.

    Raises:
        TimingError: the file is missing or no `.npz` file, an array is missing, or sizes do not
            fit.
    """
    path = Path(path)
    if not path.is_file():
        raise TimingError(f"no timing table at {path}; expected an .npz file")
    try:
        with np.load(path) as arrays:
            missing = [name for name in _REQUIRED if name not in arrays]
            if missing:
                raise TimingError(
                    f"timing table {path} lacks {', '.join(missing)}; it has "
                    f"{', '.join(arrays.files) or 'no arrays'}"
                )
            found = {name: np.asarray(arrays[name], np.float64).ravel() for name in arrays.files}
    except TimingError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise TimingError(f"timing table {path}: {error}; expected an .npz file") from error
    isl, cached = found["prefill_isl"], found.get("prefill_cached")
    kv, context = found["decode_active_kv_tokens"], found["decode_context_length"]
    columns = 1 if cached is None else cached.size
    return TimingTable(
        prefill_isl=isl,
        prefill_cached=cached,
        prefill_ttft_ms=_grid(path, "prefill_ttft_ms", found, (isl.size, columns)),
        decode_active_kv_tokens=kv,
        decode_context_length=context,
        decode_itl_ms=_grid(path, "decode_itl", found, (kv.size, context.size)),
    )


def _grid(path: Path, name: str, found: dict[str, Floats], shape: tuple[int, int]) -> Floats:
    values = found[name]
    if values.size != shape[0] * shape[1]:
        raise TimingError(
            f"timing table {path}: {name} has {values.size} figures, expected "
            f"{shape[0]} x {shape[1]}"
        )
    return values.reshape(shape)
