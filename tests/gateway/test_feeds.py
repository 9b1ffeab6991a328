"""Dynamo's event plane over real ZeroMQ, with what a real fleet does only when it breaks."""

import json
import socket
import struct
import threading

import pytest
from tests.waiting import DEADLINE_S, wait_until

from wardrop._core import Gateway

zmq = pytest.importorskip("zmq")
msgspec = pytest.importorskip("msgspec")

KV = "kv-events"
FPM = "forward-pass-metrics"


class Publisher:
    """An XPUB socket that speaks Dynamo's envelope and sees its subscribers come.

    ZeroMQ drops messages without a subscriber, and a subscription travels after the
    connection stands. XPUB hands the subscription to the test as a message of its own.
    """

    def __init__(self, publisher_id: int, topic: str) -> None:
        self.socket = self.new_socket()
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.id, self.topic, self.sequence = publisher_id, topic, 0

    @staticmethod
    def new_socket() -> zmq.Socket:
        socket = zmq.Context.instance().socket(zmq.XPUB)
        socket.linger = 0
        socket.xpub_verbose = True
        return socket

    def await_subscription(self) -> None:
        """Wait for a gateway's subscription; messages sent from then on reach the gateway."""
        while True:
            assert self.socket.poll(1000 * DEADLINE_S), "no subscription came"
            if self.socket.recv().startswith(b"\x01"):
                return

    def frames(self, payload: object) -> list[bytes]:
        envelope = msgspec.msgpack.encode(
            {
                "publisher_id": self.id,
                "sequence": self.sequence,
                "published_at": 0,
                "topic": self.topic,
                "payload": msgspec.msgpack.encode(payload),
            }
        )
        body = b"\x01" + struct.pack(">I", len(envelope)) + envelope
        head = [self.topic.encode(), struct.pack(">Q", self.id), struct.pack(">Q", self.sequence)]
        return [*head, body]

    def send(self, payload: object) -> None:
        self.socket.send_multipart(self.frames(payload))
        self.sequence += 1

    def stored(self, worker: int, event_id: int, parent: int | None, *hashes: int) -> None:
        blocks = [{"block_hash": h, "tokens_hash": h, "mm_extra_info": None} for h in hashes]
        self.event(worker, event_id, {"stored": {"parent_hash": parent, "blocks": blocks}})

    def event(self, worker: int, event_id: int, data: object) -> None:
        event = {"event_id": event_id, "data": data, "dp_rank": 0}
        self.send([{"worker_id": worker, "storage_tier": "device", "event": event}])

    def heartbeat(self, worker: int) -> None:
        idle = {"num_prefill_requests": 0, "sum_prefill_tokens": 0, "num_decode_requests": 0}
        self.send(
            {
                "version": 1,
                "worker_id": str(worker),
                "dp_rank": 0,
                "wall_time": 0.0,
                "scheduled_requests": idle,
                "queued_requests": idle,
            }
        )

    def follow(self, gateway: Gateway, **fields: object) -> None:
        subscription = {
            "endpoint": self.endpoint,
            "topic": self.topic,
            "model": "m",
            "role": "aggregated",
            "publisher_id": self.id,
            **fields,
        }
        gateway.subscribe(json.dumps(subscription))


def feed(running, publisher_id):
    return next(f for f in running.status()["feeds"] if f["publisher_id"] == publisher_id)


@pytest.fixture
def publish():
    """Make publishers; all are closed at the end."""
    made = []

    def make(publisher_id, topic):
        made.append(Publisher(publisher_id, topic))
        return made[-1]

    yield make
    for publisher in made:
        publisher.socket.close()


@pytest.fixture
def kv(serve, publish):
    """A running gateway with worker 1 that follows a publisher of KV events."""
    running = serve(workers=(1, 2))
    publisher = publish(77, KV)
    publisher.follow(running.gateway)
    publisher.await_subscription()
    return running, publisher


def listens(endpoint: str) -> bool:
    """Whether a process accepts connections at a `tcp://` endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def held(running, worker=1):
    return running.workers()[worker]["held_blocks"][0]


def test_stored_and_removed_blocks_reach_the_index(kv):
    running, publisher = kv
    publisher.stored(1, 1, None, 11, 12)
    publisher.stored(1, 2, 12, 13)
    wait_until(lambda: held(running) == 3)
    publisher.event(1, 3, {"removed": {"block_hashes": [13]}})
    wait_until(lambda: held(running) == 2)
    publisher.event(1, 4, "cleared")
    wait_until(lambda: held(running) == 0)
    worker = running.workers()[1]
    assert worker["synced"] is True
    assert worker["event_gaps"] == 0


def test_malformed_messages_are_counted_and_the_feed_lives_on(kv):
    running, publisher = kv
    good = publisher.frames([])
    for frames in (
        good[:3],
        [*good, b"extra"],
        [good[0], b"short", good[2], good[3]],
        [*good[:3], b""],
        [*good[:3], b"\x02" + good[3][1:]],
        [*good[:3], good[3][:-1]],
        [*good[:3], b"\x01\x00\x00\x00\x02\xff\xff"],
        publisher.frames({"not": "a list"}),
        publisher.frames([{"worker_id": "x"}]),
        [good[0], struct.pack(">Q", 78), good[2], good[3]],
    ):
        publisher.socket.send_multipart(frames)
    wait_until(lambda: feed(running, 77)["malformed"] == 10)
    publisher.stored(1, 1, None, 11)
    wait_until(lambda: held(running) == 1)
    assert running.metric("feed_malformed_total") == 10
    assert feed(running, 77)["reconnects"] == 0


def test_oversized_frame_is_refused_and_the_feed_comes_back(serve, publish):
    running = serve(workers=(1,), feed={"frame_bytes": 10_000})
    publisher = publish(5, KV)
    publisher.follow(running.gateway)
    publisher.await_subscription()
    publisher.socket.send_multipart([b"", b"", b"", b"x" * 20_000])
    wait_until(lambda: feed(running, 5)["reconnects"] == 1)
    publisher.await_subscription()
    publisher.stored(1, 1, None, 11)
    wait_until(lambda: held(running) == 1)
    assert running.metric("feed_malformed_total", reason="too_large") == 1


def test_hole_in_event_ids_asks_for_a_dump_and_the_dump_counts_each_block_once(kv):
    running, publisher = kv
    publisher.stored(1, 1, None, 11)
    publisher.stored(1, 5, 11, 12, 13)
    wait_until(lambda: running.workers()[1]["needs_resync"])
    assert running.workers()[1]["events_lost"] == 3
    stored = {
        "parent_hash": None,
        "blocks": [{"block_hash": h, "tokens_hash": h} for h in (11, 12)],
    }
    dump = [{"worker_id": 1, "event": {"event_id": 1, "data": {"stored": stored}, "dp_rank": 0}}]
    assert running.gateway.load_dump("m", "aggregated", json.dumps(dump)) == 2
    assert held(running) == 3
    worker = running.workers()[1]
    assert (worker["needs_resync"], worker["synced"]) == (False, True)
    publisher.event(1, 6, {"removed": {"block_hashes": [12]}})
    wait_until(lambda: held(running) == 2)
    assert running.gateway.load_dump("m", "aggregated", "[]") == 0, "synced workers keep live state"
    assert held(running) == 2


def test_event_id_that_falls_back_is_a_new_incarnation_that_starts_empty(kv):
    running, publisher = kv
    publisher.stored(1, 1, None, 11, 12)
    publisher.stored(1, 2, None, 21)
    wait_until(lambda: held(running) == 3)
    publisher.stored(1, 1, None, 31)
    wait_until(lambda: running.workers()[1]["incarnations"] == 1)
    assert held(running) == 1


def test_feed_may_only_touch_its_own_worker(serve, publish):
    running = serve(workers=(1, 2))
    publisher = publish(9, KV)
    publisher.follow(running.gateway, instance=1)
    publisher.await_subscription()
    publisher.stored(2, 1, None, 11)
    publisher.stored(1, 1, None, 11)
    wait_until(lambda: held(running, 1) == 1)
    assert held(running, 2) == 0
    assert running.metric("kv_events_total", result="foreign") == 1


def test_worker_whose_heartbeats_stop_is_not_chosen_until_they_return(upstream, serve, publish):
    running = serve(workers=(1,), feed={"silence_ms": 500})
    publisher = publish(6, FPM)
    publisher.follow(running.gateway)
    publisher.await_subscription()
    publisher.heartbeat(1)
    wait_until(lambda: running.workers()[1]["heartbeat_age_s"] is not None)
    wait_until(lambda: running.workers()[1]["fault"] == "silent")
    assert running.request("GET", "/ready")[0] == 503
    assert running.complete([1, 2, 3, 4])[0] == 200, "the index can never fail a request"
    assert upstream.seen[-1].header("x-dynamo-worker-instance-id") is None
    publisher.heartbeat(1)
    wait_until(lambda: running.workers()[1]["available"])


def test_request_on_a_silent_worker_moves_before_its_first_byte(upstream, serve, publish):
    pins = []
    answered = threading.Event()

    def script(seen, conn):
        pins.append(seen.header("x-dynamo-worker-instance-id"))
        if len(pins) == 1:
            answered.wait(DEADLINE_S)
        return b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

    upstream.script = script
    running = serve(workers=(1,), feed={"silence_ms": 500})
    publisher = publish(6, FPM)
    publisher.follow(running.gateway)
    publisher.await_subscription()
    publisher.heartbeat(1)
    wait_until(lambda: running.workers()[1]["heartbeat_age_s"] is not None)
    running.gateway.upsert_worker('{"model": "m", "role": "prefill", "instance": 2}')
    assert running.complete([1, 2, 3, 4])[0] == 200, "while the silent worker still says nothing"
    answered.set()
    assert pins == ["1", None]
    assert running.metric("retries_total", reason="worker_silent") == 1


def test_feed_of_a_dead_process_takes_its_worker_out_at_once(serve, publish):
    running = serve(workers=(1,))
    publisher = publish(6, FPM)
    publisher.follow(running.gateway)
    publisher.await_subscription()
    publisher.heartbeat(1)
    wait_until(lambda: running.workers()[1]["heartbeat_age_s"] is not None)
    publisher.socket.close()
    wait_until(lambda: running.workers()[1]["fault"] == "failed")


def test_publisher_that_is_not_there_yet_is_found_when_it_comes(serve, publish):
    running = serve(workers=(1,))
    publisher = publish(8, KV)
    endpoint = publisher.endpoint
    publisher.socket.close()
    wait_until(lambda: not listens(endpoint))
    publisher.follow(running.gateway)
    wait_until(lambda: feed(running, 8)["connected"] is False)
    publisher.socket = publisher.new_socket()

    def is_bound():
        try:
            publisher.socket.bind(endpoint)
        except zmq.ZMQError:
            return False  # the closed socket lets go of its port a moment later
        return True

    wait_until(is_bound)
    publisher.await_subscription()
    publisher.stored(1, 1, None, 11)
    wait_until(lambda: held(running) == 1)
    assert running.gateway.unsubscribe(8) is True
    assert running.gateway.unsubscribe(8) is False
