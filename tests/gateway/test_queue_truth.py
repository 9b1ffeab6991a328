"""What the queue knows of a worker: its fresh report, else the router's own count."""

from tests.gateway.held import background, waits
from tests.gateway.test_feeds import FPM, publish  # noqa: F401
from tests.waiting import wait_until


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
    publisher.await_subscription()
    answers: list = []
    threads = background(running, 1, answers)
    wait_until(lambda: len(upstream.seen) == 1)
    # The router's own count says that a prompt is in flight. The engine reports that nothing waits
    # in it. A report covers only requests sent at least 0.1 s earlier, so the engine repeats it.
    threads += background(running, 1, answers)

    def report_until_placed() -> bool:
        publisher.heartbeat(1)
        return len(upstream.seen) == 2

    wait_until(report_until_placed)
    # A report older than a second is stale: the router's own count holds, two prompts in flight.
    wait_until(lambda: running.workers()[1]["heartbeat_age_s"] > 1.1)
    threads += background(running, 1, answers)
    waits(running, 1)
    assert len(upstream.seen) == 2, "a request that finds room never enters the queue's count"
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 3


def test_worker_that_tells_nothing_and_whose_ends_are_lost_has_no_queue(upstream, serve, engines):
    routing = {"policy": {"name": "toll"}, "queue": {"backlog_s": 1e-9}, "booking_ttl_s": 1.0}
    running = serve(workers=(1,), routing=routing)
    answers: list = []
    threads = background(running, 4, answers)
    # Three bookings in a row end by their age; each frees the worker for the next one.
    wait_until(lambda: running.metric("bookings_expired_total") >= 3)
    wait_until(lambda: len(upstream.seen) == 4)
    threads += background(running, 3, answers)
    wait_until(lambda: len(upstream.seen) == 7)
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 7
    waits_ms = sorted(int(headers["x-wardrop-queue-ms"]) for _, headers, _ in answers)
    # The first request and the last three found room; the three between waited for an expiry.
    assert waits_ms[:4] == [0] * 4, "nothing is held back for this worker any more"
    assert waits_ms[4] > 0
    # An end was seen: the own count is believed again.
    threads = background(running, 2, answers)
    waits(running, 1)
    engines.finish(threads)
