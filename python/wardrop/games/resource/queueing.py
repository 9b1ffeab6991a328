"""The queueing evaluator: an attainment source that needs no simulator.

Where it stands: behind `AttainmentSource`; the discrete-event simulator replaces it through
`FromCallable` when its detail is wanted. TTFT depends on the prefill pool alone, so each prefill
size is run once and remembered. Ours [O].

What it leaves out, to be read with every figure: routing and per-worker caches (prefix reuse is a
share of the trace's ideal reuse), KV transfer, chunked prefill, preemption, failures. TTFT is
arrival to end of the prefill batch; a request's ITL is the mean over its tokens and includes
waiting for KV room.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wardrop.games.resource.attainment import Attainment
from wardrop.games.resource.pools import DecodePool, prefill_done
from wardrop.games.routing.latency import Floats, require
from wardrop.games.trace import Trace
from wardrop.slo import Slo
from wardrop.timing import TimingCurves


@dataclass(frozen=True)
class Engine:
    """The speed and the capacity of one worker.

    Attributes:
        timing: its two curves.
        batch_tokens: prefill tokens of one forward pass.
        kv_capacity_tokens: KV tokens that fit. 1.5 M is our round figure for 70B BF16 on 4 × B200.
        max_batch: requests decoded at once.
    """

    timing: TimingCurves
    batch_tokens: int = 8_192
    kv_capacity_tokens: float = 1_500_000
    max_batch: int = 256


@dataclass(frozen=True)
class QueueingSource:
    """`AttainmentSource` of a trace on equal workers.

    Attributes:
        trace: the workload.
        engine: what each worker can do.
        slo: the limits.
        reuse: share of the trace's ideal prefix reuse that caches really give, 0 to 1.
    """

    trace: Trace
    engine: Engine
    slo: Slo
    reuse: float = 0.0
    _tokens: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _first: dict[int, Floats] = field(default_factory=dict[int, Floats], repr=False, compare=False)
    _seen: dict[tuple[int, int], Attainment] = field(
        default_factory=dict[tuple[int, int], Attainment], repr=False, compare=False
    )

    def __post_init__(self) -> None:
        require(0.0 <= self.reuse <= 1.0, f"reuse {self.reuse}", "a share from 0 to 1")
        saved = self.reuse * ideal_reuse(self.trace) if self.reuse > 0 else 0.0
        left = np.maximum(self.trace.input_tokens - saved, 1).astype(np.int64)
        object.__setattr__(self, "_tokens", left)

    def first_token_s(self, prefill_workers: int) -> Floats:
        """(requests,) when each first token is out, by prefill workers."""
        if prefill_workers not in self._first:
            self._first[prefill_workers] = prefill_done(
                self.trace.arrival_s,
                self._tokens,
                prefill_workers,
                self.engine.timing,
                self.engine.batch_tokens,
            )
        return self._first[prefill_workers]

    def attainment(self, prefill_workers: int, decode_workers: int) -> Attainment:
        """Run both pools over the trace. Deterministic; each split is run once."""
        sizes = (prefill_workers, decode_workers)
        require(min(sizes) >= 1, sizes, "at least one worker in each pool")
        if sizes not in self._seen:
            self._seen[sizes] = self._run(*sizes)
        return self._seen[sizes]

    def _run(self, prefill_workers: int, decode_workers: int) -> Attainment:
        trace, engine = self.trace, self.engine
        first = self.first_token_s(prefill_workers)
        pool = DecodePool(
            decode_workers, engine.timing, engine.kv_capacity_tokens, engine.max_batch
        )
        last = pool.finish_times(first, trace.input_tokens, trace.output_tokens)
        ttft = first - trace.arrival_s
        itl = (last - first) / np.maximum(trace.output_tokens - 1, 1)
        ttft_kept, itl_kept = ttft <= self.slo.ttft_s, itl <= self.slo.itl_s
        both = float((ttft_kept & itl_kept).mean())
        return Attainment(
            ttft=float(ttft_kept.mean()),
            itl=float(itl_kept.mean()),
            both=both,
            goodput_rps=both * trace.requests / trace.span_s,
            ttft_p99_s=float(np.percentile(ttft, 99)),
            itl_p99_s=float(np.percentile(itl, 99)),
        )

    @property
    def ceiling(self) -> float:
        """Share of requests whose TTFT limit an idle worker could keep: no split does better."""
        timing = self.engine.timing
        alone = np.array([timing.prefill_seconds(tokens) for tokens in self._tokens.tolist()])
        return float((alone <= self.slo.ttft_s).mean())


def ideal_reuse(trace: Trace) -> Floats:
    """Tokens of each request that an infinite fleet-wide cache would already hold: (requests,).

    Leading blocks seen in any earlier request × block tokens, never all of the prompt.
    """
    seen: set[int] = set()
    saved = np.zeros(trace.requests)
    for i, blocks in enumerate(trace.blocks):
        for count, block in enumerate(blocks):
            if block not in seen:
                saved[i] = count * trace.block_tokens
                break
        else:
            saved[i] = len(blocks) * trace.block_tokens
        seen.update(blocks)
    return np.minimum(saved, trace.input_tokens - 1)
