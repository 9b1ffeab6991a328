"""One simulation: from a workload, a fleet, a policy and a seed to arrays and summary figures."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardrop._core import simulate_fleet
from wardrop.calls import Call, CallError, parse_call, split_outside
from wardrop.control.audit import Record
from wardrop.replay.anarchy import Report, combined, read_reports
from wardrop.replay.bound import Cost, LowerBound, read_bound
from wardrop.replay.controlled import ControlledRun
from wardrop.replay.fleet import Fleet
from wardrop.replay.workload import Workload
from wardrop.slo import Slo

COMPLETE = 1
"""Value of `Result.end` for a request that received all its tokens."""

_NO_WORKER = 0xFFFFFFFF
"""Value of `Result.worker` and `Result.decode_worker` for a request without a worker."""

_TIMES = ("arrival_ms", "admit_ms", "first_token_ms", "end_ms")
_ADDITIONS = ("queue", "predicted", "controller")
_COUNTS = ("worker", "decode_worker", "cached_tokens", "expected_tokens", "preemptions", "retries")


@dataclass(frozen=True)
class Policy:
    """A routing policy by name, with its parameters and additions.

    Attributes:
        name: name as in `wardrop.Router(policy=…)`.
        parameters: parameters of the policy.
        decode: name of the decode pool's policy in a split fleet; None for the same policy.
        decode_parameters: parameters of the decode pool's policy; None for the same parameters.
        queue: parameters of the queue for late binding; None without a queue.
        predicted: parameters of the predicted cache contents, as in `wardrop.Router`: used (off,
            alone, beside), ttl_s, settle_s, capacity_blocks, max_records. None: off.
        controller: parameters of `wardrop.replay.controlled.ControlledRun`; None without a
            controller.
        price_guard: whether a static rule decides while the predictions of the price do not fit.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    decode: str | None = None
    decode_parameters: dict[str, Any] | None = None
    queue: dict[str, Any] | None = None
    predicted: dict[str, Any] | None = None
    controller: dict[str, Any] | None = None
    price_guard: bool = True

    @property
    def label(self) -> str:
        """The policy and its additions as text that `parse` reads."""
        calls = [Call(self.name, self.parameters)]
        for name in _ADDITIONS:
            parameters: dict[str, Any] | None = getattr(self, name)
            if parameters is not None:
                calls.append(Call(name, parameters))
        return "+".join(map(str, calls))

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a policy as text; `wardrop.calls` gives the grammar.

        `+queue(…)` adds late binding, `+predicted(used=beside,…)` predicted cache contents, and
        `+controller(moves=kappa|objective,…)` a controller that changes settings during the run.

        Raises:
            CallError: the text does not follow the grammar, or adds anything else.
        """
        head, *tails = split_outside(text, "+") or [""]
        policy = parse_call(head)
        added: dict[str, dict[str, Any]] = {}
        for tail in tails:
            call = parse_call(tail)
            if call.name not in _ADDITIONS or call.name in added:
                expected = ", ".join(f"{name}(…)" for name in _ADDITIONS)
                raise CallError(
                    f"got {tail.strip()!r} after the policy in {text!r}; expected each of "
                    f"{expected} at most once"
                )
            added[call.name] = dict(call.parameters)
        return cls(
            policy.name,
            dict(policy.parameters),
            queue=added.get("queue"),
            predicted=added.get("predicted"),
            controller=added.get("controller"),
        )

    def routers(self, fleet: Fleet, seed: int) -> str:
        """JSON for the simulator: one router per pool."""
        first = {
            "policy": self.name,
            "parameters": self.parameters,
            "queue": self.queue,
            "predicted": self.predicted,
            "price_guard": self.price_guard,
            "seed": seed,
        }
        if not fleet.is_split:
            return json.dumps([first])
        second = {
            "policy": self.decode or self.name,
            "parameters": self.parameters
            if self.decode_parameters is None
            else self.decode_parameters,
            "queue": self.queue,
            "predicted": self.predicted,
            "price_guard": self.price_guard,
            "seed": seed + 1,
        }
        return json.dumps([first, second])


@dataclass(frozen=True)
class Result:
    """The result of one simulation.

    Arrays have one entry per request unless a shape is given. Times are in ms, NaN where the
    request never got so far.

    Attributes:
        arrival_ms: time of arrival at the router.
        admit_ms: time at which the prefill engine first schedules the request.
        first_token_ms: time of the first token.
        end_ms: time of the last token.
        worker: index of the prefill (or only) worker.
        decode_worker: index of the decode worker in a split fleet.
        cached_tokens: prompt tokens found in the worker's cache.
        expected_tokens: prompt tokens that the router expected in the worker's cache.
        preemptions: number of restarts after a preemption.
        retries: number of times that the request went to another worker after a failure.
        end: 1 complete, 2 rejected, 3 failed, 0 open.
        input_tokens: prompt length in tokens.
        output_tokens: answer length in tokens.
        gap_ms: (buckets,) middles of the histogram of gaps between tokens.
        gap_counts: (buckets,) counts of the histogram.
        sample_ms: (samples,) times at which the workers were sampled.
        running: (samples, workers) running sequences.
        waiting: (samples, workers) sequences waiting in the engine.
        active_blocks: (samples, workers) KV blocks in use.
        totals: counters of the run.
        anarchy: per pool the loss of its decisions and its parts (`Fleet.anarchy_window`), or None
            where nothing was measured; see `wardrop.replay.anarchy`.
        bound: lower bound on the cost of the complete requests under any routing
            (`Fleet.anarchy_window`), or None where nothing was measured or no bound is proven.
        regimes: per pool the changes of regime: (time in s, regime, smoothed p99 TTFT in s,
            baseline in s). Empty for policies without regimes.
        audit: records of the controller, oldest first, with times in seconds of the run; empty
            without a controller.
    """

    arrival_ms: NDArray[np.float64]
    admit_ms: NDArray[np.float64]
    first_token_ms: NDArray[np.float64]
    end_ms: NDArray[np.float64]
    worker: NDArray[np.uint32]
    decode_worker: NDArray[np.uint32]
    cached_tokens: NDArray[np.uint32]
    expected_tokens: NDArray[np.uint32]
    preemptions: NDArray[np.uint32]
    retries: NDArray[np.uint32]
    end: NDArray[np.uint8]
    input_tokens: NDArray[np.uint32]
    output_tokens: NDArray[np.uint32]
    gap_ms: NDArray[np.float64]
    gap_counts: NDArray[np.uint64]
    sample_ms: NDArray[np.float64]
    running: NDArray[np.uint32]
    waiting: NDArray[np.uint32]
    active_blocks: NDArray[np.uint32]
    totals: dict[str, float]
    anarchy: tuple[Report | None, ...] = ()
    bound: LowerBound | None = None
    regimes: tuple[tuple[tuple[float, str, float, float], ...], ...] = ()
    audit: tuple[Record, ...] = ()

    @property
    def complete(self) -> NDArray[np.bool_]:
        """(requests,) whether a request received all its tokens."""
        return self.end == COMPLETE

    @property
    def ttft_ms(self) -> NDArray[np.float64]:
        """(requests,) time to first token in ms; NaN for an incomplete request."""
        return np.where(self.complete, self.first_token_ms - self.arrival_ms, np.nan)

    @property
    def e2e_ms(self) -> NDArray[np.float64]:
        """(requests,) time to last token in ms; NaN for an incomplete request."""
        return np.where(self.complete, self.end_ms - self.arrival_ms, np.nan)

    @property
    def itl_ms(self) -> NDArray[np.float64]:
        """(requests,) mean time between tokens in ms; NaN below two tokens."""
        gaps = self.output_tokens.astype(np.float64) - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(
                self.complete & (gaps > 0), (self.end_ms - self.first_token_ms) / gaps, np.nan
            )

    @property
    def cost(self) -> Cost:
        """Sums of TTFT and E2E over the complete requests."""
        return Cost(float(np.nansum(self.ttft_ms)) / 1e3, float(np.nansum(self.e2e_ms)) / 1e3)

    def price_of_anarchy(self, *, ttft: float = 0.0, e2e: float = 1.0) -> float:
        """Cost ÷ lower bound, for an objective with these weights: at least 1, and 1 is optimal.

        The price against the true optimum is at most this. NaN without a bound.

        Raises:
            ValueError: a weight is negative, or both are 0.
        """
        cost = self.cost.weighted(ttft, e2e)
        lower = self.bound.all.weighted(ttft, e2e) if self.bound else 0.0
        return cost / lower if lower > 0 else float("nan")

    def gap_percentile(self, percent: float) -> float:
        """Percentile of the gaps between tokens in ms, from the histogram with 1.1 % buckets."""
        total = self.gap_counts.sum(dtype=np.float64)
        if total == 0:
            return float("nan")
        at = int(
            np.searchsorted(
                np.cumsum(self.gap_counts, dtype=np.float64), float(total) * percent / 100
            )
        )
        return float(self.gap_ms[min(at, self.gap_ms.size - 1)])

    def summary(self, slo: Slo | None = None) -> dict[str, float]:
        """Summary figures of the simulation.

        Args:
            slo: limits of goodput; the defaults of `Slo` if None.

        Returns:
            Figures by name. TTFT and E2E are seconds (mean, p50, p90, p99). ITL is ms over all
            token gaps (mean, p50, p99). `reuse` is the share of prompt tokens found in caches.
            `requests_per_s` and `output_tokens_per_s` are over the whole run. `goodput_per_s` is
            requests within `slo` per second of arrivals, and `attainment` is their share;
            `attainment_ttft` and `attainment_itl` are the shares within one limit.
            `load_spread` is the coefficient of variation, over workers, of prompt tokens computed.
            `completed`, `failed` and `preemptions` are counts. With a controller also `changes`,
            `changes_kept` and `changes_rolled_back`. With `Fleet.anarchy_window` also `poa_ttft`
            and `poa_e2e`, cost ÷ lower bound of any routing, and the figures of
            `wardrop.replay.anarchy.combined`.
        """
        slo = slo or Slo()
        done = self.complete
        figures: dict[str, float] = {}
        for name, values in (("ttft", self.ttft_ms), ("e2e", self.e2e_ms)):
            kept = values[done] / 1e3
            figures[f"{name}_mean_s"] = float(kept.mean()) if kept.size else float("nan")
            for percent in (50, 90, 99):
                figures[f"{name}_p{percent}_s"] = (
                    float(np.percentile(kept, percent)) if kept.size else float("nan")
                )
        gaps = float(self.gap_counts.sum(dtype=np.float64))
        figures["itl_mean_ms"] = self.totals["gap_sum_ms"] / gaps if gaps else float("nan")
        figures["itl_p50_ms"] = self.gap_percentile(50)
        figures["itl_p99_ms"] = self.gap_percentile(99)
        tokens = float(self.input_tokens[done].sum(dtype=np.uint64))
        figures["reuse"] = (
            float(self.cached_tokens[done].sum(dtype=np.uint64)) / tokens
            if tokens
            else float("nan")
        )
        span_s = (
            (np.nanmax(self.end_ms) - np.nanmin(self.arrival_ms)) / 1e3
            if done.any()
            else float("nan")
        )
        arrivals_s = max((np.nanmax(self.arrival_ms) - np.nanmin(self.arrival_ms)) / 1e3, 1e-9)
        figures["requests_per_s"] = float(done.sum()) / span_s
        figures["output_tokens_per_s"] = (
            float(self.output_tokens[done].sum(dtype=np.uint64)) / span_s
        )
        itl = self.itl_ms
        within_ttft = done & (self.ttft_ms <= slo.ttft_s * 1e3)
        # An answer of one token has no time between tokens, so it is within the limit.
        within_itl = done & (np.isnan(itl) | (itl <= slo.itl_s * 1e3))
        good = within_ttft & within_itl
        figures["goodput_per_s"] = float(good.sum()) / arrivals_s
        figures["attainment"] = float(good.mean())
        figures["attainment_ttft"] = float(within_ttft.mean())
        figures["attainment_itl"] = float(within_itl.mean())
        figures["load_spread"] = self._load_spread()
        figures["completed"] = float(done.sum())
        figures["failed"] = float((self.end > COMPLETE).sum())
        figures["preemptions"] = float(self.preemptions.sum(dtype=np.uint64))
        if self.audit:
            for event in ("change", "kept", "rolled_back"):
                name = "changes" if event == "change" else f"changes_{event}"
                figures[name] = float(sum(record.event == event for record in self.audit))
        if self.bound is not None:
            figures["poa_ttft"] = self.price_of_anarchy(ttft=1, e2e=0)
            figures["poa_e2e"] = self.price_of_anarchy(ttft=0, e2e=1)
        return figures | combined(self.anarchy)

    def _load_spread(self) -> float:
        placed = self.worker != _NO_WORKER
        work = (self.input_tokens - np.minimum(self.cached_tokens, self.input_tokens))[
            placed
        ].astype(np.float64)
        workers = (
            self.running.shape[1]
            if self.running.size
            else int(self.worker[placed].max(initial=0)) + 1
        )
        if (self.decode_worker != _NO_WORKER).any():
            workers = int(self.worker[placed].max(initial=0)) + 1
        per_worker = np.bincount(
            self.worker[placed].astype(np.int64), weights=work, minlength=workers
        )
        mean = per_worker.mean()
        return float(per_worker.std() / mean) if mean > 0 else 0.0

    def frame(self) -> Any:
        """One row per request, as a pandas frame.

        Raises:
            ModuleNotFoundError: pandas is not installed (`pip install wardrop[frames]`).
        """
        pd: Any = importlib.import_module("pandas")

        names = (*_TIMES, *_COUNTS, "end", "input_tokens", "output_tokens")
        columns: dict[str, Any] = {name: getattr(self, name) for name in names}
        return pd.DataFrame(
            columns | {"ttft_ms": self.ttft_ms, "itl_ms": self.itl_ms, "e2e_ms": self.e2e_ms}
        )


def simulate(workload: Workload, fleet: Fleet, policy: Policy | str, *, seed: int = 0) -> Result:
    """Replay a workload over a simulated fleet behind the production router.

    Equal arguments give equal results, byte for byte. The run releases the GIL; with a controller,
    it takes the GIL for each poll.

    Args:
        workload: the requests.
        fleet: the simulated fleet.
        policy: the routing policy, or its text as `Policy.parse` reads it.
        seed: seed of ties, samples and losses.

    Raises:
        ValueError: a field is out of range, or the policy is not known; the text names it.
    """
    chosen = Policy.parse(policy) if isinstance(policy, str) else policy
    routers = chosen.routers(fleet, seed)
    if chosen.controller is None:
        raw = simulate_fleet(workload.native, fleet.to_json(seed), routers)
        return result_of(workload, fleet, raw)
    run = ControlledRun(workload, fleet, routers, seed, chosen.controller)
    run.advance()
    return result_of(workload, fleet, run.finish(), run.audit)


def result_of(
    workload: Workload, fleet: Fleet, raw: dict[str, Any], audit: Sequence[Record] = ()
) -> Result:
    """The result of a run, from the raw arrays that the simulator returns."""
    shape = (-1, fleet.size)

    def times(name: str) -> NDArray[np.float64]:
        return np.frombuffer(raw[name], dtype=np.float64)

    def counts(name: str) -> NDArray[np.uint32]:
        return np.frombuffer(raw[name], dtype=np.uint32)

    return Result(
        arrival_ms=times("arrival_ms"),
        admit_ms=times("admit_ms"),
        first_token_ms=times("first_token_ms"),
        end_ms=times("end_ms"),
        worker=counts("worker"),
        decode_worker=counts("decode_worker"),
        cached_tokens=counts("cached_tokens"),
        expected_tokens=counts("expected_tokens"),
        preemptions=counts("preemptions"),
        retries=counts("retries"),
        end=np.frombuffer(raw["end"], dtype=np.uint8),
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        gap_ms=times("gap_ms"),
        gap_counts=np.frombuffer(raw["gap_counts"], dtype=np.uint64),
        sample_ms=times("sample_ms"),
        running=counts("sample_running").reshape(shape),
        waiting=counts("sample_waiting").reshape(shape),
        active_blocks=counts("sample_active_blocks").reshape(shape),
        totals=raw["totals"],
        anarchy=read_reports(raw["anarchy"]),
        bound=read_bound(raw["bound"]),
        regimes=tuple(tuple(pool) for pool in raw["regimes"]),
        audit=tuple(audit),
    )
