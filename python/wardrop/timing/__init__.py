"""How long an engine takes: timing tables, and the forms that their users need.

`table` reads the one file format. `simulated` gives it to the simulator, `points` to the learned
latency curves of a router, `curves` to the games. `b200` is the formula of the demo's mock workers.
"""

from wardrop.timing.b200 import STEP_MS, itl_ms, prefill_ms, write_table
from wardrop.timing.curves import TimingCurves, builtin_timing, read_timing
from wardrop.timing.points import Point, timing_points
from wardrop.timing.simulated import POLYNOMIAL, SimulatedTiming, affine, load_timing
from wardrop.timing.table import TimingError, TimingTable, read_table

__all__ = [
    "POLYNOMIAL",
    "STEP_MS",
    "Point",
    "SimulatedTiming",
    "TimingCurves",
    "TimingError",
    "TimingTable",
    "affine",
    "builtin_timing",
    "itl_ms",
    "load_timing",
    "prefill_ms",
    "read_table",
    "read_timing",
    "timing_points",
    "write_table",
]
