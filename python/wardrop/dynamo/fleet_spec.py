"""What an embedded fleet consists of: one frozen value, checked when it is built."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class FleetSpec:
    """What to start. Give `workers`, or `prefill` and `decode` for a split.

    Attributes:
        workers: aggregated mock workers.
        prefill: mock prefill workers.
        decode: mock decode workers.
        process_per_worker: one process each (needed to kill one), or one process per role (far
            cheaper).
        model_name: the name that clients use.
        model: folder with tokenizer and template; None makes (and keeps) a small one.
        block_size: tokens per KV block.
        blocks: KV blocks per worker.
        max_model_len: longest prompt plus output, in tokens.
        speedup_ratio: how much faster than the timing model the engines run; 100 takes engine time
            out.
        timing_table: `.npz` of engine timing for `--planner-profile-data`; None for the mock
            engine's own formula.
        python: interpreter that has Dynamo; another one runs another version.
        mocker_arguments: further flags for `dynamo.mocker`.
        environment: further variables for every part.
        ready_timeout_s: how long to wait for the parts to appear.
    """

    workers: int = 0
    prefill: int = 0
    decode: int = 0
    process_per_worker: bool = True
    model_name: str = "tiny"
    model: Path | None = None
    block_size: int = 16
    blocks: int = 2048
    max_model_len: int = 32_768
    speedup_ratio: float = 1.0
    timing_table: Path | None = None
    python: str = sys.executable
    mocker_arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    ready_timeout_s: float = 90.0

    def __post_init__(self) -> None:
        if self.workers and (self.prefill or self.decode):
            raise ValueError(
                f"got workers={self.workers} with prefill={self.prefill}, decode={self.decode}: "
                f"give either aggregated "
                "workers or a prefill/decode split"
            )
        if bool(self.prefill) != bool(self.decode):
            raise ValueError(
                f"a split needs both roles, got prefill={self.prefill}, decode={self.decode}"
            )
        if min(self.workers, self.prefill, self.decode) < 0:
            raise ValueError("numbers of workers must not be negative")
        if self.timing_table is not None and not self.timing_table.exists():
            raise ValueError(f"timing table {str(self.timing_table)!r} does not exist")

    @staticmethod
    def parse_split(text: str) -> tuple[int, int]:
        """`"2x4"` → (2, 4): prefill and decode workers."""
        left, cross, right = text.partition("x")
        if not cross or not left.isdecimal() or not right.isdecimal() or not int(left) * int(right):
            raise ValueError(
                f"got split {text!r}, expected PREFILLxDECODE such as 2x4, both at least 1"
            )
        return int(left), int(right)


def split_fleet(text: str, base: FleetSpec) -> FleetSpec:
    """`base` with the prefill and decode workers of `"2x4"` in place of its aggregated ones."""
    prefill, decode = FleetSpec.parse_split(text)
    return replace(base, workers=0, prefill=prefill, decode=decode)
