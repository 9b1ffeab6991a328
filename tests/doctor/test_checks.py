"""Each check of facts: it passes on a healthy router, and fails for the right reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

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
from wardrop.service.wiring import SCHEMA, Wiring

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
        checks.EVENT_TOPIC, "m", "aggregated", f"tcp://w{instance}:1", instance, True, 9, 0, 0, 1.0
    )


def healthy() -> Facts:
    pools = [Pool("aggregated", [worker(1), worker(2)])]
    handover = Handover(1, None)
    model = Model("m", 16, 4096, [], True, True, True, handover, [], pools)
    status = Status(
        "127.0.0.1:8000",
        False,
        True,
        Limits(8192, 4096),
        Resources(20_000),
        [Upstream("127.0.0.1:1", True, 0), Upstream("127.0.0.1:2", True, 0)],
        [model],
        [feed(1), feed(2)],
    )
    wiring = Wiring(SCHEMA, 0.0, VERSION, "1.6.1", "kv", "file", {"DYN_EVENT_PLANE": "zmq"}, 1000)
    control = {"discovery": Part(True, 0, ""), "fleet": Part(True, 0, "")}
    return Facts(status, wiring, Health("ready", 2, control), VERSION, 0.0)


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


def test_healthy_router_passes_every_check():
    findings = run_checks(healthy())
    assert [finding.level for finding in findings] == ["ok"] * len(CHECKS), as_text(findings)
    assert exit_code(findings, strict=True) == 0


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
    assert {name for name, *_ in PLANTED} == {finding.check for finding in run_checks(healthy())}


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
    canaries = {"canary", "pin", "blocks", "salt", "lora"}
    of_facts = {finding.check for finding in run_checks(healthy())}
    assert explained == of_facts | canaries
