"""The opt-in calibrator: adopts what the shadows proved better, within narrow limits.

It may move the objective of `toll` and κ, nothing else, and only while `toll` is in force: it
starts from the price (`docs/pricing.md` says why). A candidate is adopted when, over a whole window
of the last 20 ticks, it is significantly better than what is in force in the figure that the
objective weighs most (paired, 5 % over all shadows together, gain above 2 %), and the simulated
clock agrees with the measured one; the simulator decides that (`ShadowFleets::suggest_among`).
The change goes through the audited door, by `calibrator`: it is bounded, recorded, can be rolled
back, and is put on trial by the guard where the controller acts. What a person changed is left
alone until that is rolled back; a candidate that was rolled back is not tried
again for a while that doubles.
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
"""Figures of an older moment are not acted on."""
LEAST_REQUESTS_PER_CACHE = 8.0
"""A fleet whose caches hold fewer requests is left alone: it is bistable (`docs/pricing.md`)."""
_BACK_OFF_S = 600.0
_MAX_BACK_OFF_S = 6 * 3600.0
_GOALS = ("ttft", "itl", "e2e", "goodput")


class Shadowed(Protocol):
    """The part of a gateway that has shadows."""

    def shadows(self) -> str | None:
        """What they say, as JSON."""
        ...

    def set_gauges(self, gauges_json: str, /) -> None:
        """Figures for the metrics page."""
        ...


class Calibrator:
    """See the module.

    Args:
        gateway: whose shadows are asked.
        door: by which it is changed.
        busy: another change is on trial.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        gateway: Shadowed,
        door: Door,
        busy: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._door = door
        self._busy = busy
        self._clock = clock
        self._seen = 0
        self._held: set[str] = set()
        self._goal = _goal(door.settings())
        self._adopted: dict[int, str] = {}
        self._blocked: dict[str, tuple[float, float]] = {}
        self._counts = {"adopted": 0, "rolled_back": 0}
        self.reason = ""
        """Why nothing was adopted at the last look."""

    async def run(self, period_s: float) -> None:
        """Look until cancelled; an error in a look is told and survived."""
        told = False
        while True:
            await asyncio.sleep(period_s)
            try:
                self.look()
                told = False
            except (ValueError, KeyError, TypeError, OSError) as error:
                if not told:
                    log.error("the calibrator's look failed: %r; it goes on looking", error)
                told = True

    def look(self) -> Record | None:
        """One look; the record of the change, if one was made."""
        settings = self._door.settings()
        self._follow(settings)
        record = self._adopt(settings)
        figures = {f"calibrator_{name}_total": count for name, count in self._counts.items()}
        self._gateway.set_gauges(json.dumps(figures))
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
        held = sorted(set(changes) & self._held)
        until_s, _ = self._blocked.get(name, (0.0, 0.0))
        if not changes or held or self._clock() < until_s:
            self.reason = (
                f"{', '.join(held)}: changed by hand, left alone"
                if held
                else f"{name}: not again yet after a roll-back"
            )
            return None
        reason, found = _evidence(model, at, figure)
        try:
            record = self._door.change(changes, CALIBRATOR, f"shadow {name}: {reason}", found)
        except SettingError as error:
            log.warning("the shadow %s can not be adopted: %s", name, error)
            self._block(name, _MAX_BACK_OFF_S)
            return None
        self._adopted[record.number] = name
        self._counts["adopted"] += 1
        return record

    def _not_now(self, models: list[Any], settings: Mapping[str, Any]) -> str:
        """Why nothing may be adopted now; nothing where it may."""
        if settings["policy"] != "toll":
            return f"the policy is {settings['policy']}: only the price is calibrated"
        if not models:
            return "there are no shadows yet"
        if self._busy():
            return "another change is on trial"
        for model in models:
            trust = model["trust"]
            if not trust["trusted"]:
                return str(trust["reason"])
            if model["ticks"] < model["window_ticks"]:
                return f"{model['ticks']} of {model['window_ticks']} ticks yet"
            if model["age_s"] is None or model["age_s"] > MAX_AGE_S:
                return f"the figures are {model['age_s'] or 0:.0f} s old"
            if (model["requests_per_cache"] or 0.0) < LEAST_REQUESTS_PER_CACHE:
                return "few big prompts in small caches: such a fleet is bistable"
        return ""

    def _follow(self, settings: Mapping[str, Any]) -> None:
        """Take note of what was changed by others since the last look."""
        fresh = [record for record in self._door.records(1024) if record.number > self._seen]
        for record in fresh:
            self._seen = record.number
            names = _with_objective(record.setting.split(", "))
            if record.event == "change" and record.by == HAND:
                self._held |= names
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
                    self._held -= names
                    self._goal = _goal(settings)

    def _block(self, name: str, pause_s: float) -> None:
        pause_s = min(pause_s, _MAX_BACK_OFF_S)
        self._blocked[name] = (self._clock() + pause_s, pause_s)


def changes_to(arm: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, float]:
    """The settings by which an adoptable shadow differs from what is in force."""
    wanted = {name: arm["policy"][name.partition(".")[2]] for name in OBJECTIVE}
    if arm["queue"] is not None:
        wanted["kappa"] = arm["queue"]["kappa"]
    return {name: float(value) for name, value in wanted.items() if settings.get(name) != value}


def _goal(settings: Mapping[str, Any]) -> str:
    """The figure that the objective weighs most; the first token where nothing is weighed."""
    return max(_GOALS, key=lambda goal: float(settings.get(f"objective.{goal}", 0.0)))


def _with_objective(names: list[str]) -> set[str]:
    """With one part of the objective all of it."""
    every = set(OBJECTIVE) if any(name.startswith("objective.") for name in names) else set[str]()
    return {*names, *every}


def _evidence(model: Mapping[str, Any], at: int, figure: str) -> tuple[str, dict[str, float]]:
    ratio, trust = model["arms"][at][f"{figure}_ratio"], model["trust"]
    words = (
        f"{figure} {ratio['value']:.3f} of what is in force ({ratio['low']:.3f} to "
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
