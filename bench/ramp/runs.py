"""Runs of one arm on a real Dynamo, and their figures as JSON lines, so that a run can go on."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench.ramp.cells import Cell
from bench.ramp.grid import DEFAULT
from bench.replay.against_live import workload_of
from numpy.typing import NDArray

from wardrop.demo.arms import DYNAMO_KV, WARDROP, WARDROP_FRONTEND, Arm, running
from wardrop.demo.drive import Driven, Row, drive
from wardrop.demo.plan import BLOCK_SIZE, MODEL
from wardrop.demo.ramp.profile import PHASES, Profile
from wardrop.demo.ramp.settings import Setting
from wardrop.replay import Policy, simulate
from wardrop.workload import Turn, completion_body

TIMEOUT_S = 120.0
MAX_LATE_MS = 20.0
"""A run whose load driver was later at p99 is repeated: the machine was too busy for it."""
CURVE_BIN_S = 2.0
"""A run keeps one point per interval of this length: its number, its requests, their mean TTFT."""
TTFT_SLO_S, GAP_SLO_S = 1.0, 0.05
"""A good answer: first token within the first limit, mean gap between tokens within the second."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contender:
    """What routes in a run.

    Attributes:
        name: Name in results.
        arm: The processes.
        setting: Dynamo's setting, for an arm of Dynamo.
        simulated: The simulator's policy that decides alike, or None.
    """

    name: str
    arm: Arm
    setting: Setting = DEFAULT
    simulated: str | None = None


def dynamo(setting: Setting) -> Contender:
    """Dynamo's KV router with a setting."""
    return Contender(f"dynamo {setting.name}", DYNAMO_KV, setting, setting.simulated)


WARDROP_FRONT = Contender("wardrop", WARDROP, simulated="toll+queue")
WARDROP_INSIDE = Contender("wardrop inside", WARDROP_FRONTEND, simulated="toll+queue")
"""Wardrop without a flag, in front of Dynamo's frontend and inside it."""


@dataclass(frozen=True)
class Figures:
    """Figures of one run.

    Attributes:
        requests: Answered requests.
        errors: Requests without a complete answer.
        ttft_ms: Mean time to first token, in milliseconds.
        ttft_p99_ms: 99th percentile of the time to first token, in milliseconds.
        e2e_ms: Mean time to the last token, in milliseconds.
        goodput: Share of requests within both limits, 0 to 1.
        late_ms: Lateness of the load driver at p99, in milliseconds; 0 when simulated.
        router_cpu_us: CPU time of the routing processes per request, in microseconds.
        phases: Mean time to first token by phase of the ramp, in milliseconds.
    """

    requests: int
    errors: int
    ttft_ms: float
    ttft_p99_ms: float
    e2e_ms: float
    goodput: float
    late_ms: float
    router_cpu_us: float
    phases: dict[str, float]


@dataclass
class Runs:
    """All finished runs of a file of JSON lines.

    Attributes:
        path: The file, which is appended to.
        timing: Timing table of the engines (.npz).
        minutes: Minutes after which no further run begins.
        report: Called with a line of text after each run.
    """

    path: Path
    timing: Path
    minutes: float = float("inf")
    report: Callable[[str], None] = print
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def __post_init__(self) -> None:
        self._end_s = time.monotonic() + 60 * self.minutes
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.rows = [json.loads(line) for line in lines]

    def knee_per_s(self, cell: Cell) -> float:
        """The cell's knee in requests/s, found once per file."""
        for row in self.rows:
            if row["cell"] == cell.name and "knee_per_s" in row:
                return row["knee_per_s"]
        knee = cell.knee_per_s(self.timing)
        self._add({"cell": cell.name, "knee_per_s": knee})
        self.report(f"{cell.name}: knee at {knee:g} requests/s")
        return knee

    def find(self, cell: Cell, name: str, seed: int) -> dict[str, Any] | None:
        """The row of a finished run, or None. Of repeated runs, the last counts."""
        rows = self._finished(cell, name, seed)
        return rows[-1] if rows else None

    def run(self, cell: Cell, contender: Contender, seed: int, seconds: float) -> None:
        """Run once unless the file has the run, or the time is over; repeat a late run once.

        Raises:
            ValueError: The file has this run at another length.
        """
        while time.monotonic() <= self._end_s:
            rows = self._finished(cell, contender.name, seed)
            if any(row["seconds"] != seconds for row in rows):
                raise ValueError(
                    f"{self.path} has {cell.name}, {contender.name}, seed {seed} at "
                    f"{rows[0]['seconds']:g} s, and {seconds:g} s are asked for; give another file"
                )
            if len(rows) > 1 or (rows and rows[0]["live"]["late_ms"] <= MAX_LATE_MS):
                return
            self._run(cell, contender, seed, seconds)

    def _finished(self, cell: Cell, name: str, seed: int) -> list[dict[str, Any]]:
        key = (cell.name, name, seed)
        return [r for r in self.rows if (r["cell"], r.get("contender"), r.get("seed")) == key]

    def _run(self, cell: Cell, contender: Contender, seed: int, seconds: float) -> None:
        profile = cell.profile(self.knee_per_s(cell), seconds)
        turns = cell.turns(profile, seed)
        figures, curve = self._live(cell, contender, turns, profile)
        self._add(
            {
                "cell": cell.name,
                "contender": contender.name,
                "seed": seed,
                "seconds": seconds,
                "load": round(os.getloadavg()[0], 1),
                "live": asdict(figures),
                "simulated": self._simulated(cell, contender, turns),
                "curve": curve,
            }
        )
        self.report(
            f"{cell.name:22s} seed {seed:4d} {contender.name:28s} mean {figures.ttft_ms:6,.0f} ms, "
            f"p99 {figures.ttft_p99_ms:6,.0f} ms, {figures.errors} errors, "
            f"driver {figures.late_ms:.0f} ms late"
        )

    def _live(
        self, cell: Cell, contender: Contender, turns: list[Turn], profile: Profile
    ) -> tuple[Figures, list[list[float]]]:
        rows: list[Row] = [(t.time_s, t.follows, completion_body(MODEL, t)) for t in turns]
        with tempfile.TemporaryDirectory(prefix="wardrop-ramp-") as folder:
            flags = contender.setting.flags(Path(folder))
            with running(contender.arm, cell.spec(self.timing), (), flags) as stack:
                driven = drive(
                    f"{stack.url}/v1/completions",
                    rows,
                    router_pids=stack.router_pids,
                    duration_s=4 * profile.seconds + TIMEOUT_S,
                    timeout_s=TIMEOUT_S,
                )
        return _figures(driven, profile)

    def _simulated(
        self, cell: Cell, contender: Contender, turns: list[Turn]
    ) -> dict[str, float] | None:
        if contender.simulated is None:
            return None
        fleet = cell.simulated(self.timing, metrics=contender.arm is not DYNAMO_KV)
        workload = workload_of(turns, BLOCK_SIZE)
        found = [
            simulate(workload, fleet, Policy.parse(contender.simulated), seed=seed).summary()
            for seed in range(5)
        ]
        return {
            "ttft_ms": 1e3 * float(np.mean([one["ttft_mean_s"] for one in found])),
            "e2e_ms": 1e3 * float(np.mean([one["e2e_mean_s"] for one in found])),
        }

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _figures(driven: Driven, profile: Profile) -> tuple[Figures, list[list[float]]]:
    columns = driven.columns
    outcomes = columns["outcome"]
    ok = np.array([outcome == "ok" for outcome in outcomes])

    def column(name: str) -> Floats:
        return np.array(columns[name], dtype=np.float64)[ok]

    sent, first, end = column("sent_s"), column("first_token_s"), column("end_s")
    gaps = np.maximum(np.nan_to_num(column("completion_tokens"), nan=1.0) - 1, 0)
    gap_s = np.where(gaps > 0, (end - first) / np.maximum(1.0, gaps), 0.0)
    ttft = first - sent
    good = (ttft <= TTFT_SLO_S) & (gap_s <= GAP_SLO_S)
    errors = sum(outcome not in ("ok", "unsent") for outcome in outcomes)
    phase = profile.phase(sent)
    figures = Figures(
        int(ok.sum()),
        int(errors),
        1e3 * float(ttft.mean()),
        1e3 * float(np.percentile(ttft, 99)),
        1e3 * float((end - sent).mean()),
        float(good.sum()) / (good.size + errors),
        1e3 * float(columns["lateness_p99_s"] or 0.0),
        1e6 * sum(driven.router_cpu_s) / max(1, int(ok.sum())),
        {
            name: 1e3 * float(ttft[phase == at].mean()) if (phase == at).any() else float("nan")
            for at, name in enumerate(PHASES)
        },
    )
    place = (sent / CURVE_BIN_S).astype(np.intp)
    curve = [
        [int(at), int((place == at).sum()), round(1e3 * float(ttft[place == at].mean()), 1)]
        for at in np.unique(place)
    ]
    return figures, curve
