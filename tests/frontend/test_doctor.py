"""`wardrop doctor` on the native frontend: healthy workers, and workers without prefix caching."""

from __future__ import annotations

import pytest
from tests.doctor.diagnosis import diagnose
from tests.frontend.native import require_binary, running

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]

QUICK = {"speedup_ratio": 100, "process_per_worker": False}


def test_healthy_workers_pass_and_missing_prefix_caches_are_found():
    require_binary()
    with Fleet(FleetSpec(workers=2, **QUICK)) as fleet, running(fleet) as native:
        code, found = diagnose(native.url)
        assert code == 0, found
        for name in ("workers", "trust", "pin", "blocks"):
            assert found[name]["level"] == "ok", found[name]
        assert "128 cached tokens predicted" in found["blocks"]["text"]
    spec = FleetSpec(workers=1, mocker_arguments=("--no-enable-prefix-caching",), **QUICK)
    with Fleet(spec) as fleet, running(fleet) as native:
        code, found = diagnose(native.url)
        assert (code, found["blocks"]["level"]) == (1, "failure")
        assert "nothing is cached after the first canary" in found["blocks"]["text"]
