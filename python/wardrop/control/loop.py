"""The controller in a running gateway: a loop that polls, decides and acts through the door.

The loop runs four times a second by default. One native call returns the outcomes since the last
poll, and one pure step of the controller decides. Its action goes through the same audited door as
a change by hand.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, cast

from wardrop.control.audit import CONTROLLER, PRICE_GUARD, Record
from wardrop.control.controller import Action, Controller, Settings
from wardrop.control.door import Door
from wardrop.control.moves import DEFAULT_MOVES, moves_of
from wardrop.control.sample import Sample
from wardrop.control.settings import SettingError
from wardrop.control.telemetry import PageTelemetry, Telemetry

log = logging.getLogger("wardrop.control")

_PAGE_EVERY_S = 5.0

Page = Callable[[], Awaitable[str]]


class SampleSource(Protocol):
    """The part of a gateway that the loop polls, and that shows the loop's gauges."""

    def sample(self) -> str:
        """JSON of the outcomes since the last call and of the state of the pools."""
        ...

    def set_figures(self, figures_json: str, /) -> None:
        """Report figures for the metrics page, given as a JSON object of numbers."""
        ...


class ControlLoop:
    """Feeds samples to the controller and carries out its actions.

    Args:
        gateway: source of samples.
        door: the way by which settings change.
        acts: whether changes are carried out; False only reports the regime.
        page: reads a metrics page, the fallback when the outcomes of the gateway are stale.
        moves: names of `MOVES` that the controller may use; a move without its setting is left out.
        settings: settings of the controller; by default those with the named moves.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        gateway: SampleSource,
        door: Door,
        acts: bool,
        page: Page | None = None,
        settings: Settings | None = None,
        moves: Sequence[str] = DEFAULT_MOVES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._door = door
        self._acts = acts
        self._page = page
        self._page_s = 0.0
        self._telemetry = Telemetry()
        self._fallback = PageTelemetry()
        self._on_trial: int | None = None
        self._counts = {"change": 0, "kept": 0, "rolled_back": 0}
        self.from_page = 0
        self.figures: dict[str, float] = {}
        """Figures of the last sample, by the name of their gauge; empty before the first."""
        self._misfits: dict[str, str | None] = {}
        self._clock = clock
        if settings is None:
            settings = Settings(moves_of(moves, door.settings()) if acts else {})
        self.controller = Controller(settings)
        door.on_change = self._changed_by_hand

    async def run(self, period_s: float) -> None:
        """Poll until cancelled; an error is logged once and the loop continues."""
        is_logged = False
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.poll()
                is_logged = False
            except Exception as error:
                if not is_logged:
                    log.error("a poll of the controller failed: %r; polling goes on", error)
                is_logged = True

    async def poll(self) -> None:
        """One poll, one step of the controller, at most one action."""
        now_s = self._clock()
        polled = json.loads(self._gateway.sample())
        self._note_misfits(polled)
        sample = self._telemetry.take(polled)
        max_age_s = self.controller.settings.regime.max_age_s
        if self._page is not None and (sample is None or sample.age_s > max_age_s):
            sample = await self._from_page(now_s) or sample
        if sample is not None:
            self._step(now_s, sample)

    def take(self, now_s: float, polled: dict[str, Any]) -> Sample | None:
        """One step on what the caller polled, at most one action; returns the sample."""
        sample = self._telemetry.take(polled)
        if sample is not None:
            self._step(now_s, sample)
        return sample

    def _note_misfits(self, polled: dict[str, Any]) -> None:
        """Record in the audit each pool whose price guard fell or returned since the last poll."""
        found: dict[str, str | None] = {
            f"price_guard: {pool['model']}, {pool['role']}": pool.get("misfit")
            for pool in polled.get("pools", ())
        }
        for name, misfit in found.items():
            before = self._misfits.get(name)
            if misfit != before:
                reason = "the price fits again" if misfit is None else "a static rule decides"
                values = ({name: before or "price"}, {name: misfit or "price"})
                self._door.note("price_guard", [name], *values, reason, by=PRICE_GUARD)
        self._misfits = found

    def _step(self, now_s: float, sample: Sample) -> None:
        action = self.controller.step(now_s, sample)
        if action is not None:
            self._act(action)
        for record in self.controller.records():
            self._counts["kept"] += record.event == "kept"
            of = self._on_trial or 0 if record.event == "kept" else 0
            self._door.note(
                record.event,
                [record.setting],
                {record.setting: record.before},
                {record.setting: record.after},
                record.reason,
                record.evidence,
                CONTROLLER,
                of,
            )
            if record.event == "kept":
                self._on_trial = None
        self._publish(sample)

    async def _from_page(self, now_s: float) -> Sample | None:
        assert self._page is not None
        if now_s - self._page_s < _PAGE_EVERY_S:
            return None
        self._page_s = now_s
        sample = self._fallback.take(now_s, await self._page())
        self.from_page += sample is not None
        return sample

    def _act(self, action: Action) -> None:
        try:
            if action.event == "rolled_back":
                self._door.roll_back(
                    CONTROLLER, action.reason, action.evidence, number=self._on_trial
                )
                self._on_trial = None
            else:
                record = self._door.change(
                    {action.setting: action.value}, CONTROLLER, action.reason, action.evidence
                )
                self._on_trial = record.number
            self._counts[action.event] += 1
        except SettingError as error:
            log.warning("%s of %s was refused: %s", action.event, action.setting, error)
            self.controller.refused(action)
            self._on_trial = None

    def _changed_by_hand(self, record: Record) -> None:
        """Called by the door: a roll-back by hand frees the setting, a change gets a trial."""
        before, after = _by_name(record, record.before), _by_name(record, record.after)
        if record.event == "rolled_back":
            self.controller.rolled_back_by_hand(after)
            self._on_trial = None
            return
        self.controller.changed_by_hand(self._clock(), before, after)
        self._on_trial = record.number if self.controller.on_trial and self._acts else None
        if not self._acts:
            self.controller.rolled_back_by_hand({})

    def _publish(self, sample: Sample) -> None:
        detector = self.controller.detector
        figures: dict[str, float] = {
            "regime": int(detector.regime),
            "ttft_smoothed_seconds": detector.smoothed_s or 0.0,
            "ttft_baseline_seconds": detector.baseline_s or 0.0,
            "knee_share": sample.knee_share,
            "utilisation": sample.utilisation,
            "backlog_seconds": sample.backlog_s,
            "arrivals_per_second": sample.arrivals_per_s,
            "controller": int(self._acts),
            "on_trial": int(self.controller.on_trial),
            "guard_ready": int(self.controller.guard.ready),
        }
        figures |= {f"{event}_total": count for event, count in self._counts.items()}
        settings = self._door.settings()
        figures |= {
            f"setting_{name}": float(value)
            for name, value in settings.items()
            if isinstance(value, int | float)
        }
        self.figures = figures
        self._gateway.set_figures(json.dumps(figures))


def _by_name(record: Record, value: Any) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {record.setting: value}
