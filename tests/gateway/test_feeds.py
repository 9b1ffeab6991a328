"""Dynamo's event plane over real ZeroMQ, with what a real fleet does only when it breaks."""

import contextlib
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
        self.sending_id: int | None = None
        """Publisher id in the messages, where it differs from the id of the subscription."""

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
                "publisher_id": self.sending_id or self.id,
                "sequence": self.sequence,
                "published_at": 0,
                "topic": self.topic,
                "payload": msgspec.msgpack.encode(payload),
            }
        )
        body = b"\x01" + struct.pack(">I", len(envelope)) + envelope
        head = [
            self.topic.encode(),
            struct.pack(">Q", self.sending_id or self.id),
            struct.pack(">Q", self.sequence),
        ]
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
        [good[0], struct.pack(">Q", 78), good[2], good[3]],
    ):
        publisher.socket.send_multipart(frames)
    wait_until(lambda: feed(running, 77)["malformed"] == 9)
    publisher.sequence += 1
    publisher.send([{"worker_id": "x"}])
    wait_until(lambda: running.metric("kv_events_total", result="unreadable") == 1)
    publisher.stored(1, 1, None, 11)
    wait_until(lambda: held(running) == 1)
    assert running.metric("feed_malformed_total") == 9
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
    assert running.workers()[1]["feed_state"] == "suspect"
    assert running.metric("workers_suspect") == 1
    assert running.gateway.load_dump("m", "aggregated", "[]") == 0, "no dump was begun"
    assert running.gateway.begin_dump("m", "aggregated") == 2
    publisher.stored(1, 6, 13, 14)
    wait_until(lambda: running.workers()[1]["last_event_id"] == 6)
    stored = {
        "parent_hash": None,
        "blocks": [{"block_hash": h, "tokens_hash": h} for h in (11, 12, 13)],
    }
    dump = [{"worker_id": 1, "event": {"event_id": 1, "data": {"stored": stored}, "dp_rank": 0}}]
    assert running.gateway.load_dump("m", "aggregated", json.dumps(dump)) == 2
    assert held(running) == 4, "the dump, and the event that came while it was read"
    worker = running.workers()[1]
    assert (worker["needs_resync"], worker["synced"]) == (False, True)
    publisher.event(1, 7, {"removed": {"block_hashes": [12]}})
    wait_until(lambda: held(running) == 3)
    assert running.gateway.begin_dump("m", "aggregated") == 0
    assert running.gateway.load_dump("m", "aggregated", "[]") == 0, "synced workers keep live state"


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


def test_gap_while_a_dump_is_read_leaves_the_worker_suspect(kv):
    running, publisher = kv
    publisher.stored(1, 5, None, 11)
    wait_until(lambda: running.workers()[1]["needs_resync"])
    running.gateway.begin_dump("m", "aggregated")
    publisher.stored(1, 9, None, 12)
    wait_until(lambda: running.workers()[1]["event_gaps"] == 1)
    assert running.gateway.load_dump("m", "aggregated", "[]") == 1, "only worker 2 is healed"
    worker = running.workers()[1]
    assert (worker["feed_state"], worker["needs_resync"]) == ("suspect", True)


def test_restart_under_the_same_id_starts_empty_with_any_sequence(kv, publish):
    running, publisher = kv
    publisher.stored(1, 1, None, 11, 12)
    wait_until(lambda: held(running) == 2)
    for life, event_id in enumerate((1, 2, 7), start=1):
        successor = publish(77 + life, KV)
        successor.follow(running.gateway)
        successor.await_subscription()
        successor.stored(1, event_id, None, 100 + life)
        wait_until(lambda life=life: running.workers()[1]["incarnations"] == life)
        wait_until(lambda: held(running) == 1)
        assert running.workers()[1]["synced"] is (event_id == 1)
    publisher.stored(1, 2, None, 13)
    wait_until(lambda: running.workers()[1]["events_superseded"] == 1)
    assert held(running) == 1, "the former incarnation can no longer write"
    assert running.workers()[1]["feed_state"] == "suspect"


def test_message_that_arrives_twice_counts_once_and_a_lost_message_makes_blocks_suspect(kv):
    running, publisher = kv
    publisher.stored(1, 1, None, 11)
    publisher.sequence -= 1
    publisher.stored(1, 1, None, 12)
    wait_until(lambda: feed(running, 77)["duplicates"] == 1)
    assert (held(running), running.workers()[1]["synced"]) == (1, True)
    publisher.sequence += 2
    publisher.stored(1, 2, None, 13)
    wait_until(lambda: feed(running, 77)["lost"] == 2)
    assert running.workers()[1]["feed_state"] == "suspect"


def test_feed_known_by_its_address_only_takes_events_of_its_publishers(serve, publish):
    running = serve(workers=(1,))
    publisher = publish(1 << 63, KV)
    publisher.sending_id = 4711
    publisher.follow(running.gateway, any_publisher=True)
    publisher.await_subscription()
    publisher.stored(1, 1, None, 11, 12)
    wait_until(lambda: held(running) == 2)
    assert running.workers()[1]["synced"] is True
    assert feed(running, 1 << 63)["malformed"] == 0


def test_suspect_blocks_are_forgotten_when_no_dump_comes(serve, publish):
    running = serve(workers=(1,), feed={"distrust_ms": 300})
    publisher = publish(77, KV)
    publisher.follow(running.gateway)
    publisher.await_subscription()
    publisher.stored(1, 1, None, 11, 12)
    wait_until(lambda: held(running) == 2)
    publisher.socket.close()
    wait_until(lambda: running.workers()[1]["forgotten"] == 1)
    wait_until(lambda: held(running) == 0)
    assert running.workers()[1]["feed_state"] == "partial"


class SilentRelay:
    """Relays one TCP connection, and on demand swallows all bytes without closing it."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        self.target = (host, int(port))
        self.is_cut = threading.Event()
        self.swallowed = 0
        self.sockets: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(near)
            if self.is_cut.is_set():
                continue  # accepted, and never answered
            far = socket.create_connection(self.target)
            self.sockets.append(far)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.is_cut.is_set():
                    self.swallowed += len(data)
                else:
                    sink.sendall(data)

    def close(self) -> None:
        """Close every socket: one that nobody closes fails a later test."""
        self.listener.close()
        for each in self.sockets:
            each.close()


def test_half_open_feed_is_noticed_and_its_blocks_lose_trust(serve, publish):
    running = serve(workers=(1,), feed={"deadline_ms": 600})
    publisher = publish(77, KV)
    relay = SilentRelay(publisher.endpoint)
    publisher.endpoint = relay.endpoint
    publisher.follow(running.gateway)
    publisher.await_subscription()
    publisher.stored(1, 1, None, 11)
    wait_until(lambda: held(running) == 1)
    relay.is_cut.set()
    wait_until(lambda: feed(running, 77)["connected"] is False)
    assert relay.swallowed > 0, "a PING went into the void"
    assert running.workers()[1]["feed_state"] == "suspect"
    assert running.metric("feed_reconnects_total", reason="silent") == 1
    assert feed(running, 77)["lost_for_s"] is not None
    relay.close()


def test_idle_feed_stays_connected_because_its_publisher_answers_pings(serve, publish):
    running = serve(workers=(1,), feed={"deadline_ms": 300})
    publisher = publish(77, KV)
    publisher.follow(running.gateway)
    publisher.await_subscription()
    publisher.stored(1, 1, None, 11)
    wait_until(lambda: (feed(running, 77)["age_s"] or 0) > 1.5)
    assert feed(running, 77)["reconnects"] == 0
    assert running.workers()[1]["synced"] is True


def test_changed_sizes_keep_blocks_and_unusable_sizes_are_unknown(kv):
    running, publisher = kv
    publisher.stored(1, 1, None, 11, 12)
    wait_until(lambda: held(running) == 2)
    worker = {"model": "m", "role": "aggregated", "instance": 1}
    for sizes in (
        {"total_kv_blocks": 512},
        {"total_kv_blocks": 0, "max_num_seqs": 0, "max_num_batched_tokens": 0},
        {"total_kv_blocks": 2**63, "max_num_seqs": 2**40, "max_num_batched_tokens": 2**40},
    ):
        running.gateway.upsert_worker(json.dumps(worker | sizes))
        assert running.workers()[1]["synced"] is True
        assert held(running) == 2
        assert running.complete([1, 2, 3, 4])[0] == 200


def test_invented_ranks_are_bounded_and_change_nothing(kv):
    running, publisher = kv
    publisher.stored(1, 1, None, 11)
    wait_until(lambda: held(running) == 1)
    worker = {"model": "m", "role": "aggregated", "instance": 1, "dp_size": 20_000}
    with pytest.raises(ValueError, match="dp_size must be 1 to 1024, got 20000"):
        running.gateway.upsert_worker(json.dumps(worker))
    assert held(running) == 1, "a refused change changes nothing"
    events = [
        {"worker_id": 1, "event": {"event_id": 1, "dp_rank": rank, "data": "cleared"}}
        for rank in range(1, 20_001)
    ]
    publisher.send(events)
    wait_until(lambda: running.metric("kv_events_total", result="foreign") == 20_000)
    assert len(running.workers()) == 2
