"""The controller: from telemetry to the regime, and to one small change at a time, on trial.

`Controller.step(now_s, sample)` is pure: it reads no clock and does no I/O. `wardrop.control.loop`
runs it in a gateway: it feeds samples of the router's outcomes and carries out the actions through
the `Door`. Changes by hand use the same door, which checks, applies and records each change.
"""

from wardrop.control.audit import AuditLog, Record, read_audit
from wardrop.control.controller import Action, Controller, Settings
from wardrop.control.door import Door
from wardrop.control.guard import Guard, GuardSettings, Verdict
from wardrop.control.regime import (
    Regime,
    RegimeDetector,
    RegimeSettings,
    knee_load,
    knee_utilisation,
)
from wardrop.control.sample import Sample
from wardrop.control.settings import SettingError

__all__ = [
    "Action",
    "AuditLog",
    "Controller",
    "Door",
    "Guard",
    "GuardSettings",
    "Record",
    "Regime",
    "RegimeDetector",
    "RegimeSettings",
    "Sample",
    "SettingError",
    "Settings",
    "Verdict",
    "knee_load",
    "knee_utilisation",
    "read_audit",
]
