"""One chaos run: traffic and faults until the time is over, then the verdict."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from tests.chaos.arena import Arena, Sample
from tests.chaos.faults import Faults
from tests.chaos.oracle import (
    Bounds,
    Exchange,
    Fault,
    Slope,
    Violation,
    judge_attempts,
    judge_books,
    judge_exchanges,
    judge_faults,
    judge_memory,
    judge_prompts,
    slope,
)
from tests.chaos.plan import KINDS, Planned, lane_plan
from tests.chaos.traffic import Traffic, client_body, request_id

from wardrop.dynamo.embedded import FleetError

_WARM_UP_REQUESTS = 20
_STEADY_S = 600.0
"""Shortest run whose slope of memory is judged."""
_COMPARED_PROMPTS = 400
_SHOWN_PER_RULE = 20
_SPARE_DESCRIPTORS = 24
_FAULT_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Settings:
    """Size of a run.

    Attributes:
        seed: Seed of traffic and faults.
        seconds: Time under faults.
        rate: Requests a second.
        bounds: What the oracle allows.
        memory_kb_per_minute: Largest slope of the resident memory.
        memory_growth_kb: Largest growth after the warm-up.
        without: Names of kinds of faults to leave out.
        arguments: Further arguments of `wardrop dynamo`.
    """

    seed: int
    seconds: float
    rate: float = 8.0
    bounds: Bounds = field(default_factory=Bounds)
    memory_kb_per_minute: float = 2_048.0
    memory_growth_kb: float = 131_072.0
    without: frozenset[str] = frozenset()
    arguments: tuple[str, ...] = ()

    @property
    def kinds(self) -> list[str]:
        """Names of the kinds of faults in the run."""
        return [kind.name for kind in KINDS if kind.name not in self.without]


@dataclass
class Report:
    """What happened, and what was wrong."""

    settings: Settings
    faults: list[Fault] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    growth_kb: Counter[str] = field(default_factory=Counter[str])
    retries: float = 0.0
    sent_again: int = 0
    compared_prompts: int = 0
    handed_on: int = 0
    lag_s: float = 0.0
    memory: Slope = field(default_factory=lambda: Slope(0.0, 0.0))
    router_log: str = ""

    def lines(self) -> Iterator[str]:
        """The report as text."""
        whole = sum(one.whole for one in self.exchanges)
        yield f"seed {self.settings.seed}, {self.settings.seconds:g} s under faults"
        yield (
            f"requests: {len(self.exchanges)}, answered whole {whole}, "
            f"sent more than once {self.sent_again}, retries {self.retries:g}"
        )
        ends = Counter(
            "whole" if one.whole else f"{one.status} {one.error}"[:100] for one in self.exchanges
        )
        for text, count in ends.most_common(12):
            yield f"  {count:6d}  {text}"
        silences = sorted(one.silence_s for one in self.exchanges) or [0.0]
        yield (
            f"silence inside a stream: longest {silences[-1]:.2f} s, "
            f"p99 {silences[int(0.99 * (len(silences) - 1))]:.2f} s; own lag {self.lag_s:.2f} s"
        )
        yield f"prompts: {self.handed_on} handed on, {self.compared_prompts} compared"
        fired = Counter[str]()
        times = Counter[str]()
        for fault in self.faults:
            times[fault.kind] += fault.fired > 0
            fired[fault.kind] += fault.fired
        yield f"faults: {sum(times.values())} fired of {len(self.faults)} injected"
        for kind in self.settings.kinds:
            grown_kb = self.growth_kb[kind]
            yield f"  {times[kind]:6d}  {kind} (proof {fired[kind]}, resident {grown_kb:+d} kB)"
        if self.samples:
            first, last = self.samples[0], self.samples[-1]
            yield (
                f"router: resident {first.resident_kb} -> {last.resident_kb} kB, slope "
                f"{self.memory.per_minute:.0f} ± {self.memory.error:.0f} kB a minute; "
                f"descriptors {first.descriptors} -> {last.descriptors}; "
                f"threads {first.threads} -> {last.threads}"
            )
        yield f"violations: {len(self.violations)}"
        for rule, count in Counter(violation.rule for violation in self.violations).items():
            yield f"  {count:6d}  {rule}"
        shown = Counter[str]()
        for violation in self.violations:
            shown[violation.rule] += 1
            if shown[violation.rule] <= _SHOWN_PER_RULE:
                yield f"  {violation.rule}: {violation.detail}"


async def run(settings: Settings) -> Report:
    """Run, judge, and report."""
    report = Report(settings)
    async with Arena(settings.arguments) as arena:
        traffic = Traffic(arena.url, arena.fleet.spec.model_name, settings.seed, settings.rate)
        sending = asyncio.create_task(traffic.run())
        while len(traffic.exchanges) < _WARM_UP_REQUESTS:
            assert not sending.done(), "the traffic ended by itself"
            await asyncio.sleep(0.05)
        before = arena.sample()
        assert before is not None, arena.router.tail()
        faults = Faults(arena)
        end_s = time.monotonic() + settings.seconds
        lanes = [
            _inject(faults, lane_plan(settings.seed, lane, settings.without), end_s, report)
            for lane in ("process", "wire")
        ]
        await asyncio.gather(*lanes)
        traffic.stop()
        await asyncio.wait_for(sending, 120)
        report.exchanges = traffic.exchanges
        report.lag_s = traffic.longest_lag_s
        report.samples = arena.samples
        report.router_log = arena.router.log.read_text(errors="replace")
        report.violations += faults.violations
        report.violations += judge_exchanges(
            traffic.exchanges, report.faults, settings.bounds, traffic.longest_lag_s
        )
        if "panicked" in report.router_log:
            report.violations.append(Violation("panic", "the router's log holds a panic"))
        if arena.router.exit_code is not None:
            text = f"the router ended with code {arena.router.exit_code}: {arena.router.tail()}"
            report.violations.append(Violation("process", text))
            return report
        await _judge_aftermath(arena, before, report)
    return report


async def _judge_aftermath(arena: Arena, before: Sample, report: Report) -> None:
    """Judge what a living router shows once the traffic has ended."""
    settings = report.settings
    ours = {
        name: tried for name, tried in arena.recording.attempts.items() if name.startswith("chaos-")
    }
    report.violations += judge_attempts(ours, report.exchanges)
    report.sent_again = sum(len(tried) > 1 for tried in ours.values())
    handed_on = {name: ids for name, ids in arena.recording.handed_on().items() if name in ours}
    report.handed_on = len(handed_on)
    own = await _engines_own(arena, settings, list(handed_on)[-_COMPARED_PROMPTS:])
    report.compared_prompts = len(own)
    report.violations += judge_prompts(handed_on, own)
    report.violations += judge_books(await arena.settle())
    report.violations += await _judge_descriptors(arena, before)
    # Two thirds: allocator pools and learned state have their size by then.
    late = [(sample.at_s, float(sample.resident_kb)) for sample in arena.samples]
    late = late[len(late) // 3 :]
    report.memory = slope(late)
    # A slope says nothing while pools and learned state still reach their size: in a run of 60 s
    # on a quiet machine it was 15 MB a minute. A short run is judged by its growth alone.
    steady = settings.seconds >= _STEADY_S
    report.violations += judge_memory(
        late, settings.memory_kb_per_minute if steady else math.inf, settings.memory_growth_kb
    )
    report.violations += judge_faults(report.faults, settings.kinds)
    report.retries = (await arena.metrics()).total("wardrop_retries_total")


async def _inject(faults: Faults, plan: Iterator[Planned], end_s: float, report: Report) -> None:
    for planned in plan:
        if time.monotonic() + planned.pause_s >= end_s:
            return
        await asyncio.sleep(planned.pause_s)
        begin_s = time.monotonic()
        before = faults.arena.sample()
        if faults.arena.router.exit_code is not None:
            return
        try:
            async with asyncio.timeout(_FAULT_TIMEOUT_S):
                fired = await faults.inject(planned.kind.name, planned.draw)
        except (OSError, aiohttp.ClientError, TimeoutError, AssertionError, FleetError) as error:
            text = f"{planned.kind.name} could not end: {type(error).__name__}: {error}"[:300]
            report.violations.append(Violation("injector", text))
            fired = 0
        kind = planned.kind
        after = faults.arena.sample()
        if before is not None and after is not None:
            report.growth_kb[kind.name] += after.resident_kb - before.resident_kb
        report.faults.append(Fault(kind.name, begin_s, time.monotonic(), fired, kind.spares))


async def _judge_descriptors(arena: Arena, before: Sample) -> list[Violation]:
    """Descriptors and threads come back to their number before the faults."""
    deadline_s = time.monotonic() + 60
    while True:
        now = arena.sample()
        if now is None:
            return [Violation("process", "the router is gone")]
        if now.descriptors <= before.descriptors + _SPARE_DESCRIPTORS:
            return []
        if time.monotonic() > deadline_s:
            text = f"{before.descriptors} before the faults, {now.descriptors} a minute after"
            return [Violation("descriptors", text)]
        await asyncio.sleep(0.5)


async def _engines_own(arena: Arena, settings: Settings, names: list[str]) -> dict[str, list[int]]:
    """Token ids of the frontend's dry run of each client's body."""
    found: dict[str, list[int]] = {}
    numbers = {name: int(name.rpartition("-")[2]) for name in names}
    url = arena.frontends[0].url
    async with aiohttp.ClientSession() as session:
        for name, number in numbers.items():
            assert name == request_id(settings.seed, number)
            path, body = client_body(number, arena.fleet.spec.model_name, settings.seed)
            body = {**body, "stream": False, "nvext": {"annotations": ["query_instance_id:"]}}
            body.pop("stream_options")
            async with session.post(url + path, json=body) as answer:
                parsed: Any = await answer.json()
                assert answer.status == 200, f"dry run: {answer.status} {parsed}"
                found[name] = parsed["nvext"]["token_ids"]
    return found
