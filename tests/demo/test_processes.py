"""CPU time is counted for a process and all that it started."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.waiting import wait_until

from wardrop.demo.processes import children, cpu_s

BURN = "import time; e=time.process_time()+0.4\nwhile time.process_time()<e: pass\n"


def test_a_living_childs_time_counts_and_a_reaped_ones_stays() -> None:
    # A parent that burns nothing itself: its child burns, is waited for, then the parent waits.
    parent = "import subprocess,sys,time; subprocess.run([sys.executable,'-c',sys.argv[1]]); "
    process = subprocess.Popen([sys.executable, "-c", parent + "time.sleep(30)", BURN])
    try:
        wait_until(lambda: cpu_s([process.pid]) >= 0.4, "the child's CPU time")
        wait_until(lambda: not children(process.pid), "the end of the child")
        assert cpu_s([process.pid]) >= 0.4
    finally:
        process.kill()
        process.wait()


def test_only_living_children_are_listed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    assert process.pid in children(os.getpid())
    process.kill()
    process.wait()
    assert process.pid not in children(os.getpid())
    assert cpu_s([process.pid]) == 0
