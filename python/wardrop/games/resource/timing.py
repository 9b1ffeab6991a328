"""How long an engine takes: prefill seconds by tokens, step seconds by active KV tokens.

Where it stands: under the queueing evaluator. A table is an .npz with `prefill_isl`,
`prefill_ttft_ms`, `decode_active_kv_tokens`, `decode_context_length` and `decode_itl` (ms), the
planner-profile format that Dynamo's mocker reads. `builtin_timing` is a coarse stand-in so that
everything runs with no file: seven rounded points of Llama-3.1-70B BF16, TP 4, on B200, from a
table made with aiconfigurator 0.10.0 (Apache-2.0).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wardrop.games.errors import GameError
from wardrop.games.routing.latency import Floats, require


@dataclass(frozen=True)
class Timing:
    """An engine's two curves, one worker.

    Attributes:
        prefill_tokens: (points,) increasing.
        prefill_s: (points,) seconds to prefill so many tokens at once.
        kv_tokens: (rows,) increasing, active KV tokens of the decode batch.
        context_tokens: (columns,) increasing, mean context of its requests.
        step_s: (rows, columns) seconds a decode step.
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
        require(bool(np.all(np.diff(self.prefill_tokens) > 0)), "prefill tokens", "increasing")
        shape = (self.kv_tokens.size, self.context_tokens.size)
        require(self.step_s.shape == shape, self.step_s.shape, f"step table of shape {shape}")
        object.__setattr__(self, "_step_rows", self.step_s.tolist())
        object.__setattr__(self, "_kv", self.kv_tokens.tolist())
        object.__setattr__(self, "_context", self.context_tokens.tolist())

    def prefill_seconds(self, tokens: float) -> float:
        """Linear interpolation; past the table its last slope (attention's square is missing)."""
        last = self.prefill_tokens[-1]
        if tokens <= last:
            return float(np.interp(tokens, self.prefill_tokens, self.prefill_s))
        slope = (self.prefill_s[-1] - self.prefill_s[-2]) / (last - self.prefill_tokens[-2])
        return float(self.prefill_s[-1] + slope * (tokens - last))

    def step_seconds(self, kv_tokens: float, context_tokens: float) -> float:
        """Bilinear interpolation, held at the edges."""
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


def read_timing(path: Path) -> Timing:
    """Read a planner-profile .npz.

    Raises:
        GameError: no file, or a key is missing.
    """
    if not path.is_file():
        raise GameError(
            f"got {path}; expected a timing table (.npz). Leave it out for the built-in one"
        )
    with np.load(path) as table:
        keys = ("prefill_isl", "prefill_ttft_ms", "decode_active_kv_tokens")
        keys = (*keys, "decode_context_length", "decode_itl")
        missing = [key for key in keys if key not in table]
        if missing:
            raise GameError(
                f"got {path.name} without {missing}; expected the planner-profile keys {keys}"
            )
        isl, ttft, kv, context, itl = (np.asarray(table[key], dtype=np.float64) for key in keys)
    return Timing(isl, ttft / 1e3, kv, context, itl / 1e3)


def builtin_timing() -> Timing:
    """Llama-3.1-70B BF16, TP 4, B200, from rounded points; good to a rough 10 % between them."""
    kv = np.array([0.0, 2_048.0, 131_072.0, 524_288.0, 2_097_152.0])
    by_kv = np.array([9.2, 9.2, 12.4, 23.0, 66.0]) / 1e3
    return Timing(
        prefill_tokens=np.array([1.0, 128.0, 1_024.0, 8_192.0, 32_768.0]),
        prefill_s=np.array([10.0, 14.0, 41.0, 274.0, 1_249.0]) / 1e3,
        kv_tokens=kv,
        context_tokens=np.array([64.0, 65_536.0]),
        step_s=np.repeat(by_kv[:, None], 2, axis=1),
    )
