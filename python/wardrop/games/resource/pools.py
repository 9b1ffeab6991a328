"""The two pools as queues: prefill FCFS in batches, decode stepping at the pace of its active KV.

Where it stands: the engine of `queueing.py`. Not a full simulator: no routing, no chunked prefill,
no transfer between pools, no preemption. What it keeps is what sets a split: how long a prompt
waits and runs, and how the step slows as KV piles up. Deterministic: no randomness at all.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wardrop.games.routing.latency import Floats
from wardrop.timing import TimingCurves

_STEPS_PER_EVALUATION = (
    16  # step time is held this long: KV grows 16 tokens a request, below 1 % of it
)


def prefill_done(
    arrival_s: Floats,
    tokens: NDArray[np.int64],
    workers: int,
    timing: TimingCurves,
    batch_tokens: int,
) -> Floats:
    """First-token times: FCFS onto the first free worker, in batches of up to `batch_tokens`.

    A free worker takes the head of the queue and the requests behind it while the batch fits (a
    longer prompt goes alone); a batch of T tokens takes timing.prefill_seconds(T).

    Args:
        arrival_s: (requests,) non-decreasing.
        tokens: (requests,) tokens left to prefill.
        workers: prefill workers, ≥ 1.
        timing: the engine's curves.
        batch_tokens: the engine's budget for one forward pass.

    Returns:
        (requests,) seconds. O(requests·log workers).
    """
    done = np.empty(arrival_s.size)
    arrivals, sizes = arrival_s.tolist(), tokens.tolist()
    free = [0.0] * workers
    head, count = 0, len(arrivals)
    while head < count:
        start = max(heapq.heappop(free), arrivals[head])
        total, tail = sizes[head], head + 1
        while tail < count and arrivals[tail] <= start and total + sizes[tail] <= batch_tokens:
            total += sizes[tail]
            tail += 1
        finish = start + timing.prefill_seconds(total)
        done[head:tail] = finish
        heapq.heappush(free, finish)
        head = tail
    return done


@dataclass
class DecodeWorker:
    """One decode worker: all active requests gain a token per step.

    Invariant: `kv_tokens` is the sum over active requests of input + tokens made so far.
    """

    timing: TimingCurves
    kv_capacity: float
    max_batch: int
    clock_s: float = 0.0
    steps: int = 0
    kv_tokens: float = 0.0
    finishing: list[tuple[int, int, float]] = field(default_factory=list[tuple[int, int, float]])
    waiting: deque[tuple[int, int, int]] = field(default_factory=deque[tuple[int, int, int]])
    waiting_tokens: float = 0.0

    @property
    def booked_tokens(self) -> float:
        """Active and waiting KV tokens, which a dispatcher balances."""
        return self.kv_tokens + self.waiting_tokens

    def add(self, request: int, input_tokens: int, output_tokens: int, now_s: float) -> None:
        """Take a request whose first token is out; it has output_tokens − 1 steps to go."""
        if not self.finishing and not self.waiting:
            self.clock_s = max(self.clock_s, now_s)
        self.waiting.append((request, input_tokens, output_tokens - 1))
        self.waiting_tokens += input_tokens

    def _admit(self) -> None:
        while self.waiting and len(self.finishing) < self.max_batch:
            request, tokens, left = self.waiting[0]
            if self.finishing and self.kv_tokens + tokens + left > self.kv_capacity:
                return
            self.waiting.popleft()
            self.waiting_tokens -= tokens
            self.kv_tokens += tokens
            heapq.heappush(self.finishing, (self.steps + left, request, float(tokens + left)))

    def advance(self, until_s: float, finished_s: Floats) -> None:
        """Step until `until_s` or idle, writing finish times; may overshoot by one held stretch."""
        while self.clock_s < until_s:
            self._admit()
            batch = len(self.finishing)
            if batch == 0:
                return
            steps = min(self.finishing[0][0] - self.steps, _STEPS_PER_EVALUATION)
            step_s = self.timing.step_seconds(self.kv_tokens, self.kv_tokens / batch)
            if np.isfinite(until_s):  # stop near the next arrival, so that it joins in time
                steps = min(steps, max(1, int((until_s - self.clock_s) / step_s) + 1))
            self.clock_s += steps * step_s
            self.steps += steps
            self.kv_tokens += steps * batch
            while self.finishing and self.finishing[0][0] <= self.steps:
                _, request, held = heapq.heappop(self.finishing)
                finished_s[request] = self.clock_s
                self.kv_tokens -= held


@dataclass(frozen=True)
class DecodePool:
    """A pool of equal decode workers; a request goes to the one with the fewest booked KV tokens.

    Attributes:
        workers: ≥ 1.
        timing: the engine's curves.
        kv_capacity: KV tokens that fit on a worker; more wait.
        max_batch: requests a worker decodes at once.
    """

    workers: int
    timing: TimingCurves
    kv_capacity: float
    max_batch: int

    def finish_times(
        self, first_token_s: Floats, inputs: NDArray[np.int64], outputs: NDArray[np.int64]
    ) -> Floats:
        """Last-token times: (requests,) seconds. A one-token request ends at its first."""
        finished = first_token_s.copy()
        pool = [
            DecodeWorker(self.timing, self.kv_capacity, self.max_batch) for _ in range(self.workers)
        ]
        tokens_in, tokens_out = inputs.tolist(), outputs.tolist()
        for request in np.argsort(first_token_s, kind="stable").tolist():
            if tokens_out[request] <= 1:
                continue
            now = float(first_token_s[request])
            for worker in pool:
                worker.advance(now, finished)
            target = min(pool, key=lambda worker: worker.booked_tokens)
            target.add(request, tokens_in[request], tokens_out[request], now)
        for worker in pool:
            worker.advance(float("inf"), finished)
        return finished
