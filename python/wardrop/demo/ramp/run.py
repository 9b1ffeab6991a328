"""`wardrop demo --ramp`: load across the knee and back, through six routers.

A conversation workload is made at its lowest rate, and its clock then runs faster and slower: a
session that begins at virtual time v begins when the integral of the rate over real time is v. So
every arm gets the same requests, token for token, while the rate goes from 1 to the peak and back.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from wardrop.demo.arms import DYNAMO_KV, ROUND_ROBIN, Arm, running
from wardrop.demo.drive import Row, drive
from wardrop.demo.live_page import LivePage
from wardrop.demo.plan import BLOCK_SIZE, BLOCKS_PER_WORKER, MAX_MODEL_LEN, MODEL
from wardrop.demo.ramp.figures import GOODPUT, RampResult, ramp_result
from wardrop.demo.ramp.profile import Profile
from wardrop.demo.ramp.series import Series, series_reader
from wardrop.demo.ramp.settings import Setting
from wardrop.dynamo.embedded import FleetSpec
from wardrop.workload import ConversationSpec, Turn, completion_body, generate

_TIMEOUT_S = 120.0
_DEFAULT = Setting("default")
_TOLL_QUEUE_FLAGS = ("--policy", "toll", "--queue", "--controller")


@dataclass(frozen=True)
class RampArm:
    """An arm with its settings.

    Attributes:
        arm: The processes.
        setting: Setting of Dynamo's KV router.
        gateway: Flags of the gateway, where the arm has one.
    """

    arm: Arm
    setting: Setting = _DEFAULT
    gateway: tuple[str, ...] = ()


RAMP_ARMS = (
    RampArm(ROUND_ROBIN),
    RampArm(DYNAMO_KV),
    RampArm(
        Arm("dynamo_fcfs", "Dynamo KV + queue", "kv", gateway=False), Setting("fcfs", queue="fcfs")
    ),
    RampArm(
        Arm("dynamo_wspt", "Dynamo KV + queue, wspt", "kv", gateway=False),
        Setting("wspt", queue="wspt"),
    ),
    RampArm(Arm("toll", "toll", "kv", gateway=True), gateway=("--policy", "toll", "--no-queue")),
    RampArm(Arm("toll_queue", "toll + queue", "kv", gateway=True), gateway=_TOLL_QUEUE_FLAGS),
)


@dataclass(frozen=True)
class RampPlan:
    """What every arm of the ramp gets.

    Attributes:
        profile: The load over time.
        workers: Mock workers of a fleet.
        seed: Seed of the requests.
    """

    profile: Profile
    workers: int
    seed: int


def choose_arms(keys: str) -> list[RampArm]:
    """The arms of a text such as `dynamo_kv,toll_queue`; all arms for an empty text.

    Raises:
        ValueError: A key is unknown.
    """
    known = {one.arm.key: one for one in RAMP_ARMS}
    wanted = [key.strip() for key in keys.split(",") if key.strip()] or list(known)
    for key in wanted:
        if key not in known:
            raise ValueError(f"--arms: got {key!r}, expected some of {', '.join(known)}")
    return [known[key] for key in wanted]


def ramp_turns(profile: Profile, seed: int) -> list[Turn]:
    """The workload of the ramp, with its conversations placed on the profile's clock.

    Conversations have few and long turns: on a small machine the engines reach their knee before
    the load driver and the frontend use up the CPU.
    """
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
    return stretch(generate(law), profile)


def stretch(turns: Sequence[Turn], profile: Profile) -> list[Turn]:
    """The same requests with the starts of their conversations on the profile's clock.

    Args:
        turns: A workload made at the profile's lowest rate, in virtual time.
        profile: The load over time.
    """
    starts = profile.real_s(np.array([turn.time_s for turn in turns]))
    return [
        turn if turn.follows is not None else replace(turn, time_s=float(start))
        for turn, start in zip(turns, starts, strict=True)
    ]


def run_ramp(
    plan: RampPlan,
    timing: Path,
    page: LivePage,
    arms: Sequence[RampArm] = RAMP_ARMS,
    report: Callable[[str], None] = lambda _text: None,
) -> list[RampResult]:
    """Run the arms one after the other, each with new, empty workers.

    Args:
        plan: Load, fleet and seed.
        timing: Timing table of the mock workers (.npz).
        page: Leads to the admin port of the running router.
        arms: The arms to run.
        report: Called with a line of text before and after each arm.

    Raises:
        FleetError: A part of an arm did not start; the text ends with the part's log.
    """
    profile = plan.profile
    spec = FleetSpec(
        workers=plan.workers,
        process_per_worker=False,
        model_name=MODEL,
        block_size=BLOCK_SIZE,
        blocks=BLOCKS_PER_WORKER,
        max_model_len=MAX_MODEL_LEN,
        timing_table=timing,
    )
    turns = ramp_turns(profile, plan.seed)
    rows: list[Row] = [(t.time_s, t.follows, completion_body(MODEL, t)) for t in turns]
    results: list[RampResult] = []
    for one in arms:
        report(f"{one.arm.label}: {len(rows)} requests")
        with (
            tempfile.TemporaryDirectory(prefix="wardrop-ramp-") as folder,
            running(one.arm, spec, one.gateway, one.setting.flags(Path(folder))) as stack,
            page.showing(stack.admin_port),
        ):
            series = Series() if one.arm.gateway else None
            driven = drive(
                f"{stack.url}/v1/completions",
                rows,
                router_pids=stack.router_pids,
                duration_s=4 * profile.seconds + _TIMEOUT_S,
                timeout_s=_TIMEOUT_S,
                on_progress=series_reader(stack.url, series) if series is not None else None,
            )
        results.append(ramp_result(one.arm, driven, profile, series))
        report(f"  {_line(results[-1])}")
    return results


def _line(result: RampResult) -> str:
    whole = result.whole
    return (
        f"mean {whole.ttft_mean_ms:,.0f} ms, p99 {whole.ttft_p99_ms:,.0f} ms, goodput "
        f"{100 * whole.goodput:.1f} %, {result.errors} errors"
    )


def ramp_json(plan: RampPlan, results: Sequence[RampResult]) -> str:
    """All figures and curves of the ramp, as JSON."""
    content = {
        "profile": asdict(plan.profile),
        "workers": plan.workers,
        "seed": plan.seed,
        "goodput": GOODPUT,
        "arms": [asdict(result) for result in results],
    }
    return json.dumps(content, indent=1).replace("NaN", "null")
