"""The parts of an embedded fleet: one frozen value, checked when it is built."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class FleetSpec:
    """The workers of an embedded fleet: `workers`, or `prefill` and `decode` for a split fleet.

    Attributes:
        workers: Aggregated mock workers.
        prefill: Mock prefill workers.
        decode: Mock decode workers.
        process_per_worker: One process per worker, which a test can kill. Otherwise one process per
            role, which costs far less CPU time and memory.
        model_name: The name that clients use.
        model: Folder with tokenizer and template; None makes a small one and keeps it.
        block_size: Tokens per KV block.
        blocks: KV blocks per worker.
        max_model_len: Longest prompt plus output, in tokens.
        speedup_ratio: Factor by which engines run faster than their timing. At 100 the engine time
            is negligible.
        timing_table: Engine timing (.npz) for `--planner-profile-data`; None for the formula of the
            mock engine.
        python: Interpreter with Dynamo, of which another one may have another version.
        mocker_arguments: Further flags for `dynamo.mocker`.
        environment: Further variables for every process.
        ready_timeout_s: Longest time for the processes to be ready.
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
                f"got workers={self.workers} with prefill={self.prefill}, decode={self.decode}; "
                "expected either aggregated workers or a prefill/decode split"
            )
        if bool(self.prefill) != bool(self.decode):
            raise ValueError(
                f"got prefill={self.prefill}, decode={self.decode}; expected at least one of both"
            )
        if min(self.workers, self.prefill, self.decode) < 0:
            raise ValueError(
                f"got workers={self.workers}, prefill={self.prefill}, decode={self.decode}; "
                "expected no negative number"
            )
        if self.timing_table is not None and not self.timing_table.exists():
            raise ValueError(f"timing table {str(self.timing_table)!r} does not exist")

    @staticmethod
    def parse_split(text: str) -> tuple[int, int]:
        """Numbers of prefill and decode workers in a text such as `"2x4"`.

        Raises:
            ValueError: The text has another form, or a number is 0.
        """
        left, cross, right = text.partition("x")
        if not cross or not left.isdecimal() or not right.isdecimal() or not int(left) * int(right):
            raise ValueError(
                f"got split {text!r}, expected PREFILLxDECODE such as 2x4, both at least 1"
            )
        return int(left), int(right)


def split_fleet(text: str, base: FleetSpec) -> FleetSpec:
    """A specification with prefill and decode workers instead of aggregated workers.

    Args:
        text: Numbers of workers, such as `"2x4"`.
        base: Everything else.
    """
    prefill, decode = FleetSpec.parse_split(text)
    return replace(base, workers=0, prefill=prefill, decode=decode)
