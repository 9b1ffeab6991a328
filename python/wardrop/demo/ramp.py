"""`wardrop demo --ramp`: load up across the knee and back, and what routers do about it.

One conversation workload is made at its lowest rate and its clock is then run faster and slower: a
session that would begin at virtual time v begins when the rate, integrated over real time, is v.
So every arm gets the same requests, token for token, and the rate goes 1 → peak → 1.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from wardrop.demo.arms import DYNAMO_KV, ROUND_ROBIN, Arm, running
from wardrop.demo.drive import Driven, Row, drive
from wardrop.demo.plan import BLOCK_SIZE, BLOCKS_PER_WORKER, MAX_MODEL_LEN, MODEL
from wardrop.dynamo.embedded import FleetSpec
from wardrop.workload import ConversationSpec, Turn, completion_body, generate

Floats = NDArray[np.float64]

PHASES = ("below", "up", "peak", "down", "after")
TTFT_SLO_S = 1.0
ITL_SLO_S = 0.05
_TIMEOUT_S = 120.0
_QUEUE_FLAGS = ("--router-queue-threshold", "0.0", "--router-queue-policy")
_TOLL_QUEUE = ("--policy", "toll", "--queue", "--controller")


@dataclass(frozen=True)
class RampArm:
    """An arm with its flags: of the frontend, and of the gateway where there is one."""

    arm: Arm
    frontend: tuple[str, ...] = ()
    gateway: tuple[str, ...] = ()


RAMP_ARMS = (
    RampArm(ROUND_ROBIN),
    RampArm(DYNAMO_KV),
    RampArm(Arm("dynamo_fcfs", "Dynamo KV + queue", "kv", gateway=False), (*_QUEUE_FLAGS, "fcfs")),
    RampArm(
        Arm("dynamo_wspt", "Dynamo KV + queue, wspt", "kv", gateway=False), (*_QUEUE_FLAGS, "wspt")
    ),
    RampArm(Arm("toll", "toll", "kv", gateway=True), gateway=("--policy", "toll")),
    RampArm(Arm("toll_queue", "toll + queue", "kv", gateway=True), gateway=_TOLL_QUEUE),
)


@dataclass(frozen=True)
class Profile:
    """Load over time: low, a rise, the peak, a fall, low again; a fifth of the time each.

    Attributes:
        seconds: length of it all.
        low_per_s: requests/s at the ends.
        peak: multiple of that in the middle.
    """

    seconds: float = 60.0
    low_per_s: float = 6.0
    peak: float = 5.0

    def times(self) -> tuple[Floats, Floats]:
        """Corners of the profile: times, and multiples of the lowest rate."""
        times = np.linspace(0.0, self.seconds, 6)
        return times, np.array([1.0, 1.0, self.peak, self.peak, 1.0, 1.0])

    def virtual_s(self, real_s: Floats) -> Floats:
        """The integral of the multiple: virtual time that has passed at a real one."""
        fine = np.linspace(0.0, self.seconds, 2001)
        rate = np.interp(fine, *self.times())
        passed = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]) * np.diff(fine))])
        return np.interp(real_s, fine, passed)

    def real_s(self, virtual_s: Floats) -> Floats:
        """The inverse of `virtual_s`."""
        fine = np.linspace(0.0, self.seconds, 2001)
        return np.interp(virtual_s, self.virtual_s(fine), fine)

    def phase(self, real_s: Floats) -> NDArray[np.intp]:
        """Index into `PHASES` of each time."""
        return np.clip((real_s / self.seconds * 5).astype(np.intp), 0, 4)


def ramp_turns(profile: Profile, seed: int) -> list[Turn]:
    """The workload: few long turns, so that a small machine reaches the engines' knee first."""
    virtual_s = float(profile.virtual_s(np.array([profile.seconds]))[0])
    law = ConversationSpec(
        requests_per_s=profile.low_per_s,
        seconds=virtual_s,
        seed=seed,
        system_prompts=16,
        user_tokens=3000,
        reply_tokens=48,
        turns=3.0,
        think_s=1.0,
        max_prompt_tokens=32_768,
    )
    turns = generate(law)
    starts = profile.real_s(np.array([turn.time_s for turn in turns]))
    return [
        turn if turn.follows is not None else replace(turn, time_s=float(start))
        for turn, start in zip(turns, starts, strict=True)
    ]


@dataclass
class Series:
    """What a gateway said of itself while an arm ran, by name, each as (time, value)."""

    time_s: list[float] = field(default_factory=list[float])
    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


@dataclass(frozen=True)
class PhaseFigures:
    """One arm in one phase, or in all."""

    requests: int
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    goodput: float


@dataclass(frozen=True)
class RampResult:
    """One arm.

    Attributes:
        label: for people.
        key: for files.
        whole: figures over all requests; of `goodput` see `GOODPUT`.
        phases: the same by the phase in which a request was sent.
        errors: requests that did not end well.
        driver_late_ms: how late the driver was at p99.
        sent_s, ttft_s: per answered request, in order of sending.
        series: what the gateway said; None without one.
    """

    label: str
    key: str
    whole: PhaseFigures
    phases: dict[str, PhaseFigures]
    errors: int
    driver_late_ms: float
    sent_s: list[float]
    ttft_s: list[float]
    series: Series | None


GOODPUT = f"time to first token ≤ {TTFT_SLO_S:g} s and mean gap ≤ {1e3 * ITL_SLO_S:g} ms"
_WATCHED = {
    "poa": "wardrop_price_of_anarchy",
    "poa_low": "wardrop_price_of_anarchy_low",
    "poa_high": "wardrop_price_of_anarchy_high",
    "waiting": "wardrop_queue_requests",
}
_CONTROL = re.compile(r'wardrop_control\{reason="(\w+)".*\} (\S+)')


def run_ramp(
    profile: Profile,
    workers: int,
    seed: int,
    timing: Path,
    arms: Sequence[RampArm] = RAMP_ARMS,
    say: Callable[[str], None] = lambda _text: None,
) -> list[RampResult]:
    """Every arm after the other, each with new, empty workers."""
    spec = FleetSpec(
        workers=workers,
        process_per_worker=False,
        model_name=MODEL,
        block_size=BLOCK_SIZE,
        blocks=BLOCKS_PER_WORKER,
        max_model_len=MAX_MODEL_LEN,
        timing_table=timing,
    )
    turns = ramp_turns(profile, seed)
    rows: list[Row] = [(t.time_s, t.follows, completion_body(MODEL, t)) for t in turns]
    results: list[RampResult] = []
    for one in arms:
        say(f"{one.arm.label}: {len(rows)} requests")
        flags = (*one.gateway, "--admin-port", "0") if one.arm.gateway else ()
        with running(one.arm, spec, flags, one.frontend) as stack:
            series = Series() if one.arm.gateway else None
            watch = _watcher(stack.url, series) if series is not None else None
            driven = drive(
                f"{stack.url}/v1/completions",
                rows,
                router_pids=stack.router_pids,
                duration_s=4 * profile.seconds + _TIMEOUT_S,
                timeout_s=_TIMEOUT_S,
                on_progress=watch,
            )
        results.append(_result(one.arm, driven, profile, series))
        say(f"  {_line(results[-1])}")
    return results


def _watcher(url: str, series: Series) -> Callable[[dict[str, Any]], None]:
    """Reads the metrics page twice a second into `series`."""
    started_s, last_s = time.monotonic(), 0.0

    def watch(_progress: dict[str, Any]) -> None:
        nonlocal last_s
        now_s = time.monotonic() - started_s
        if now_s - last_s < 0.5:
            return
        last_s = now_s
        try:
            with urlopen(f"{url}/metrics", timeout=2) as answer:
                page = answer.read().decode()
        except OSError:
            return
        found = {name: _total(page, metric) for name, metric in _WATCHED.items()}
        found |= {name: float(value) for name, value in _CONTROL.findall(page)}
        for name, value in found.items():
            values = series.values.setdefault(name, [float("nan")] * len(series.time_s))
            values.append(value)
        series.time_s.append(now_s)
        for values in series.values.values():
            values += [float("nan")] * (len(series.time_s) - len(values))

    return watch


def _total(page: str, metric: str) -> float:
    values = [
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith(metric + "{")
    ]
    return sum(values) if values else float("nan")


def _result(arm: Arm, driven: Driven, profile: Profile, series: Series | None) -> RampResult:
    columns = driven.columns
    ok = np.array([outcome == "ok" for outcome in columns["outcome"]])

    def column(name: str) -> Floats:
        return np.array(columns[name], dtype=np.float64)[ok]

    sent, first, end = column("sent_s"), column("first_token_s"), column("end_s")
    tokens = np.nan_to_num(column("completion_tokens"), nan=1.0)
    ttft = first - sent
    gaps = np.where(tokens > 1, (end - first) / np.maximum(1.0, tokens - 1), 0.0)
    good = (ttft <= TTFT_SLO_S) & (gaps <= ITL_SLO_S)
    phase = profile.phase(sent)
    order = np.argsort(sent)
    failed = int(sum(o not in ("ok", "unsent") for o in columns["outcome"]))
    return RampResult(
        arm.label,
        arm.key,
        _figures(ttft, good, failed),
        {name: _figures(ttft[phase == at], good[phase == at], 0) for at, name in enumerate(PHASES)},
        failed,
        1e3 * float(columns["lateness_p99_s"] or 0.0),
        sent[order].round(4).tolist(),
        ttft[order].round(5).tolist(),
        series,
    )


def _figures(ttft: Floats, good: NDArray[np.bool_], failed: int) -> PhaseFigures:
    if not ttft.size:
        return PhaseFigures(0, *[float("nan")] * 4)
    p50, p99 = (1e3 * float(np.percentile(ttft, q)) for q in (50, 99))
    goodput = float(good.sum() / (good.size + failed))
    return PhaseFigures(int(ttft.size), 1e3 * float(ttft.mean()), p50, p99, goodput)


def _line(result: RampResult) -> str:
    f = result.whole
    return (
        f"mean {f.ttft_mean_ms:,.0f} ms, p99 {f.ttft_p99_ms:,.0f} ms, goodput "
        f"{100 * f.goodput:.1f} %, {result.errors} errors"
    )


def as_json(profile: Profile, workers: int, seed: int, results: Sequence[RampResult]) -> str:
    """Everything, for a file."""
    content = {
        "profile": asdict(profile),
        "workers": workers,
        "seed": seed,
        "goodput": GOODPUT,
        "arms": [asdict(result) for result in results],
    }
    return json.dumps(content, indent=1).replace("NaN", "null")
