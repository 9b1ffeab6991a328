"""What the queue believes of a worker: its fresh word, else the router's own count."""

import time

from tests.gateway.held import background, wait_for, waits
from tests.gateway.test_feeds import FPM, feed, publish, until  # noqa: F401


def test_fresh_word_of_an_empty_engine_makes_room_and_a_stale_one_does_not(
    upstream,
    serve,
    engines,
    publish,  # noqa: F811
):
    routing = {"policy": {"name": "toll"}, "queue": {"backlog_s": 1e-9}}
    running = serve(workers=(1,), routing=routing, feed={"silence_ms": 60_000})
    publisher = publish(6, FPM)
    publisher.follow(running.gateway)
    until(lambda: feed(running, 6)["connected"])
    time.sleep(0.1)
    answers: list = []
    threads = background(running, 1, answers)
    wait_for(lambda: len(upstream.seen) == 1)
    time.sleep(0.3)  # what was sent less than 0.1 s before a report may not be in it
    publisher.heartbeat(1)
    until(lambda: running.workers()[1]["heartbeat_age_s"] is not None)
    # By the own count a prompt is in flight; the engine says that nothing waits in it.
    threads += background(running, 1, answers)
    wait_for(lambda: len(upstream.seen) == 2)
    # A second without a word: the own count, by which two prompts are in flight.
    time.sleep(1.2)
    threads += background(running, 1, answers)
    waits(running, 1)
    time.sleep(0.3)
    assert len(upstream.seen) == 2
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 3


def test_worker_that_tells_nothing_and_whose_ends_are_lost_has_no_queue(upstream, serve, engines):
    routing = {"policy": {"name": "toll"}, "queue": {"backlog_s": 1e-9}, "booking_ttl_s": 1.0}
    running = serve(workers=(1,), routing=routing)
    answers: list = []
    threads = background(running, 4, answers)
    # Three bookings in a row end by their age; each frees the worker for the next one.
    wait_for(lambda: running.metric("bookings_expired_total") >= 3)
    wait_for(lambda: len(upstream.seen) == 4)
    started_s = time.monotonic()
    threads += background(running, 3, answers)
    wait_for(lambda: len(upstream.seen) == 7)
    assert time.monotonic() - started_s < 1.0, "nothing is held back for it any more"
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 7
    # An end was seen: the own count is believed again.
    threads = background(running, 2, answers)
    waits(running, 1)
    engines.finish(threads)
