"""Each check of facts: it passes on a healthy router, and fails for the right reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from wardrop.doctor import checks
from wardrop.doctor.checks import CHECKS, run_checks
from wardrop.doctor.facts import (
    Facts,
    Feed,
    Handover,
    Health,
    Limits,
    Model,
    Part,
    Pool,
    Resources,
    Status,
    Upstream,
    Worker,
)
from wardrop.doctor.finding import Finding, as_json, as_text, exit_code
from wardrop.service.wiring import SCHEMA, DoorName, Wiring

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "doctor.md"
VERSION = "0.2.0"


def worker(instance: int) -> Worker:
    """A worker whose feed works and whose answers match the predictions."""
    return Worker(
        instance=instance,
        dp_rank=0,
        available=True,
        fault=None,
        feed_state="synced",
        trust_mode="exact",
        trust_score=1.0,
        trust_found_share=1.0,
        trust_feed_share=1.0,
        needs_resync=False,
        event_gaps=0,
        events_lost=0,
        last_event_id=4,
        event_age_s=3.0,
        heartbeat_age_s=0.5,
        audited_requests=50,
        predicted_cached_tokens=1000,
        reported_cached_tokens=990,
        cached_tokens_absolute_error=10,
    )


def feed(instance: int) -> Feed:
    return Feed(
        checks.EVENT_TOPICS[0],
        "m",
        "aggregated",
        f"tcp://w{instance}:1",
        instance,
        True,
        9,
        0,
        0,
        1.0,
    )


def healthy(door: DoorName = "dynamo") -> Facts:
    pools = [Pool("aggregated", [worker(1), worker(2)])]
    handover = Handover(1, None)
    model = Model("m", 16, 4096, [], True, True, True, handover, [], pools)
    control = {"discovery": Part(True, 0, ""), "fleet": Part(True, 0, "")}
    status = Status(
        [model],
        [feed(1), feed(2)],
        address="127.0.0.1:8000",
        upstreams=[Upstream("127.0.0.1:1", True, 0), Upstream("127.0.0.1:2", True, 0)],
        limits=Limits(8192, 4096),
        resources=Resources(20_000),
        control=control,
    )
    wiring = Wiring(SCHEMA, 0.0, VERSION, door=door)
    if door == "dynamo":
        wiring.dynamo_version, wiring.frontend_mode = "1.6.1", "kv"
        wiring.switches = {"DYN_EVENT_PLANE": "zmq"}
    health = Health("ready", 2, control) if door in ("dynamo", "serve") else None
    return Facts(status, wiring, health, VERSION, 0.0)


def first(facts: Facts) -> Worker:
    return facts.status.models[0].pools[0].workers[0]


def suspect(facts: Facts) -> None:
    first(facts).feed_state, first(facts).events_lost = "suspect", 7


def disbelieved(facts: Facts) -> None:
    one = first(facts)
    one.trust_mode, one.trust_score, one.trust_found_share = "degraded", 0.31, 0.42


def incomplete(facts: Facts) -> None:
    """The engine finds all that is listed, and as much again."""
    one = first(facts)
    one.trust_mode, one.trust_score, one.trust_found_share = "degraded", 0.48, 1.0


def over_predicted(facts: Facts) -> None:
    first(facts).reported_cached_tokens = 300


def forbidden(facts: Facts) -> None:
    facts.health.control["discovery_source"] = Part(
        False, 3, "cannot watch endpointslices.discovery.k8s.io in namespace prod (403): the role"
    )


def all_ill(facts: Facts) -> None:
    for one in facts.status.models[0].pools[0].workers:
        one.available, one.fault = False, "silent"


def one_ill(facts: Facts) -> None:
    first(facts).available, first(facts).fault = False, "refusing"


def different_ids(facts: Facts) -> None:
    facts.status.models[0].handover.difference = "shape text, sample 2: 17 ids, expected 18"


def not_compared(facts: Facts) -> None:
    facts.status.models[0].handover = None


def set_of(path: str, value: object) -> Callable[[Facts], None]:
    """Plant a value at a path such as `status.limits.connections`."""

    def plant(facts: Facts) -> None:
        *steps, name = path.split(".")
        found: object = facts
        for step in steps:
            found = found[int(step)] if step.isdigit() else getattr(found, step)
        if isinstance(found, dict):
            found[name] = value
        else:
            setattr(found, name, value)

    return plant


NVEXT = "wiring.switches.DYN_DISABLE_FRONTEND_NVEXT"
MODEL = "status.models.0"

PLANTED = [
    ("versions", "failure", set_of("wiring.dynamo_version", "1.4.1"), "got Dynamo 1.4.1"),
    ("versions", "failure", set_of("wiring.dynamo_version", "2.0.0rc1"), "below 2"),
    ("versions", "warning", set_of("wiring.wardrop_version", "0.1.9"), "Wardrop 0.1.9"),
    ("settings", "failure", set_of(NVEXT, "1"), "ignore the header that pins"),
    ("settings", "failure", set_of("wiring.switches.DYN_EVENT_PLANE", "nats"), "'nats'"),
    ("control", "failure", set_of("health", None), "does not answer GET /health"),
    ("control", "failure", forbidden, "(403): the role"),
    ("frontends", "failure", set_of("status.upstreams", []), "none is known"),
    ("frontends", "warning", set_of("status.upstreams.0.up", False), "127.0.0.1:1"),
    ("descriptors", "warning", set_of("status.limits.connections", 300), "leaves 300 connections"),
    ("clock", "warning", set_of("clock_skew_s", -7.5), "-7.5 s off"),
    ("workers", "failure", set_of(f"{MODEL}.pools", []), "no worker is known"),
    ("workers", "failure", all_ill, "2 of 2 workers are unavailable: 1/0 (silent)"),
    ("workers", "warning", one_ill, "1 of 2 workers are unavailable: 1/0 (refusing)"),
    ("feeds", "failure", set_of("status.feeds.1.connected", False), "1 of 2 workers: 2/0"),
    ("feeds", "failure", set_of("status.feeds", []), "2 of 2 workers: 1/0, 2/0"),
    ("feeds", "failure", set_of("status.feeds.0.malformed", 3), "3 messages were malformed"),
    ("feeds", "warning", set_of(f"{MODEL}.pools.0.workers.1.heartbeat_age_s", 45.0), "from 2/0"),
    ("trust", "failure", suspect, "1/0 (0 gaps, 7 lost)"),
    ("trust", "warning", incomplete, "1/0 (degraded, score 0.48, 100% of its blocks found)"),
    ("trust", "failure", disbelieved, "1/0 (degraded, score 0.31, 42% of its blocks found)"),
    ("trust", "warning", set_of(f"{MODEL}.pools.0.workers.0.events_lost", 7), "7 KV events"),
    ("prompts", "failure", set_of(f"{MODEL}.problems", ["no tokenizer.json"]), "no tokenizer.json"),
    ("prompts", "failure", set_of(f"{MODEL}.has_tokeniser", False), "no tokeniser was found"),
    ("prompts", "warning", set_of(f"{MODEL}.has_template", False), "no chat template"),
    ("token-ids", "failure", different_ids, "17 ids, expected 18"),
    ("token-ids", "skipped", not_compared, "not compared yet: m"),
    ("audit", "failure", over_predicted, "worker 1/0 reports 30 % of the predicted"),
]


EVERYWHERE = ("workers", "trust", "audit")
OF_DOOR = {
    "dynamo": {"versions", "settings", "control", "frontends", "descriptors", "clock"}
    | {"feeds", "prompts", "token-ids", *EVERYWHERE},
    "serve": {"versions", "control", "engines", "descriptors", "clock", "feeds", "prompts"}
    | {*EVERYWHERE},
    "picker": {"versions", "control", "clock", "feeds", "prompts", *EVERYWHERE},
    "select": {"versions", "control", "clock", "feeds", *EVERYWHERE},
    "frontend": set(EVERYWHERE),
}
DOORS = get_args(DoorName)


@pytest.mark.parametrize("door", DOORS)
def test_healthy_router_passes_the_checks_of_its_door(door):
    findings = run_checks(healthy(door))
    assert {finding.check for finding in findings} == OF_DOOR[door]
    assert {finding.level for finding in findings} == {"ok"}, as_text(findings)
    assert exit_code(findings, strict=True) == 0


def broken_file(facts: Facts) -> None:
    facts.status.control["file"] = Part(False, 1, "picker.yaml: workers: expected a list")


def without_feeds(facts: Facts) -> None:
    facts.status.feeds = []


OF_OTHER_DOORS = [
    (
        "serve",
        "engines",
        "failure",
        set_of("status.upstreams", []),
        "no engine accepts",
        "--worker",
    ),
    (
        "serve",
        "engines",
        "warning",
        set_of("status.upstreams.0.up", False),
        "127.0.0.1:1",
        "engine",
    ),
    ("serve", "control", "failure", set_of("health", None), "GET /health", "address"),
    ("serve", "workers", "failure", set_of("status.models.0.pools", []), "is refused", "--worker"),
    ("serve", "feeds", "skipped", without_feeds, "caches are predicted", "events="),
    ("picker", "control", "failure", broken_file, "expected a list", "mend the named part"),
    ("picker", "workers", "failure", set_of("status.models.0.pools", []), "refused", "`workers`"),
    ("picker", "feeds", "skipped", without_feeds, "caches are predicted", "`events`"),
    ("picker", "feeds", "failure", set_of("status.feeds.1.connected", False), "2/0", "`events`"),
    (
        "picker",
        "prompts",
        "failure",
        set_of("status.models.0.has_tokeniser", False),
        "load",
        "folder",
    ),
    ("select", "control", "failure", broken_file, "expected a list", "mend the named part"),
    ("select", "workers", "failure", set_of("status.models.0.pools", []), "refused", "/workers"),
    ("select", "feeds", "skipped", without_feeds, "caches are predicted", "kv_events_endpoints"),
    ("select", "clock", "warning", set_of("clock_skew_s", 9.0), "+9.0 s off", "time service"),
    ("frontend", "workers", "failure", set_of("status.models.0.pools", []), "Dynamo", "discovery"),
    ("frontend", "trust", "failure", disbelieved, "42% of its blocks found", "blocks"),
]


@pytest.mark.parametrize(
    ("door", "check", "level", "plant", "text", "advice"),
    OF_OTHER_DOORS,
    ids=[f"{p[0]}-{p[1]}-{p[4]}" for p in OF_OTHER_DOORS],
)
def test_planted_fault_of_a_door_is_found_with_its_advice(door, check, level, plant, text, advice):
    facts = healthy(door)
    plant(facts)
    named = {finding.check: finding for finding in run_checks(facts) if finding.level != "ok"}
    assert set(named) <= {check, "audit"}, named
    assert (named[check].level, text in named[check].text) == (level, True), named[check]
    assert advice in named[check].advice


@pytest.mark.parametrize(
    ("check", "level", "plant", "text"), PLANTED, ids=[f"{p[0]}-{p[3]}" for p in PLANTED]
)
def test_planted_fault_is_found_by_its_check_alone(check, level, plant, text):
    facts = healthy()
    plant(facts)
    bad = [finding for finding in run_checks(facts) if finding.level != "ok"]
    # Without a worker there is no audit either; each other fault is found once.
    named = {finding.check: finding for finding in bad}
    assert check in named, bad
    assert set(named) <= {check, "audit"}, bad
    assert named[check].level == level
    assert text in named[check].text
    assert named[check].advice


def test_every_check_has_a_planted_fault():
    planted = {name for name, *_ in PLANTED} | {name for _, name, *_ in OF_OTHER_DOORS}
    assert planted == set().union(*OF_DOOR.values())
    assert len(planted) == len(CHECKS)


def test_decode_workers_need_no_feed():
    facts = healthy()
    facts.status.models[0].pools.append(Pool("decode", [worker(3)]))
    assert {finding.level for finding in run_checks(facts)} == {"ok"}


def test_too_few_audited_requests_are_no_verdict():
    facts = healthy()
    for one in facts.status.models[0].pools[0].workers:
        one.audited_requests, one.reported_cached_tokens = 19, 0
    audit = next(finding for finding in run_checks(facts) if finding.check == "audit")
    assert audit.level == "skipped"


@pytest.mark.parametrize(
    ("level", "strict", "code"),
    [("failure", False, 1), ("warning", False, 0), ("warning", True, 1), ("skipped", True, 0)],
)
def test_exit_code(level, strict, code):
    findings = [Finding("a", "ok", "fine"), Finding("b", level, "text", "do this")]
    assert exit_code(findings, strict) == code
    run = json.loads(as_json(findings, strict))
    assert (run["schema"], run["passed"]) == ("wardrop.doctor.v1", code == 0)
    assert run["findings"][1] == msgspec.structs.asdict(findings[1])
    assert "→ do this" in as_text(findings)


def test_page_explains_every_check():
    explained = set(re.findall(r"^\| `([a-z][\w-]+)` \|", PAGE.read_text(), re.MULTILINE))
    canaries = {"canary", "pin", "blocks", "salt", "lora", "tokens"}
    assert explained == set().union(*OF_DOOR.values()) | canaries
