"""Predicted caches through Python; the rules are tested in `rust/core/tests/predicted.rs`."""

import pytest

import wardrop

PROMPT = list(range(160))


def fleet(**options: object) -> wardrop.Router:
    router = wardrop.Router(16, "dynamo", **options)  # type: ignore[arg-type]
    for worker in range(8):
        router.add_worker(worker)
    return router


def test_without_a_prediction_only_events_count() -> None:
    router = fleet()
    router.route(PROMPT, request_id=1)
    assert router.find_matches(PROMPT) == {}


def test_a_routed_prompt_is_predicted_until_its_time_is_over() -> None:
    router = fleet(predicted="alone", predicted_ttl_s=10.0)
    worker = router.route(PROMPT, request_id=1, now_s=0.0).worker
    assert router.find_matches(PROMPT) == {worker: (10, 0, 0)}
    router.release(1, now_s=5.0)
    router.expire(now_s=14.0)
    assert router.route(PROMPT, now_s=14.0).worker == worker
    router.expire(now_s=15.0)
    assert router.find_matches(PROMPT) == {}
    counts = router.snapshot()["predicted"]
    assert (counts["inserted"], counts["expired"], counts["records"]) == (1, 1, 0)


def test_beside_events_it_ends_soon_after_the_first_token() -> None:
    router = fleet(predicted="beside", predicted_settle_s=0.5)
    router.route(PROMPT, request_id=1, now_s=0.0)
    router.prefill_done(1, now_s=3.0)
    router.expire(now_s=3.4)
    assert router.find_matches(PROMPT)
    router.expire(now_s=3.6)
    assert router.find_matches(PROMPT) == {}


def test_a_decision_without_an_id_leaves_no_prediction() -> None:
    router = fleet(predicted="alone")
    router.route(PROMPT)
    assert router.find_matches(PROMPT) == {}


def test_a_wrong_option_says_what_is_expected() -> None:
    with pytest.raises(ValueError, match="off, alone or beside"):
        fleet(predicted="on")
    with pytest.raises(ValueError, match="predicted_ttl_s"):
        fleet(predicted="alone", predicted_ttl_s=0.0)
