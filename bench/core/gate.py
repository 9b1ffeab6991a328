"""Instruction counts of fixed cases against a committed baseline: `make gate`.

Counts do not depend on what else the machine does, so they show a regression that timings on a busy
machine hide. valgrind's callgrind counts inside one function of `rust/core/benches/counts.rs`;
without valgrind the gate says so and checks nothing. `make gate RECORD=--record` records a new
baseline; the commit gives the reason.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("counts.json")
TOLERANCE = 0.06  # the layout of unrelated code moves counts by up to 4 %
OTHER_COMPILER_TOLERANCE = 0.15


def built() -> str:
    """Path of the built benchmark program."""
    command = ["cargo", "build", "--release", "--locked", "-p", "wardrop-core", "--bench"]
    command += ["counts", "--message-format=json"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    programs = (json.loads(line).get("executable") for line in lines if line.startswith("{"))
    return next(program for program in programs if program)


def instructions(program: str, case: str) -> int:
    """Instructions inside the measured function."""
    command = ["valgrind", "--tool=callgrind", "--toggle-collect=*counts*measured*"]
    command += ["--callgrind-out-file=/dev/null", program, case]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.search(r"Collected : (\d+)", output)
    if found is None or int(found[1]) == 0:
        raise SystemExit(f"callgrind counted nothing for {case}:\n{output}")
    return int(found[1])


def compiler() -> str:
    """Version of the compiler that built the program."""
    return subprocess.run(
        ["rustc", "--version"], check=True, capture_output=True, text=True
    ).stdout.strip()


def compare(counts: dict[str, int], baseline: dict[str, Any]) -> bool:
    """Print every case, and return whether one exceeds the tolerance."""
    tolerance = TOLERANCE
    if baseline["compiler"] != compiler():
        tolerance = OTHER_COMPILER_TOLERANCE
        print(f"baseline by {baseline['compiler']}, now {compiler()}: tolerance {tolerance:.0%}")
    worse = False
    for case, count in counts.items():
        before = baseline["instructions"].get(case)
        if before is None:
            print(f"{case:32} {count:>12,}  new: record it")
            continue
        change = count / before - 1
        failed = change > tolerance
        worse |= failed
        mark = "WORSE" if failed else "better: record it" if change < -tolerance else ""
        print(f"{case:32} {count:>12,}  {change:+.1%}  {mark}")
    for case in baseline["instructions"].keys() - counts.keys():
        print(f"{case:32} is in the baseline only: record it")
    return worse


def main() -> None:
    """Count, then compare or record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="make these the baseline")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("SKIPPED: valgrind is not installed (Debian: apt-get install valgrind);")
        print("SKIPPED: no instruction was counted, a regression would not be seen")
        return
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if baseline and baseline["machine"] != platform.machine() and not arguments.record:
        machines = f"baseline from {baseline['machine']}, this machine {platform.machine()}"
        print(f"SKIPPED: {machines}")
        return
    program = built()
    cases = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    counts = {case: instructions(program, case) for case in cases}
    if arguments.record or not baseline:
        content = {"machine": platform.machine(), "compiler": compiler(), "instructions": counts}
        BASELINE.write_text(json.dumps(content, indent=1) + "\n")
        print(f"recorded {len(counts)} cases in {BASELINE}")
        return
    sys.exit(compare(counts, baseline))


if __name__ == "__main__":
    main()
