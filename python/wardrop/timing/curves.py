"""Interpolated step times: prefill seconds by tokens, step seconds by active KV tokens.

Where it stands: under the queueing evaluator of `wardrop.games.resource`. `builtin_timing` is a
coarse stand-in so that everything runs with no file: rounded points of Llama-3.1-70B BF16, tensor
parallel 4, on B200, from a table made with aiconfigurator 0.10.0 (Apache-2.0).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wardrop.timing.table import Floats, TimingError, read_table


@dataclass(frozen=True)
class TimingCurves:
    """The two curves of one worker.

    Attributes:
        prefill_tokens: (points,) increasing.
        prefill_s: (points,) seconds of a prefill step of as many tokens.
        kv_tokens: (rows,) increasing, active KV tokens of the decode batch.
        context_tokens: (columns,) increasing, mean context of the batch.
        step_s: (rows, columns) seconds of a decode step.
    """

    prefill_tokens: Floats
    prefill_s: Floats
    kv_tokens: Floats
    context_tokens: Floats
    step_s: Floats
    _step_rows: list[list[float]] = field(init=False, repr=False, compare=False)
    _kv: list[float] = field(init=False, repr=False, compare=False)
    _context: list[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("prefill_tokens", "kv_tokens", "context_tokens"):
            axis: Floats = getattr(self, name)
            if axis.size < 2 or not np.all(np.diff(axis) > 0):
                raise TimingError(f"got {name} {axis[:8].tolist()}; expected 2 or more, increasing")
        shape = (self.kv_tokens.size, self.context_tokens.size)
        if self.step_s.shape != shape:
            raise TimingError(f"got a step table of shape {self.step_s.shape}; expected {shape}")
        object.__setattr__(self, "_step_rows", self.step_s.tolist())
        object.__setattr__(self, "_kv", self.kv_tokens.tolist())
        object.__setattr__(self, "_context", self.context_tokens.tolist())

    def prefill_seconds(self, tokens: float) -> float:
        """Seconds of a prefill step: linear interpolation, beyond the table with its last slope.

        The quadratic cost of attention is therefore missing beyond the table.
        """
        last = self.prefill_tokens[-1]
        if tokens <= last:
            return float(np.interp(tokens, self.prefill_tokens, self.prefill_s))
        slope = (self.prefill_s[-1] - self.prefill_s[-2]) / (last - self.prefill_tokens[-2])
        return float(self.prefill_s[-1] + slope * (tokens - last))

    def step_seconds(self, kv_tokens: float, context_tokens: float) -> float:
        """Seconds of a decode step: bilinear interpolation, constant beyond the edges."""
        i, u = _place(self._kv, kv_tokens)
        j, v = _place(self._context, context_tokens)
        low, high = self._step_rows[i], self._step_rows[i + 1]
        near = low[j] + v * (low[j + 1] - low[j])
        far = high[j] + v * (high[j + 1] - high[j])
        return near + u * (far - near)


def _place(axis: list[float], value: float) -> tuple[int, float]:
    """Segment and fraction of a value on an increasing axis, clamped to its ends."""
    i = min(max(bisect_right(axis, value) - 1, 0), len(axis) - 2)
    return i, min(max((value - axis[i]) / (axis[i + 1] - axis[i]), 0.0), 1.0)


def read_timing(path: Path) -> TimingCurves:
    """Read a timing table; of prefills by cached length, the first length is taken.

    Raises:
        TimingError: the file or an array is missing, or sizes do not fit.
    """
    table = read_table(path)
    return TimingCurves(
        prefill_tokens=table.prefill_isl,
        prefill_s=table.prefill_ttft_ms[:, 0] / 1e3,
        kv_tokens=table.decode_active_kv_tokens,
        context_tokens=table.decode_context_length,
        step_s=table.decode_itl_ms / 1e3,
    )


def builtin_timing() -> TimingCurves:
    """Llama-3.1-70B BF16, tensor parallel 4, B200: rounded points, good to a rough 10 %."""
    kv = np.array([0.0, 2_048.0, 131_072.0, 524_288.0, 2_097_152.0])
    by_kv = np.array([9.2, 9.2, 12.4, 23.0, 66.0]) / 1e3
    return TimingCurves(
        prefill_tokens=np.array([1.0, 128.0, 1_024.0, 8_192.0, 32_768.0]),
        prefill_s=np.array([10.0, 14.0, 41.0, 274.0, 1_249.0]) / 1e3,
        kv_tokens=kv,
        context_tokens=np.array([64.0, 65_536.0]),
        step_s=np.repeat(by_kv[:, None], 2, axis=1),
    )
