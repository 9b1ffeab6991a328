"""The settings over which Dynamo's KV router is tuned."""

from __future__ import annotations

from wardrop.demo.ramp.settings import Setting

DEFAULT = Setting("default", simulated="dynamo")
GRID = (
    DEFAULT,
    Setting("scale-4", {"prefill_load_scale": 4.0}, simulated="dynamo(prefill_load_scale=4)"),
    Setting(
        "scale-8-weight-16",
        {"prefill_load_scale": 8.0, "decode_active_request_weight": 16.0},
        simulated="dynamo(prefill_load_scale=8,decode_active_request_weight=16)",
    ),
    Setting("two-tier", two_tier=True, simulated="two_tier"),
    Setting("queue-fcfs", queue="fcfs"),
    Setting("scale-4-queue-wspt", {"prefill_load_scale": 4.0}, queue="wspt"),
)
"""What Dynamo is tuned over in every cell, its own queue included."""
