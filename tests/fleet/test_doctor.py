"""`wardrop doctor` on `wardrop serve`: a healthy fleet, and faults of engines that it finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.doctor.diagnosis import diagnose
from tests.fleet.conftest import Router
from tests.fleet.engine import BLOCK_TOKENS
from tests.fleet.test_trust import FOUND_WITHIN, other_tokeniser, prompt
from tests.waiting import wait_until

from wardrop.config import Config, Control, Predicted
from wardrop.terminal.live_reader import snapshots

KEEPING = Config(control=Control(receipts=100))


def admin(router: Router) -> str:
    """Address of the admin API."""
    assert router.server.admin is not None
    return f"http://127.0.0.1:{router.server.admin.port}"


def half_blocks(event: dict[str, Any]) -> dict[str, Any]:
    """Blocks of 8 tokens, of which every second one is named."""
    if event["type"] != "BlockStored":
        return event
    ids = event["token_ids"]
    blocks = [ids[at : at + 8] for at in range(0, len(ids), BLOCK_TOKENS)]
    return event | {"block_size": 8, "token_ids": [token for block in blocks for token in block]}


def test_healthy_engines_pass(route, engines):
    router = route(engines(), engines(), config=KEEPING)
    code, found = diagnose(admin(router))
    # No tokeniser is named, which the check of prompts reports.
    failures = {name for name, one in found.items() if one["level"] == "failure"}
    assert (code, failures) == (1, {"prompts"}), found
    for name in ("versions", "control", "engines", "workers", "feeds", "trust", "blocks", "salt"):
        assert found[name]["level"] == "ok", found[name]
    assert "128 cached tokens predicted, 128 reported" in found["blocks"]["text"]
    assert not {"pin", "settings", "frontends", "token-ids"} & set(found)
    assert found["tokens"]["level"] == "skipped"


def test_events_of_another_block_size_are_found(route, engines):
    engine = engines()
    engine.lie = half_blocks
    code, found = diagnose(admin(route(engine, config=KEEPING)))
    assert (code, found["blocks"]["level"]) == (1, "failure")
    assert "0 cached tokens predicted, 128 reported" in found["blocks"]["text"]
    assert "block size" in found["blocks"]["advice"]


def test_engines_without_events_are_predicted_and_the_doctor_says_so(route, engines):
    config = replace(KEEPING, predicted=Predicted(used="alone"))
    _, found = diagnose(admin(route(engines(events=False), config=config)))
    assert found["feeds"]["level"] == "skipped"
    assert "events=" in found["feeds"]["advice"]
    assert found["blocks"]["level"] == "ok", found["blocks"]


def test_an_engine_that_ended_is_found(route, engines):
    first, second = engines(), engines()
    router = route(first, second, config=KEEPING)
    first.close()
    try:

        def is_found() -> bool:
            _, found = diagnose(admin(router), "--no-canaries")
            return found["workers"]["level"] == "warning" and "1 of 2" in found["workers"]["text"]

        wait_until(is_found, "the doctor to see the engine that ended")
    finally:
        first.start_again()


def test_an_index_that_misleads_is_named_by_page_doctor_and_receipt(route, engines):
    engine = engines()
    engine.lie = other_tokeniser
    router = route(engine, config=KEEPING)
    for number in range(FOUND_WITHIN):
        answer = router.complete(prompt(number))
        wait_until(
            lambda served=number + 1: router.worker(engine)["audited_requests"] >= served,
            "the comparison of the answer",
        )
    with snapshots(admin(router)) as arriving:

        def is_on_the_page() -> bool:
            problems = [each for model in next(arriving).models for each in model.problems]
            return any("index that differs from the engine" in each.text for each in problems)

        wait_until(is_on_the_page, "the problem on the page")
    _, found = diagnose(admin(router), "--no-canaries")
    assert found["trust"]["level"] == "warning"
    assert "the index is not believed as it is about" in found["trust"]["text"]
    outcome = router.receipt(answer)["outcome"]
    assert (outcome["predicted_cached_tokens"], outcome["cached_tokens"]) == (0, 8 * BLOCK_TOKENS)


def test_router_without_receipts_says_what_to_do(route, engines):
    router = route(engines(), config=Config(control=Control(receipts=0)))
    code, found = diagnose(admin(router))
    assert code == 1
    assert "start the router with --receipts" in found["canary"]["text"]
