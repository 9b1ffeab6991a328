"""One change at a time, by bounded steps, kept only while it does no harm.

`wardrop.control.moves` defines the settings and their steps. The regime gives the direction, the
guard the verdict. After a roll-back the controller does not try the same step again for a pause
that doubles each time. A change by hand gets a trial like any other change, and the controller
leaves its settings alone afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wardrop.control.audit import Record
from wardrop.control.guard import Guard, GuardSettings, Verdict
from wardrop.control.moves import Ladder, Move, State
from wardrop.control.regime import Regime, RegimeDetector, RegimeSettings
from wardrop.control.sample import Sample


@dataclass(frozen=True)
class Action:
    """A change to carry out: set `setting` to `value`, or roll the change on trial back.

    Attributes:
        setting: name of the setting; of a change by hand several, with a comma between them.
        value: new value of the setting.
        reason: why, in words.
        event: `change` or `rolled_back`.
        evidence: why, in figures.
    """

    setting: str
    value: Any
    reason: str
    event: str = "change"
    evidence: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Settings:
    """Settings of the controller: its moves, and its pauses between changes.

    Attributes:
        moves: moves by setting, tried in this order; by default κ rises with saturation.
        regime: thresholds of the regimes.
        guard: how a change is judged.
        stands_s: seconds that a regime lasts before a setting follows it. The samples of this time
            serve to judge the change.
        back_off_s: pause in seconds after the first roll-back of a step in one direction; it
            doubles with each further roll-back.
        max_back_off_s: longest pause in seconds.
    """

    moves: dict[str, Move] = field(
        default_factory=lambda: {"kappa": Ladder((10.0, 20.0, 30.0), (0, 0, 2))}
    )
    regime: RegimeSettings = field(default_factory=RegimeSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    stands_s: float = 5.0
    back_off_s: float = 60.0
    max_back_off_s: float = 3600.0


@dataclass(frozen=True)
class _Trial:
    """A change on trial.

    Attributes:
        setting: name of the setting; of a change by hand several, with a comma between them.
        before: value before the change; by name for a change by hand.
        after: value after the change, in the same form.
        by_hand: whether a person made the change.
    """

    setting: str
    before: Any
    after: Any
    by_hand: bool


class Controller:
    """Proposes changes and judges them. Equal samples give equal actions."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.detector = RegimeDetector(self.settings.regime)
        self.guard = Guard(self.settings.guard)
        self._values = {name: move.start for name, move in self.settings.moves.items()}
        self._set_by_hand: set[str] = set()
        self._trial: _Trial | None = None
        self._blocked: dict[tuple[str, bool], tuple[float, float]] = {}
        self._records: list[Record] = []

    def value(self, setting: str) -> float:
        """The value of a setting."""
        return self._values[setting]

    @property
    def on_trial(self) -> bool:
        """Whether a change is on trial."""
        return self._trial is not None

    def records(self) -> Sequence[Record]:
        """Regimes entered and changes kept since the last call; the door records the actions."""
        taken, self._records = self._records, []
        return taken

    def changed_by_hand(
        self, now_s: float, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> None:
        """Put a change by hand on trial; the controller leaves its settings alone afterwards.

        A change of the controller that is on trial ends unjudged. Without enough samples to judge
        by, the change by hand stays in force without a trial.
        """
        self._set_by_hand |= set(after)
        self._values |= {n: float(v) for n, v in after.items() if n in self._values}
        if self._trial is not None or not self.guard.ready:
            self._trial = None
            self.guard.forget()
            return
        self._trial = _Trial(", ".join(sorted(after)), dict(before), dict(after), by_hand=True)
        self.guard.changed(now_s)

    def rolled_back_by_hand(self, settings: Mapping[str, Any]) -> None:
        """End the trial: a person rolled a change back, and its settings may move again."""
        self._set_by_hand -= set(settings)
        self._values |= {n: float(v) for n, v in settings.items() if n in self._values}
        self._trial = None
        self.guard.forget()

    def step(self, now_s: float, sample: Sample) -> Action | None:
        """Take one sample; return at most one change to carry out."""
        before = self.detector.regime
        regime = self.detector.step(now_s, sample)
        if regime != before:
            self._note(now_s, "regime", "regime", before.name, regime.name, "", self._seen(sample))
        if sample.age_s > self.settings.regime.max_age_s or sample.requests == 0:
            return None
        verdict = self.guard.step(now_s, sample)
        if self._trial is not None:
            return self._judge(now_s, self._trial, verdict)
        # An answer that ends now reflects its whole life, so long answers need a longer wait.
        stands_s = max(self.settings.stands_s, sample.e2e_mean_s)
        if not self.guard.ready or self.detector.stood_s(now_s) < stands_s:
            return None
        return self._propose(now_s, regime, sample)

    def refused(self, action: Action) -> None:
        """End the trial of an action that could not be carried out."""
        if self._trial is not None and action.event == "change":
            self._values[action.setting] = self._trial.before
            self._set_by_hand.add(action.setting)
            self._trial = None
            self.guard.forget()

    def _judge(self, now_s: float, trial: _Trial, verdict: Verdict) -> Action | None:
        if verdict is Verdict.WAIT:
            return None
        self._trial = None
        evidence = self.guard.found
        step = (trial.setting, trial.after > trial.before) if not trial.by_hand else None
        if verdict is Verdict.KEEP:
            if step is not None:
                self._blocked.pop(step, None)
            self._note(
                now_s, "kept", trial.setting, trial.before, trial.after, self.guard.reason, evidence
            )
            return None
        reason = self.guard.reason
        if step is not None:
            _, pause = self._blocked.get(step, (0.0, 0.5 * self.settings.back_off_s))
            pause = min(2 * pause, self.settings.max_back_off_s)
            self._blocked[step] = (now_s + pause, pause)
            self._values[trial.setting] = trial.before
            reason = f"{reason}; next try in {pause:g} s at the earliest"
        else:
            back = {n: v for n, v in trial.before.items() if n in self._values}
            self._values |= {n: float(v) for n, v in back.items() if v is not None}
        return Action(trial.setting, trial.before, reason, "rolled_back", evidence)

    def _propose(self, now_s: float, regime: Regime, sample: Sample) -> Action | None:
        smoothed_s, baseline_s = self.detector.smoothed_s, self.detector.baseline_s
        waits = smoothed_s / baseline_s if smoothed_s and baseline_s else 0.0
        state = State(regime, waits, sample.waiting)
        for setting, move in self.settings.moves.items():
            here = self._values[setting]
            target = None if setting in self._set_by_hand else move.next(here, state)
            if target is None:
                continue
            until_s, _ = self._blocked.get((setting, target > here), (0.0, 0.0))
            if now_s >= until_s:
                self._values[setting] = target
                self._trial = _Trial(setting, here, target, by_hand=False)
                self.guard.changed(now_s)
                reason = f"regime {regime.name.lower()}"
                return Action(setting, target, reason, "change", self.guard.evidence())
        return None

    def _seen(self, sample: Sample) -> dict[str, float]:
        return {
            "smoothed_s": self.detector.smoothed_s or 0.0,
            "baseline_s": self.detector.baseline_s or 0.0,
            "utilisation": sample.utilisation,
            "knee_share": sample.knee_share,
            "backlog_s": sample.backlog_s,
        }

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
