"""The controller: telemetry in, regime, and now and then one small change that must prove itself.

`Controller.step(now_s, sample)` is pure: no clock, no I/O. Whoever runs it feeds samples of the
router's own outcomes at least once a second and carries out the actions it returns; every action,
verdict and roll-back is a record for the audit log.
"""

from wardrop.control.audit import AuditLog, Record, read_audit
from wardrop.control.controller import Action, Controller, Settings
from wardrop.control.guard import Guard, GuardSettings, Verdict
from wardrop.control.regime import Regime, RegimeDetector, RegimeSettings, knee_load
from wardrop.control.sample import Sample

__all__ = [
    "Action",
    "AuditLog",
    "Controller",
    "Guard",
    "GuardSettings",
    "Record",
    "Regime",
    "RegimeDetector",
    "RegimeSettings",
    "Sample",
    "Settings",
    "Verdict",
    "knee_load",
    "read_audit",
]
