"""One cell: a workload, a fleet, a policy, a seed; out come arrays, and figures made from them."""

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
from wardrop.replay.controlled import ControlledRun
from wardrop.replay.fleet import Fleet
from wardrop.replay.workload import Workload
from wardrop.slo import Slo

COMPLETE = 1

_TIMES = ("arrival_ms", "admit_ms", "first_token_ms", "end_ms")
_ADDITIONS = ("queue", "predicted", "controller")
_COUNTS = ("worker", "decode_worker", "cached_tokens", "expected_tokens", "preemptions", "retries")


@dataclass(frozen=True)
class Policy:
    """A policy of the core by name, with its parameters.

    Attributes:
        name: as in `wardrop.Router(policy=…)`.
        parameters: its keyword parameters.
        decode: name of the policy of the decode pool of a split fleet; by default the same one.
        decode_parameters: its parameters.
        queue: late binding in front of the policy, with these parameters of the queue; None
            without it.
        predicted: what is predicted of caches by where requests went, as `wardrop.Router` has it:
            used (off, alone, beside), ttl_s, settle_s, capacity_blocks, max_records; None: off.
        controller: the controller of `wardrop.control` beside it, with these parameters of
            `wardrop.replay.controlled.ControlledRun`; None without it.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    decode: str | None = None
    decode_parameters: dict[str, Any] | None = None
    queue: dict[str, Any] | None = None
    predicted: dict[str, Any] | None = None
    controller: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        """`name` or `name(parameter=value, …)`, then what stands beside it, as it is parsed."""
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
        """The simulator's form: one router per pool."""
        first = {
            "policy": self.name,
            "parameters": self.parameters,
            "queue": self.queue,
            "predicted": self.predicted,
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
            "seed": seed + 1,
        }
        return json.dumps([first, second])


@dataclass(frozen=True)
class Result:
    """What a cell left behind.

    Arrays have one entry per request unless said otherwise; times in ms, NaN where never reached.

    Attributes:
        arrival_ms: reached the router.
        admit_ms: first scheduled by the prefilling engine.
        first_token_ms: first token.
        end_ms: last token.
        worker: prefilling (or only) worker.
        decode_worker: decoding worker of a split.
        cached_tokens: prompt tokens found in the worker's cache.
        expected_tokens: prompt tokens that the router expected there.
        preemptions: times it started over.
        retries: times it was sent elsewhere after a failure.
        end: 1 complete, 2 rejected, 3 failed, 0 open.
        input_tokens: prompt length.
        output_tokens: answer length.
        gap_ms: (buckets,) middles of the histogram of token gaps.
        gap_counts: (buckets,) counts.
        sample_ms: (samples,) when workers were looked at.
        running: (samples, workers) running sequences.
        waiting: (samples, workers) sequences waiting in the engine.
        active_blocks: (samples, workers) KV blocks held.
        totals: counters of the run.
        anarchy: per pool what routing lost (`Fleet.anarchy_window`), or None where nothing was
            measured; see `wardrop.replay.anarchy`.
        regimes: per pool (time in s, regime, smoothed p99 TTFT in s, baseline in s) of each change,
            for policies that have regimes.
        audit: what the controller did and saw, where there was one: its records, oldest first,
            their times in seconds of the run.
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
    regimes: tuple[tuple[tuple[float, str, float, float], ...], ...] = ()
    audit: tuple[Record, ...] = ()

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which requests got all their tokens."""
        return self.end == COMPLETE

    @property
    def ttft_ms(self) -> NDArray[np.float64]:
        """Time to first token, NaN without one."""
        return np.where(self.complete, self.first_token_ms - self.arrival_ms, np.nan)

    @property
    def e2e_ms(self) -> NDArray[np.float64]:
        """Time to last token, NaN without one."""
        return np.where(self.complete, self.end_ms - self.arrival_ms, np.nan)

    @property
    def itl_ms(self) -> NDArray[np.float64]:
        """A request's mean time between tokens, NaN below two tokens."""
        gaps = self.output_tokens.astype(np.float64) - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(
                self.complete & (gaps > 0), (self.end_ms - self.first_token_ms) / gaps, np.nan
            )

    def gap_percentile(self, percent: float) -> float:
        """Percentile of the time between two tokens, ms, from the histogram (1.1 % buckets)."""
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
        """Figures of the cell.

        Returns:
            Seconds for TTFT and E2E (mean, p50, p90, p99), ms for ITL over all token gaps (mean,
            p50, p99), `reuse` (share of prompt tokens found in caches), `requests_per_s` and
            `output_tokens_per_s` over the whole run, `goodput_per_s` (requests within `slo` per
            second of arrivals) and `attainment` (their share), `load_spread` (coefficient of
            variation over workers of prompt tokens computed), `completed`, `failed`, `preemptions`;
            with a controller how many `changes` it made, of them `changes_kept` and
            `changes_rolled_back`; where it was measured, what `wardrop.replay.anarchy.combined`
            says.
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
        within_ttft = self.ttft_ms <= slo.ttft_s * 1e3
        good = done & within_ttft & (np.isnan(itl) | (itl <= slo.itl_s * 1e3))
        figures["goodput_per_s"] = float(good.sum()) / arrivals_s
        figures["attainment"] = float(good.mean())
        figures["load_spread"] = self._load_spread()
        figures["completed"] = float(done.sum())
        figures["failed"] = float((self.end > COMPLETE).sum())
        figures["preemptions"] = float(self.preemptions.sum(dtype=np.uint64))
        if self.audit:
            for event in ("change", "kept", "rolled_back"):
                name = "changes" if event == "change" else f"changes_{event}"
                figures[name] = float(sum(record.event == event for record in self.audit))
        return figures | combined(self.anarchy)

    def _load_spread(self) -> float:
        placed = self.worker != 0xFFFFFFFF
        work = (self.input_tokens - np.minimum(self.cached_tokens, self.input_tokens))[
            placed
        ].astype(np.float64)
        workers = (
            self.running.shape[1]
            if self.running.size
            else int(self.worker[placed].max(initial=0)) + 1
        )
        if (self.decode_worker != 0xFFFFFFFF).any():
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

    Deterministic: equal arguments give equal bytes. The interpreter is free for the whole run, with
    a controller between its looks.

    Args:
        workload: what comes in.
        fleet: what serves it.
        policy: who decides; text as in `Policy.parse`.
        seed: of ties, samples and losses.

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
    """The result of a run from what the simulator left behind."""
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
        regimes=tuple(tuple(pool) for pool in raw["regimes"]),
        audit=tuple(audit),
    )
