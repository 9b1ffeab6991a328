"""The controller: telemetry in, regime, and now and then one small change that must prove itself.

`Controller.step(now_s, sample)` is pure: no clock, no I/O. Whoever runs it feeds samples of the
router's own outcomes at least once a second and carries out the actions it returns through the
`Door`, by which changes by hand go too: each is checked, applied as a whole and recorded, and what
came of it under the same number. `wardrop.control.run` is that in a running gateway.
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
