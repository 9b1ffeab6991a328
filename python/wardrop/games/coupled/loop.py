"""The closed loop as the paper draws it: cache → overlap → routing → pressure → split → cache.

Where it stands: on the three games. Each tick: requests take one best-reply sweep of the routing
game under the overlap of now (Γ_R); flows refill the caches (Γ_KV, Che's approximation); backlogs
and the decode step give the pressures; each interval the planner moves a worker (Γ_PD), which
serves only after a delay and with a cold cache. A fluid model, deterministic, ours [O]; the loop
itself is the paper's [R].

Left out: individual requests, KV transfer, the drain of a leaving worker's own queue (it is dropped
into the pool's), and the choice of tier.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from wardrop.games.coupled.cache import steady_overlap
from wardrop.games.coupled.planner import Planner, pressure_error
from wardrop.games.routing.latency import MM1, Floats, as_floats, require
from wardrop.games.routing.nonatomic import fill_class
from wardrop.slo import Slo
from wardrop.timing import TimingCurves

_BUSIEST = 0.95  # queueing delay is taken at this utilisation at most; backlog does the rest


@dataclass(frozen=True)
class Fleet:
    """The workload and the workers.

    Attributes:
        workers: G, both pools together, ≥ 2.
        rates: (families,) requests per second of each prompt family.
        prefix_tokens: (families,) tokens that a family shares.
        private_tokens: tokens of each prompt that no other prompt shares.
        output_tokens: mean OSL.
        cache_tokens: KV tokens of reusable prefix that a prefill worker holds.
        timing: the engine's curves.
        slo: the limits that pressures are measured against.
        step_at_s: when the load steps.
        step: factor on all rates from then on.
    """

    workers: int
    rates: ArrayLike
    prefix_tokens: ArrayLike
    private_tokens: float
    output_tokens: float
    cache_tokens: float
    timing: TimingCurves
    slo: Slo
    step_at_s: float = 300.0
    step: float = 1.0

    def __post_init__(self) -> None:
        require(self.workers >= 2, f"{self.workers} workers", "at least 2")
        rates, prefix = as_floats(self.rates), as_floats(self.prefix_tokens)
        require(rates.ndim == 1 and bool(np.all(rates > 0)), rates, "rates > 0, one per family")
        require(prefix.shape == rates.shape, prefix.shape, f"a prefix per family, {rates.shape}")

    def rates_at(self, now_s: float) -> Floats:
        """(families,) requests per second now."""
        return as_floats(self.rates) * (self.step if now_s >= self.step_at_s else 1.0)


@dataclass
class State:
    """The state of the loop. Arrays have one column per prefill worker.

    Invariant: flows, overlap and backlog_s have `prefill` columns; 1 ≤ prefill ≤ workers − 1.
    """

    prefill: int
    flows: Floats
    overlap: Floats
    backlog_s: Floats

    def resize(self, prefill: int) -> None:
        """Workers join cold and empty, or leave with their backlog shared among the rest."""
        old = self.prefill
        if prefill > old:
            pad = ((0, 0), (0, prefill - old))
            self.flows, self.overlap = np.pad(self.flows, pad), np.pad(self.overlap, pad)
            self.backlog_s = np.pad(self.backlog_s, (0, prefill - old))
        elif prefill < old:
            left = float(self.backlog_s[prefill:].sum())
            self.flows, self.overlap = self.flows[:, :prefill], self.overlap[:, :prefill]
            self.backlog_s = self.backlog_s[:prefill] + left / prefill
        self.prefill = prefill


@dataclass(frozen=True)
class History:
    """The history of a run, one entry per tick.

    Attributes:
        time_s: seconds.
        prefill: prefill workers serving.
        overlap: share of the prefix tokens found cached.
        ttft_s: mean over requests, seconds.
        itl_s: decode step, seconds.
        error: the planner's signal.
    """

    time_s: Floats
    prefill: Floats
    overlap: Floats
    ttft_s: Floats
    itl_s: Floats
    error: Floats

    def settled_from(self, share: float = 0.5) -> slice:
        """The last part of the run, after transients."""
        return slice(int(self.time_s.size * (1.0 - share)), None)

    @property
    def swing(self) -> int:
        """Largest − smallest prefill pool over the last half, workers; 0 if it came to rest."""
        late = self.prefill[self.settled_from()]
        return int(late.max() - late.min())

    @property
    def reversals(self) -> int:
        """Times the pool turned from growing to shrinking or back, over the last half."""
        moves = np.diff(self.prefill[self.settled_from()])
        signs = np.sign(moves[moves != 0])
        return int((signs[1:] != signs[:-1]).sum())

    @property
    def oscillates(self) -> bool:
        """The pool still turned around in the last half: it has not come to rest."""
        return self.reversals >= 1


def initial_state(fleet: Fleet, prefill: int) -> State:
    """Cold caches, even flows, no backlog."""
    require(1 <= prefill < fleet.workers, prefill, f"1 to {fleet.workers - 1} prefill workers")
    rates = fleet.rates_at(0.0)
    flows = np.repeat(rates[:, None] / prefill, prefill, axis=1)
    return State(prefill, flows, np.zeros_like(flows), np.zeros(prefill))


def service_seconds(fleet: Fleet, overlap: Floats) -> Floats:
    """(families, workers) seconds to prefill the uncached tokens."""
    tokens = fleet.private_tokens + as_floats(fleet.prefix_tokens)[:, None] * (1.0 - overlap)
    timing = fleet.timing
    return as_floats(np.interp(tokens, timing.prefill_tokens, timing.prefill_s))


def route(fleet: Fleet, state: State, rates: Floats) -> Floats:
    """One best-reply sweep of Γ_R under frozen overlap and backlog: the new flows."""
    service = service_seconds(fleet, state.overlap)
    carried = state.flows.sum(axis=0)
    busy = np.where(carried > 0, carried, 1.0)
    mean = (state.flows * service).sum(axis=0) / busy
    mean = mean + np.where(carried > 0, 0.0, 1.0) * service.mean(axis=0)
    capacity = as_floats(1.0 / mean)
    scale = min(1.0, _BUSIEST * float(capacity.sum()) / float(rates.sum()))
    latency = MM1(capacity)
    even = capacity / capacity.sum()
    flows = state.flows * (scale * rates / np.maximum(state.flows.sum(axis=1), 1e-12))[:, None]
    if (
        flows.sum(axis=0) >= capacity
    ).any():  # workers were added or slowed: start from an even spread
        flows = scale * rates[:, None] * even
    for r in range(rates.size):
        others = flows.sum(axis=0) - flows[r]
        flows[r] = fill_class(
            latency, service[r] + state.backlog_s, others, float(scale * rates[r])
        )
    return flows / scale


def decode_step_s(fleet: Fleet, decode: int, finished_rps: float) -> float:
    """Step seconds at which finished_rps·output_tokens tokens per second leave `decode` workers.

    Fixed point of batch = rate·output·step/decode and step = timing(batch·context). Held at the
    table's edge when no fixed point exists.
    """
    context = fleet.private_tokens + float(as_floats(fleet.prefix_tokens).mean())
    context += 0.5 * fleet.output_tokens
    step = fleet.timing.step_seconds(context, context)
    for _ in range(60):
        batch = max(finished_rps * fleet.output_tokens * step / decode, 1.0)
        step = 0.5 * (step + fleet.timing.step_seconds(batch * context, context))
    return step


def tick(fleet: Fleet, state: State, now_s: float, seconds: float) -> tuple[float, float, float]:
    """Advance the state; returns (mean TTFT s, decode step s, overlap share)."""
    rates, prefix = fleet.rates_at(now_s), as_floats(fleet.prefix_tokens)
    state.flows = route(fleet, state, rates)
    service = service_seconds(fleet, state.overlap)
    load, work = state.flows.sum(axis=0), (state.flows * service).sum(axis=0)
    busy = np.minimum(work, _BUSIEST)
    queue = busy / (1.0 - busy) * np.divide(work, load, out=np.zeros_like(work), where=load > 0)
    ttft = (state.flows * (service + queue + state.backlog_s)).sum() / rates.sum()
    hit = (state.flows * state.overlap * prefix[:, None]).sum() / (rates * prefix).sum()
    drained = np.minimum(state.backlog_s + seconds * work, seconds)
    served = float(rates.sum()) * float(drained.sum() / max((seconds * work).sum(), 1e-12))
    state.backlog_s = np.maximum(state.backlog_s + seconds * (work - 1.0), 0.0)
    target = steady_overlap(state.flows, prefix, load * fleet.private_tokens, fleet.cache_tokens)
    state.overlap = target + (state.overlap - target) * np.exp(-state.flows * seconds)
    return float(ttft), decode_step_s(fleet, fleet.workers - state.prefill, served), float(hit)


@dataclass
class _Moves:
    """Decisions on their way: (time they land, workers)."""

    pending: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    landed_s: float = -np.inf

    def land(self, now_s: float) -> int:
        due = [move for at, move in self.pending if at <= now_s]
        if due:
            self.landed_s = now_s
            self.pending = [(at, move) for at, move in self.pending if at > now_s]
        return sum(due)


def run_loop(
    fleet: Fleet, planner: Planner, prefill: int, seconds: float = 1_800.0, tick_s: float = 10.0
) -> History:
    """Run the loop; same arguments, same history.

    Args:
        fleet: workload and workers.
        planner: its rule and its delay.
        prefill: prefill workers at the start.
        seconds: length of the run.
        tick_s: length of a tick, ≤ the planner's interval.
    """
    require(tick_s <= planner.interval_s, tick_s, f"a tick of at most {planner.interval_s} s")
    state, moves = initial_state(fleet, prefill), _Moves()
    rows: list[tuple[float, float, float, float, float, float]] = []
    recent: list[float] = []
    decide_at = planner.interval_s
    for step in range(int(seconds / tick_s)):
        now = step * tick_s
        landing = state.prefill + moves.land(now)
        state.resize(max(1, min(fleet.workers - 1, landing)))
        ttft, itl, hit = tick(fleet, state, now, tick_s)
        error = pressure_error(ttft, itl, fleet.slo.ttft_s, fleet.slo.itl_s)
        rows.append((now, float(state.prefill), hit, ttft, itl, error))
        recent.append(error)
        if now + tick_s >= decide_at:
            decide_at += planner.interval_s
            settled = not moves.pending and now - moves.landed_s >= planner.interval_s
            move = planner.move(float(np.mean(recent))) if settled or not planner.waits else 0
            recent.clear()
            if move:
                moves.pending.append((now + tick_s + planner.delay_s, move))
    return History(*(np.array(column) for column in zip(*rows, strict=True)))
