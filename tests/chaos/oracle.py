"""Judges a chaos run by what clients and the wire saw; it reads no state of the router's own.

Pure: records in, violations out. Each rule has a planted violation in `test_oracle.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tests.chaos.recorder import Attempt

MAX_ATTEMPTS = 6
"""More attempts than this for one request are a storm of retries."""

RECOVERY_S = 10.0
"""Requests may fail for this long after a fault: Dynamo's lease of a dead worker is 8 s."""


@dataclass(frozen=True)
class Exchange:
    """One client request that the client carried to its end.

    Attributes:
        request_id: The id that the client sent.
        sent_s: Monotonic time of the request.
        ended_s: Monotonic time of the last byte.
        status: HTTP status; 0 where no answer came.
        asked_tokens: `max_tokens`, of which none may be missing (`ignore_eos`).
        got_tokens: Tokens by the answer's usage; None where the answer has no usage.
        done: The stream ended with `[DONE]`.
        error: The text of an error that the client was given, in a body or as an event.
        first_byte_s: Monotonic time of the answer's first byte; None where none came.
        silence_s: Longest time between two bytes after the first.
    """

    request_id: str
    sent_s: float
    ended_s: float
    status: int
    asked_tokens: int
    got_tokens: int | None
    done: bool
    error: str | None
    first_byte_s: float | None
    silence_s: float

    @property
    def whole(self) -> bool:
        """The client got everything it asked for."""
        return self.status == 200 and self.done and self.error is None


@dataclass(frozen=True)
class Fault:
    """One injected fault.

    Attributes:
        kind: Name of the kind.
        begin_s: Monotonic time before the first effect.
        end_s: Monotonic time after the last effect.
        fired: Proof, counted by the injector; 0 where the fault had no effect.
        spares: No request may fail because of it.
    """

    kind: str
    begin_s: float
    end_s: float
    fired: int
    spares: bool


@dataclass(frozen=True)
class Violation:
    """One broken rule."""

    rule: str
    detail: str


@dataclass(frozen=True)
class Bounds:
    """What the oracle allows.

    Attributes:
        silence_s: Longest silence inside a stream.
        first_byte_s: Longest time to the first byte.
        whole_share: Smallest share of requests that must succeed.
    """

    silence_s: float = 2.5
    first_byte_s: float = 15.0
    whole_share: float = 0.9


def judge_exchanges(
    exchanges: Sequence[Exchange], faults: Sequence[Fault], bounds: Bounds, lag_s: float
) -> list[Violation]:
    """Every request has one whole answer or one clear error, in time, and fails only near a fault.

    Args:
        exchanges: All requests that their clients carried to the end.
        faults: All faults.
        bounds: What is allowed.
        lag_s: Longest time for which the client itself did not run, which is nobody's silence.
    """
    found: list[Violation] = []
    harmful = [fault for fault in faults if not fault.spares]
    for one in exchanges:
        name = f"request {one.request_id}"
        if one.status == 0 and one.error is None:
            found.append(Violation("lost", f"{name} has no answer"))
        elif one.status == 200 and not one.done and one.error is None:
            found.append(Violation("lost", f"{name} ends without [DONE] and without an error"))
        elif one.status not in (0, 200) and one.error is None:
            found.append(Violation("unclear", f"{name} has status {one.status} and no error text"))
        if one.whole and one.got_tokens != one.asked_tokens:
            found.append(
                Violation("tokens", f"{name}: {one.got_tokens} tokens of {one.asked_tokens}")
            )
        if one.silence_s > bounds.silence_s + lag_s:
            found.append(Violation("silence", f"{name} was silent for {one.silence_s:.2f} s"))
        waited_s = (one.first_byte_s or one.ended_s) - one.sent_s
        if waited_s > bounds.first_byte_s + lag_s:
            found.append(Violation("first byte", f"{name} waited {waited_s:.2f} s"))
        if not one.whole and not any(_touches(fault, one) for fault in harmful):
            text = f"{name}: status {one.status}, {one.error!r}, with no fault that may cost it"
            found.append(Violation("collateral", text))
    share = sum(one.whole for one in exchanges) / max(1, len(exchanges))
    if not exchanges or share < bounds.whole_share:
        found.append(
            Violation("service", f"{share:.1%} of {len(exchanges)} requests were answered whole")
        )
    return found


def judge_attempts(
    attempts: Mapping[str, Sequence[Attempt]], exchanges: Iterable[Exchange]
) -> list[Violation]:
    """No request is sent again once its client has a byte of an answer, and no request too often.

    The client's own clock decides. Text that came back to a proxy decides nothing: the router may
    have given up the attempt before, and then no client sees that text.
    """
    found: list[Violation] = []
    first_byte_s = {one.request_id: one.first_byte_s for one in exchanges}
    for name, tried in attempts.items():
        answered_s = first_byte_s.get(name)
        later = [one.sent_s for one in tried if answered_s is not None and one.sent_s > answered_s]
        if later and answered_s is not None:
            text = f"was sent again {later[0] - answered_s:.3f} s after its answer began"
            found.append(Violation("duplicate", f"request {name} {text}"))
        if len(tried) > MAX_ATTEMPTS:
            found.append(Violation("storm", f"request {name} was sent {len(tried)} times"))
    return found


def judge_prompts(
    handed_on: Mapping[str, Sequence[int]], engines_own: Mapping[str, Sequence[int]]
) -> list[Violation]:
    """Token ids that the router handed on equal the ids that the frontend itself makes.

    Args:
        handed_on: Ids on the wire, by request id.
        engines_own: Ids of the frontend's dry run of the client's body, by request id.
    """
    found = [
        Violation("prompt", f"request {name}: other token ids than the frontend's")
        for name, ids in handed_on.items()
        if name in engines_own and list(ids) != list(engines_own[name])
    ]
    if not handed_on.keys() & engines_own.keys():
        found.append(Violation("prompt", "no handed-on prompt was compared: the check is empty"))
    return found


def judge_faults(faults: Iterable[Fault], kinds: Iterable[str]) -> list[Violation]:
    """Each kind of fault has fired at least once."""
    fired: dict[str, int] = dict.fromkeys(kinds, 0)
    for fault in faults:
        fired[fault.kind] = fired.get(fault.kind, 0) + fault.fired
    return [
        Violation("fault", f"{kind} never fired") for kind, count in fired.items() if count == 0
    ]


def judge_blocks(believed: Mapping[str, float], truth: Mapping[str, float]) -> list[Violation]:
    """The router's count of held blocks equals the scripted engine's, life by life."""
    return [
        Violation("blocks", f"{name}: the router believes {believed.get(name)}, {count} are held")
        for name, count in truth.items()
        if believed.get(name) != count
    ]


def judge_books(books: Mapping[str, float]) -> list[Violation]:
    """After the last answer, every book of the router is at 0."""
    return [Violation("books", f"{name} is {value:g}") for name, value in books.items() if value]


@dataclass(frozen=True)
class Slope:
    """A straight line through samples.

    Attributes:
        per_minute: Growth of the value in a minute.
        error: Standard error of `per_minute`.
    """

    per_minute: float
    error: float


def slope(samples: Sequence[tuple[float, float]]) -> Slope:
    """Least squares through (seconds, value); the error takes neighbouring samples as one.

    Samples of a process's memory depend on their neighbours. Means of 20 groups in time do so far
    less, and the error of the fit through these means is honest.
    """
    groups = [g for g in np.array_split(np.asarray(samples, dtype=float), 20) if len(g)]
    x = np.array([group[:, 0].mean() / 60 for group in groups])
    y = np.array([group[:, 1].mean() for group in groups])
    if len(groups) < 3:
        return Slope(0.0, float("inf"))
    centred = x - x.mean()
    spread = float((centred**2).sum())
    rise = float((centred * (y - y.mean())).sum() / spread)
    rest = y - y.mean() - rise * centred
    return Slope(rise, float(np.sqrt((rest**2).sum() / (len(groups) - 2) / spread)))


def judge_memory(
    samples: Sequence[tuple[float, float]], most_per_minute: float, most_growth: float
) -> list[Violation]:
    """Resident memory neither climbs nor ends far above its value after the warm-up.

    Args:
        samples: (seconds, kB) after the warm-up.
        most_per_minute: Largest slope in kB a minute, of which the fit must be sure to convict.
        most_growth: Largest difference in kB between the means of the last and the first tenth.
    """
    found: list[Violation] = []
    line = slope(samples)
    if line.per_minute - 3 * line.error > most_per_minute:
        found.append(
            Violation("memory", f"climbs by {line.per_minute:.0f} ± {line.error:.0f} kB a minute")
        )
    tenth = max(1, len(samples) // 10)
    values = [value for _, value in samples]
    growth = sum(values[-tenth:]) / tenth - sum(values[:tenth]) / tenth if values else 0.0
    if growth > most_growth:
        found.append(Violation("memory", f"grew by {growth:.0f} kB after the warm-up"))
    return found


def _touches(fault: Fault, one: Exchange) -> bool:
    return one.sent_s <= fault.end_s + RECOVERY_S and one.ended_s >= fault.begin_s
