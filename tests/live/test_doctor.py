"""`wardrop doctor` on a real Dynamo: healthy, with pins disabled, and without prefix caching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.doctor.diagnosis import diagnose
from tests.live.router import Router, running
from typer.testing import CliRunner

from wardrop.commands.doctor import app
from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]

QUICK = {"speedup_ratio": 100, "process_per_worker": False}


@contextmanager
def served(spec: FleetSpec, *arguments: str) -> Iterator[tuple[Router, str]]:
    """A router and the address of its admin API."""
    port = free_port()
    with (
        Fleet(spec) as fleet,
        running(fleet, "--admin-port", str(port), *arguments) as router,
    ):
        yield router, f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("spec", "blocks"),
    [
        (FleetSpec(workers=2, **QUICK), "ok"),
        # Mock workers of a split report no cached tokens.
        (FleetSpec(prefill=2, decode=2, **QUICK), "skipped"),
    ],
    ids=["aggregated", "split"],
)
def test_healthy_fleet_passes(spec, blocks):
    with served(spec) as (router, admin):
        router.await_handover()
        code, found = diagnose(admin)
        bad = {name: one for name, one in found.items() if one["level"] == "failure"}
        assert (code, bad) == (0, {})
        for name in ("versions", "settings", "control", "feeds", "token-ids", "pin"):
            assert found[name]["level"] == "ok", found[name]
        assert found["blocks"]["level"] == blocks
        assert "128 cached tokens predicted" in found["blocks"]["text"]
        assert found["lora"]["level"] == "skipped"
        if blocks == "ok":
            # Mock engines share their cache between salts, and the canary sees it.
            assert found["salt"]["level"] == "warning"
            assert diagnose(admin, "--strict")[0] == 1
        text = CliRunner().invoke(app, ["--admin-url", admin, "--no-canaries"]).stdout
        assert "FAIL" not in text
        assert not [line for line in text.splitlines() if line.split()[1:2] == ["blocks"]]


def test_frontends_that_ignore_pins_are_found(monkeypatch):
    usual = Fleet.dynamo_environment.fget
    switched = property(lambda fleet: usual(fleet) | {"DYN_DISABLE_FRONTEND_NVEXT": "1"})
    monkeypatch.setattr(Fleet, "dynamo_environment", switched)
    with served(FleetSpec(workers=2, **QUICK)) as (_, admin):
        code, found = diagnose(admin)
        assert code == 1
        assert "ignore the header that pins" in found["settings"]["text"]
        assert "the frontend ignores nvext" in found["pin"]["text"]


def test_engines_without_prefix_caching_are_found():
    spec = FleetSpec(workers=1, mocker_arguments=("--no-enable-prefix-caching",), **QUICK)
    with served(spec) as (_, admin):
        code, found = diagnose(admin)
        assert (code, found["blocks"]["level"]) == (1, "failure")
        assert "nothing is cached after the first canary" in found["blocks"]["text"]


def test_router_without_receipts_says_what_to_do():
    with served(FleetSpec(workers=1, **QUICK), "--receipts", "0") as (_, admin):
        code, found = diagnose(admin)
        assert code == 1
        assert "start the router with --receipts" in found["canary"]["text"]


def test_no_router_is_an_exit_code_of_its_own():
    ran = CliRunner().invoke(app, ["--admin-url", f"http://127.0.0.1:{free_port()}"])
    assert ran.exit_code == 3
    assert "no admin API answers" in ran.output
