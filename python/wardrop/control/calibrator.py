"""The opt-in calibrator: adopts a shadow that proved better, within narrow limits.

The calibrator may change the objective of `toll` and κ, nothing else, and only while `toll` is in
force. It adopts a candidate under two conditions. First, over a whole window of the last 20 ticks,
the candidate is significantly better in the figure that the objective weighs most. The test is
paired, at 5 % over all shadows together, and the gain must exceed 2 %. Second, the simulated clock
agrees with the measured clock. The simulator decides both (`ShadowFleets::suggest_among`).

The change goes through the audited door as `calibrator`. So it is bounded and recorded, it can be
rolled back, and the guard puts it on trial where the controller acts. The calibrator leaves
alone what a person changed until that change is rolled back. A candidate that was rolled back is
not tried again for a pause that doubles.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from wardrop.control.audit import CALIBRATOR, HAND, Record
from wardrop.control.door import Door
from wardrop.control.settings import OBJECTIVE, SettingError

log = logging.getLogger("wardrop.control")

MAX_AGE_S = 60.0
"""Age in seconds from which the figures of shadows are ignored."""
MIN_REQUESTS_PER_CACHE = 8.0
"""Requests that a cache holds at least; with fewer the fleet is bistable and left alone."""
_BACK_OFF_S = 600.0
_MAX_BACK_OFF_S = 6 * 3600.0
_GOALS = ("ttft", "itl", "e2e", "goodput")


class ShadowSource(Protocol):
    """The part of a gateway that reports its shadows."""

    def shadows(self) -> str | None:
        """JSON of the shadow reports of every model; None without shadows."""
        ...

    def set_figures(self, figures_json: str, /) -> None:
        """Report figures for the metrics page, given as a JSON object of numbers."""
        ...


class Calibrator:
    """Polls the shadows of a gateway and adopts at most one candidate at a time.

    Args:
        gateway: source of shadow reports.
        door: the way by which settings change.
        busy: whether another change is on trial.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        gateway: ShadowSource,
        door: Door,
        busy: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._door = door
        self._busy = busy
        self._clock = clock
        self._seen = 0
        self._set_by_hand: set[str] = set()
        self._goal = _goal(door.settings())
        self._adopted: dict[int, str] = {}
        self._blocked: dict[str, tuple[float, float]] = {}
        self._counts = {"adopted": 0, "rolled_back": 0}
        self.reason = ""
        """Why the last poll adopted nothing; empty after an adoption."""

    async def run(self, period_s: float) -> None:
        """Poll until cancelled; an error is logged once and the loop continues."""
        is_logged = False
        while True:
            await asyncio.sleep(period_s)
            try:
                self.poll()
                is_logged = False
            except Exception as error:
                if not is_logged:
                    log.error("a poll of the calibrator failed: %r; polling goes on", error)
                is_logged = True

    def poll(self) -> Record | None:
        """Read the shadows once; return the record of the change, if one was made."""
        settings = self._door.settings()
        self._follow(settings)
        record = self._adopt(settings)
        figures = {f"calibrator_{name}_total": count for name, count in self._counts.items()}
        self._gateway.set_figures(json.dumps(figures))
        return record

    def _adopt(self, settings: Mapping[str, Any]) -> Record | None:
        models: list[Any] = [m for m in json.loads(self._gateway.shadows() or "[]") if "arms" in m]
        self.reason = self._not_now(models, settings)
        if self.reason:
            return None
        figure = self._goal
        names = {cast(str | None, model["suggested"].get(figure)) for model in models}
        name = names.pop() if len(names) == 1 else None
        if name is None:
            self.reason = f"no candidate is significantly better in {figure} everywhere"
            return None
        model = models[0]
        at = [policy["name"] for policy in model["policies"]].index(name)
        changes = changes_to(model["policies"][at], settings)
        held = sorted(set(changes) & self._set_by_hand)
        until_s, _ = self._blocked.get(name, (0.0, 0.0))
        if not changes or held or self._clock() < until_s:
            self.reason = (
                f"{', '.join(held)}: changed by hand, left alone"
                if held
                else f"{name}: paused after a roll-back"
            )
            return None
        reason, found = _evidence(model, at, figure)
        try:
            record = self._door.change(changes, CALIBRATOR, f"shadow {name}: {reason}", found)
        except SettingError as error:
            log.warning("cannot adopt the shadow %s: %s", name, error)
            self._block(name, _MAX_BACK_OFF_S)
            return None
        self._adopted[record.number] = name
        self._counts["adopted"] += 1
        return record

    def _not_now(self, models: list[Any], settings: Mapping[str, Any]) -> str:
        """Why nothing may be adopted now; empty if something may."""
        if settings["policy"] != "toll":
            return f"the policy is {settings['policy']}: only toll is calibrated"
        if not models:
            return "no shadow has reported yet"
        if self._busy():
            return "another change is on trial"
        for model in models:
            trust = model["trust"]
            if not trust["trusted"]:
                return str(trust["reason"])
            if model["ticks"] < model["window_ticks"]:
                return f"{model['ticks']} of {model['window_ticks']} ticks so far"
            if model["age_s"] is None or model["age_s"] > MAX_AGE_S:
                return f"the figures are {model['age_s'] or 0:.0f} s old"
            if (model["requests_per_cache"] or 0.0) < MIN_REQUESTS_PER_CACHE:
                return "few big prompts in small caches: the fleet is bistable"
        return ""

    def _follow(self, settings: Mapping[str, Any]) -> None:
        """Take in the changes and roll-backs that others made since the last poll."""
        fresh = [record for record in self._door.records(1024) if record.number > self._seen]
        for record in fresh:
            self._seen = record.number
            names = _with_objective(record.setting.split(", "))
            if record.event == "change" and record.by == HAND:
                self._set_by_hand |= names
                if "objective" in record.setting or "policy" in names:
                    self._goal = _goal(settings)
            if record.event == "rolled_back":
                name = self._adopted.pop(record.of, None)
                if name is not None:
                    self._counts["rolled_back"] += 1
                    _, pause_s = self._blocked.get(name, (0.0, 0.5 * _BACK_OFF_S))
                    by_hand = record.by == HAND
                    self._block(name, _MAX_BACK_OFF_S if by_hand else 2 * pause_s)
                elif record.by == HAND:
                    self._set_by_hand -= names
                    self._goal = _goal(settings)

    def _block(self, name: str, pause_s: float) -> None:
        pause_s = min(pause_s, _MAX_BACK_OFF_S)
        self._blocked[name] = (self._clock() + pause_s, pause_s)


def changes_to(arm: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, float]:
    """The settings by which an adoptable shadow differs from those in force."""
    wanted = {name: arm["policy"][name.partition(".")[2]] for name in OBJECTIVE}
    if arm["queue"] is not None:
        wanted["kappa"] = arm["queue"]["kappa"]
    return {name: float(value) for name, value in wanted.items() if settings.get(name) != value}


def _goal(settings: Mapping[str, Any]) -> str:
    """The figure that the objective weighs most; TTFT where no figure has a weight."""
    return max(_GOALS, key=lambda goal: float(settings.get(f"objective.{goal}", 0.0)))


def _with_objective(names: list[str]) -> set[str]:
    """The names, with every part of the objective if one part is among them."""
    every = set(OBJECTIVE) if any(name.startswith("objective.") for name in names) else set[str]()
    return {*names, *every}


def _evidence(model: Mapping[str, Any], at: int, figure: str) -> tuple[str, dict[str, float]]:
    ratio, trust = model["arms"][at][f"{figure}_ratio"], model["trust"]
    words = (
        f"{figure} {ratio['value']:.3f} of the policy in force ({ratio['low']:.3f} to "
        f"{ratio['high']:.3f}) over {model['ticks']} ticks"
    )
    figures = {
        "ratio": ratio["value"],
        "ratio_low": ratio["low"],
        "ratio_high": ratio["high"],
        "p": ratio["p"],
        "ticks": model["ticks"],
        "clock_ratio": trust["clock_ratio"],
        "measured": trust["measured"],
    }
    return words, {name: float(value) for name, value in figures.items()}
