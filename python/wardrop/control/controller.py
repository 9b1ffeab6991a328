"""One change at a time, by bounded steps, kept only while it does no harm.

What may be moved: κ and the room (`backlog_s`) of the queue. The direction comes from the regime
(longer lines favour short prompts more), the verdict from the guard. After a roll-back the same
step is not tried again for a while that doubles each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from wardrop.control.audit import Record
from wardrop.control.guard import Guard, GuardSettings, Verdict
from wardrop.control.regime import Regime, RegimeDetector, RegimeSettings
from wardrop.control.sample import Sample


@dataclass(frozen=True)
class Action:
    """What to do: put `setting` to `value`."""

    setting: str
    value: float
    reason: str


@dataclass(frozen=True)
class Ladder:
    """The values that a setting may take, in steps, and where it should stand per regime."""

    values: tuple[float, ...]
    wanted: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(not 0 <= at < len(self.values) for at in self.wanted):
            raise ValueError(f"wanted {self.wanted}: expected positions in {self.values}")


@dataclass(frozen=True)
class Settings:
    """What the controller may move, and how carefully.

    Attributes:
        ladders: setting → its steps. By default κ goes up with saturation, and nothing else moves.
        start: positions at the start.
        regime: see `RegimeSettings`.
        guard: see `GuardSettings`.
        back_off_s: pause after a first roll-back of a step; doubles with each.
        max_back_off_s: longest pause.
    """

    ladders: dict[str, Ladder] = field(
        default_factory=lambda: {"kappa": Ladder((0.0, 5.0, 10.0, 20.0, 30.0), (2, 2, 4))}
    )
    start: dict[str, int] = field(default_factory=lambda: {"kappa": 2})
    regime: RegimeSettings = field(default_factory=RegimeSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    back_off_s: float = 60.0
    max_back_off_s: float = 3600.0


class Controller:
    """See the module. Deterministic in its samples."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.detector = RegimeDetector(self.settings.regime)
        self.guard = Guard(self.settings.guard)
        self.position = dict(self.settings.start)
        self._trial: tuple[str, int] | None = None
        self._blocked: dict[tuple[str, int], tuple[float, float]] = {}
        self._records: list[Record] = []

    def value(self, setting: str) -> float:
        """Where a setting stands."""
        return self.settings.ladders[setting].values[self.position[setting]]

    def records(self) -> Sequence[Record]:
        """What happened since the last call."""
        taken, self._records = self._records, []
        return taken

    def by_hand(self, now_s: float, setting: str, position: int, reason: str) -> Action:
        """A change by a person: through the same door, with the same guard and roll-back.

        Raises:
            ValueError: no such setting or step.
        """
        ladder = self.settings.ladders.get(setting)
        if ladder is None or not 0 <= position < len(ladder.values):
            steps = ", ".join(
                f"{name}: 0 to {len(row.values) - 1}" for name, row in self.settings.ladders.items()
            )
            raise ValueError(f"got {setting!r} at step {position}; expected one of {steps}")
        return self._move(now_s, setting, position, reason, "by_hand")

    def step(self, now_s: float, sample: Sample) -> Action | None:
        """Takes one sample in; returns at most one change to carry out."""
        before = self.detector.regime
        regime = self.detector.step(now_s, sample)
        if regime != before:
            evidence = {
                "smoothed_s": self.detector.smoothed_s or 0.0,
                "baseline_s": self.detector.baseline_s or 0.0,
                "utilisation": sample.utilisation,
            }
            self._note(now_s, "regime", "regime", before.name, regime.name, "", evidence)
        if sample.age_s > self.settings.regime.max_age_s or sample.requests == 0:
            return None
        verdict = self.guard.step(now_s, sample)
        if self._trial is not None:
            return self._judge(now_s, verdict)
        return self._propose(now_s, regime) if self.guard.ready else None

    def _judge(self, now_s: float, verdict: Verdict) -> Action | None:
        assert self._trial is not None
        setting, back = self._trial
        tried = self.position[setting]
        if verdict is Verdict.WAIT:
            return None
        self._trial = None
        was, now = self._values(setting, back, tried)
        if verdict is Verdict.KEEP:
            self._blocked.pop((setting, tried), None)
            self._note(now_s, "kept", setting, was, now, self.guard.reason, self.guard.evidence())
            return None
        _, pause = self._blocked.get((setting, tried), (0.0, 0.5 * self.settings.back_off_s))
        pause = min(2 * pause, self.settings.max_back_off_s)
        self._blocked[setting, tried] = (now_s + pause, pause)
        self.position[setting] = back
        reason = f"{self.guard.reason}; not again for {pause:g} s"
        self._note(now_s, "rolled_back", setting, now, was, reason, self.guard.evidence())
        return Action(setting, was, reason)

    def _propose(self, now_s: float, regime: Regime) -> Action | None:
        for setting, ladder in self.settings.ladders.items():
            here, wanted = self.position[setting], ladder.wanted[regime]
            if here == wanted:
                continue
            target = here + (1 if wanted > here else -1)
            until_s, _ = self._blocked.get((setting, target), (0.0, 0.0))
            if now_s >= until_s:
                return self._move(now_s, setting, target, f"regime {regime.name.lower()}", "change")
        return None

    def _move(self, now_s: float, setting: str, target: int, reason: str, event: str) -> Action:
        back = self.position[setting]
        self.position[setting] = target
        self._trial = (setting, back)
        self.guard.changed(now_s)
        was, now = self._values(setting, back, target)
        self._note(now_s, event, setting, was, now, reason, self.guard.evidence())
        return Action(setting, now, reason)

    def _values(self, setting: str, *positions: int) -> tuple[float, ...]:
        return tuple(self.settings.ladders[setting].values[at] for at in positions)

    def _note(
        self,
        now_s: float,
        event: str,
        setting: str,
        before: object,
        after: object,
        reason: str,
        evidence: dict[str, float],
    ) -> None:
        self._records.append(Record(now_s, event, setting, before, after, reason, evidence))
