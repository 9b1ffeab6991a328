"""The plan is a function of the seed and holds every kind of fault."""

from __future__ import annotations

from itertools import islice

from tests.chaos.faults import Faults
from tests.chaos.plan import KINDS, lane_plan


def test_same_seed_same_plan():
    first, again = (list(islice(lane_plan(7, "wire"), 200)) for _ in range(2))
    assert first == again
    assert first != list(islice(lane_plan(8, "wire"), 200))


def test_each_kind_comes_before_any_comes_twice():
    for lane in ("process", "wire"):
        of_lane = [kind for kind in KINDS if kind.lane == lane]
        begin = [planned.kind for planned in islice(lane_plan(1, lane), len(of_lane))]
        assert sorted(k.name for k in begin) == sorted(k.name for k in of_lane)


def test_kinds_can_be_left_out():
    names = {p.kind.name for p in islice(lane_plan(1, "wire", frozenset({"cut_feed"})), 300)}
    assert "cut_feed" not in names
    assert "half_open_feed" in names


def test_each_kind_has_an_injector():
    assert [kind.name for kind in KINDS if not hasattr(Faults, f"_{kind.name}")] == []
