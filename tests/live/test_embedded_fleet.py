"""The embedded fleet itself: what every other live test stands on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetError, FleetSpec, split_fleet

pytestmark = pytest.mark.live


def group_members(pgid: int) -> list[int]:
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pgid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.usefixtures("private_network")
def test_split_fleet_registers_both_roles_and_leaves_nothing_behind():
    spec = split_fleet("1x2", FleetSpec(process_per_worker=False))
    with Fleet(spec) as fleet:
        assert sorted(fleet.live_instances().values()) == ["backend", "backend", "prefill"]
        fleet.add_frontend("kv")
        groups = [worker.child.pid for worker in fleet.workers] + [fleet.frontends[0].child.pid]
        assert all(group_members(group) for group in groups)
        home = fleet.home
    assert not home.exists()
    assert [group_members(group) for group in groups] == [[], [], []]


@pytest.mark.usefixtures("private_network")
def test_failed_start_names_the_part_and_shows_its_log(capfd: pytest.CaptureFixture[str]):
    fleet = Fleet(FleetSpec(workers=1, mocker_arguments=("--no-such-flag",)))
    with pytest.raises(
        FleetError, match=r"(?s)worker-0-aggregated ended with code 2.*--no-such-flag"
    ):
        fleet.__enter__()
    assert f"the logs of the embedded Dynamo are in {fleet.home}" in capfd.readouterr().err
    assert list(fleet.home.glob("*.log"))
    shutil.rmtree(fleet.home)


@pytest.mark.usefixtures("private_network")
def test_part_that_ends_while_the_others_are_looked_over_fails_the_start(
    monkeypatch: pytest.MonkeyPatch,
):
    look = Fleet._all_registered  # pyright: ignore[reportPrivateUsage]

    def look_once_it_ended(fleet: Fleet) -> bool:
        wait_until(lambda: fleet.workers[0].child.exit_code is not None)
        return look(fleet)

    monkeypatch.setattr(Fleet, "_all_registered", look_once_it_ended)
    fleet = Fleet(FleetSpec(workers=1, mocker_arguments=("--no-such-flag",)))
    try:
        with pytest.raises(FleetError, match="worker-0-aggregated ended with code 2"):
            fleet.__enter__()
    finally:
        fleet.stop()
        shutil.rmtree(fleet.home, ignore_errors=True)


@pytest.mark.usefixtures("private_network")
def test_killed_parent_takes_the_fleet_with_it():
    script = (
        "from wardrop.dynamo.embedded import *\n"
        "import signal\n"
        "with Fleet(FleetSpec(workers=1)) as f:\n"
        "    print(f.workers[0].child.pid, f.home, flush=True)\n"
        "    signal.pause()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert parent.stdout is not None
    pid, home = parent.stdout.readline().split()
    assert group_members(int(pid)), "the worker must run before its parent is killed"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not group_members(int(pid)))
    shutil.rmtree(home)


def test_split_text_must_name_two_positive_numbers():
    assert FleetSpec.parse_split("2x4") == (2, 4)
    for text in ("2", "2x", "x4", "0x1", "axb", "-1x2"):
        with pytest.raises(ValueError, match="PREFILLxDECODE"):
            FleetSpec.parse_split(text)
