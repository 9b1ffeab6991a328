"""Admin API, live page, receipts and changes of settings of the native frontend."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.doctor.diagnosis import diagnose
from tests.frontend.native import Native, running
from tests.frontend.test_live import prompt
from tests.live.client import get, request, stream
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network", "binary")]

ADMIN = ("--wardrop-admin-port", "0")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(FleetSpec(workers=2, speedup_ratio=20, process_per_worker=False)) as fleet:
        yield fleet


def admin(native: Native, count: int = 1) -> str:
    """Address of the admin API after it started for the `count`-th time."""

    def addresses() -> list[str]:
        return re.findall(r"live page on (http://127\.0\.0\.1:\d+)/", native.log)

    wait_until(lambda: len(addresses()) >= count, "the admin API", 60.0)
    return addresses()[count - 1]


def process_of(native: Native) -> int:
    """Process id of the control plane."""
    children = Path(f"/proc/{native.child.pid}/task/{native.child.pid}/children")
    tasks = Path(f"/proc/{native.child.pid}/task").iterdir()
    found = [pid for task in tasks for pid in (task / children.name).read_text().split()]
    (pid,) = found
    return int(pid)


def test_every_admin_route_of_the_gateway_answers_in_the_frontend(fleet: Fleet, tmp_path: Path):
    audit = tmp_path / "audit.jsonl"
    arguments = (*ADMIN, "--wardrop-audit-file", str(audit), "--wardrop-shadows", "dynamo")
    with running(fleet, *arguments) as native:
        url = admin(native)
        answer = native.complete(prompt(1))
        receipt = get(url, f"/v1/receipts/{answer.json()['id']}")
        assert receipt.status == 200, receipt.body
        (leg,) = receipt.json()["legs"]
        assert leg["worker"]["instance"] in fleet.live_instances()
        assert receipt.json()["outcome"]["how"] == "finished"
        assert get(url, "/v1/receipts/nobody").status == 404

        change = {"changes": {"policy": "least_loaded"}, "reason": "a test"}
        changed = request(
            url,
            "POST",
            "/v1/settings",
            json.dumps(change).encode(),
            {"content-type": "application/json"},
        )
        assert changed.status == 200, changed.body
        status = get(native.url, "/wardrop/status").json()
        assert status["models"][0]["pools"][0]["policy"] == "least_loaded"
        assert json.loads(audit.read_text().splitlines()[-1])["reason"] == "a test"
        assert get(url, "/v1/audit").json()[-1]["by"] == "hand"

        assert get(url, "/v1/status").json()["address"] == native.url.removeprefix("http://")
        assert get(url, "/v1/wiring").json()["door"] == "frontend"
        assert get(url, "/v1/shadows").status == 200
        assert get(url, "/v1/curves").json()["pools"]
        assert b"wardrop_decisions_total" in get(url, "/metrics").body
        assert b"<!doctype html>" in get(url, "/").body[:200].lower()
        connection, lines = stream_get(url, "/v1/live")
        wait_until(lambda: b"snapshot" in next(lines), "a snapshot of the live page")
        connection.close()
        # The loop of the controller reports its figures in the frontend's own metrics.
        wait_until(
            lambda: "wardrop_control_regime" in get(native.url, "/metrics").body.decode(),
            "a regime",
        )


def stream_get(url: str, path: str):
    """Connection and lines of an endless answer."""
    from tests.live.client import connect

    connection = connect(url)
    connection.request("GET", path)
    return connection, iter(connection.getresponse().readline, b"")


def test_doctor_reads_receipts_over_the_admin_api(fleet: Fleet):
    with running(fleet, *ADMIN) as native:
        code, found = diagnose(admin(native))
        assert code == 0, found
        for name in ("workers", "pin", "blocks"):
            assert found[name]["level"] == "ok", found[name]


def test_control_plane_that_is_killed_starts_again_and_costs_no_request(fleet: Fleet):
    with running(fleet, *ADMIN) as native:
        admin(native)
        os.kill(process_of(native), signal.SIGKILL)
        assert native.complete(prompt(2)).status == 200
        again = admin(native, 2)
        assert get(again, "/v1/status").status == 200
        assert "the control plane ended" in native.log


def test_control_plane_ends_with_a_frontend_that_is_killed(fleet: Fleet):
    with running(fleet, *ADMIN) as native:
        admin(native)
        pid = process_of(native)
        os.kill(native.child.pid, signal.SIGKILL)
        wait_until(lambda: not runs(pid), "the end of the control plane")


def runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_control_plane_runs_by_default(fleet: Fleet):
    with running(fleet) as native:
        tasks = Path(f"/proc/{native.child.pid}/task").iterdir()
        assert not [pid for task in tasks for pid in (task / "children").read_text().split()]


def test_decisions_are_recorded_for_replay(fleet: Fleet, tmp_path: Path):
    folder = tmp_path / "records"
    with running(fleet, "--wardrop-records", str(folder)) as native:
        for number in range(3):
            assert native.complete(prompt(number), 2).status == 200
    texts = [file.read_text() for file in sorted(folder.iterdir())]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    records = [line for line in lines if line["schema"] == "wardrop.record/1"]
    assert len(records) == 3, lines
    assert {record["outcome"]["how"] for record in records} == {"finished"}


def test_frontends_side_by_side_price_the_requests_of_one_another(fleet: Fleet):
    from wardrop.dynamo.ports import free_port

    first, second = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"

    def arguments(own: str, name: str) -> tuple[str, ...]:
        return (
            *("--wardrop-peer-listen", own, "--wardrop-peer", f"{first},{second}"),
            *("--wardrop-router-id", name),
        )

    with (
        running(fleet, *arguments(first, "a")) as one,
        running(fleet, *arguments(second, "b")) as other,
    ):
        body = one.body(prompt(3), 3000, stream=True, ignore_eos=True)
        connection, lines = stream(one.url, "/v1/completions", body)
        wait_until(lambda: next(lines).startswith(b"data: "), "the first token")
        wait_until(lambda: other.bookings() == 1, "the peer's booking")
        connection.close()
        wait_until(lambda: other.bookings() == 0, "its release")


def test_dynamo_decides_while_wardrop_is_switched_off(fleet: Fleet):
    from tests.frontend.native import served_by

    native = Native(fleet, ("--no-wardrop-decide",), {})
    try:
        wait_until(lambda: b'"tiny"' in listed(native), "the model", 60.0)
        served = {served_by(native.complete(prompt(n)))[1] for n in range(4)}
        assert served == set(fleet.live_instances()), "round robin takes every worker"
        assert native.decisions() == 0
    finally:
        native.child.stop(10.0)


def listed(native: Native) -> bytes:
    try:
        return get(native.url, "/v1/models").body
    except OSError:
        return b""
