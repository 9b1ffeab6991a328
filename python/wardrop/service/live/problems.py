"""Sentences on what is wrong with the fleet of one model: the first lines of page and terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

from wardrop.service.live.observation import Pool, Worker

SLOW_RATIO = 2.0
"""Prefill time over the median of the other workers, from which a worker counts as slow."""
SLOW_SAMPLES = 20
"""Samples of a prefill curve from which it is compared."""
_MOST_NAMES = 4


MISFITS = {
    "first_tokens_unreported": "requests end and their first tokens are not reported",
    "first_tokens_unpredicted": "first tokens come at other times than predicted",
    "steps_unpredicted": "decode steps take other times than predicted",
}
"""What the price guard finds, by its name in metrics and receipts."""


class Departed(msgspec.Struct):
    """A worker that the router no longer knows, and the Unix time at which it was missing first."""

    instance: str
    dp_rank: int
    role: str
    at_s: float


class Problem(msgspec.Struct):
    """One problem: its level and a sentence with the advice."""

    level: Literal["warning", "failure"]
    text: str


def problems_of(
    pools: Sequence[Pool], departed: Sequence[Departed], regime: str | None
) -> list[Problem]:
    """Every problem of a model, the worst first.

    Args:
        pools: Pools of the model.
        departed: Workers that left recently.
        regime: Regime of the fleet by name.
    """
    workers = [worker for pool in pools for worker in pool.workers]
    caching = [worker for pool in pools if pool.role != "decode" for worker in pool.workers]
    usable = [worker for worker in workers if worker.available]
    found: list[Problem] = []

    def add(level: Literal["warning", "failure"], some: Sequence[Worker | Departed], text: str):
        if some:
            count = f"{len(some)} worker{'s' if len(some) > 1 else ''}"
            found.append(Problem(level, f"{count} {text.replace('NAMES', _names(some))}"))

    if not workers:
        text = "No worker is known. Dynamo's own router gets every request. Run wardrop doctor."
        found.append(Problem("failure", text))
    add(
        "failure",
        [worker for worker in workers if not worker.available],
        "unavailable: NAMES. The router sends no request there; the tile names the fault.",
    )
    add(
        "warning",
        [worker for worker in usable if worker.feed_state == "suspect"],
        "with suspect blocks: NAMES. KV events are missing, or the engine finds too few tokens.",
    )
    add(
        "warning",
        [worker for worker in usable if _is_disbelieved(worker)],
        "with an index that differs from the engine: NAMES. The price believes less of it; compare "
        "block size, salt and events with wardrop doctor.",
    )
    add(
        "warning",
        [worker for worker in caching if worker.available and _is_deaf(worker)],
        "served requests and sent no KV event: NAMES. The router cannot know the cache; run "
        "wardrop doctor.",
    )
    add(
        "warning",
        [worker for pool in pools for worker in _slow(pool)],
        f"slower than {SLOW_RATIO:g} times the median of the others: NAMES. On equal hardware, "
        "look for a throttled or shared device.",
    )
    for pool in pools:
        if pool.misfit is not None:
            text = MISFITS.get(pool.misfit, pool.misfit.replace("_", " "))
            where = f" in the {pool.role} pool" if len(pools) > 1 else ""
            advice = "Dynamo's cost decides there, and no request waits in the router."
            found.append(Problem("warning", f"The price does not fit{where}: {text}. {advice}"))
    add(
        "warning",
        departed,
        "left the fleet in the last 5 minutes: NAMES. Discovery no longer lists them.",
    )
    if regime == "saturated":
        text = (
            "The fleet is saturated: requests arrive faster than the workers serve them. "
            "Placement cannot mend that; add workers or shed load."
        )
        found.append(Problem("warning", text))
    return found


def short_name(instance: str, dp_rank: int) -> str:
    """Last digits of an instance, which distinguish workers of a fleet, and the rank above 0."""
    name = f"…{instance[-6:]}" if len(instance) > 8 else instance
    return f"{name}/{dp_rank}" if dp_rank else name


def _names(some: Sequence[Worker | Departed]) -> str:
    names = [short_name(one.instance, one.dp_rank) for one in some[:_MOST_NAMES]]
    return ", ".join([*names, "…"] if len(some) > _MOST_NAMES else names)


def _slow(pool: Pool) -> list[Worker]:
    """Workers whose learned prefill of 2,048 tokens is far above that of the others."""
    learned = [
        (worker, worker.curve.prefill_s[1])
        for worker in pool.workers
        if worker.curve is not None and worker.curve.prefill_samples >= SLOW_SAMPLES
    ]
    if len(learned) < 3:
        return []
    found: list[Worker] = []
    for worker, prefill_s in learned:
        others = [other_s for other, other_s in learned if other is not worker]
        if prefill_s > SLOW_RATIO * median(others):
            found.append(worker)
    return found


def _is_disbelieved(worker: Worker) -> bool:
    """Whether the trust fell for another reason than suspect or restored blocks."""
    return worker.trust_mode != "exact" and worker.feed_state in {"synced", "partial"}


def _is_deaf(worker: Worker) -> bool:
    return worker.event_age_s is None and worker.audited_requests > 0 and worker.held_blocks == 0
