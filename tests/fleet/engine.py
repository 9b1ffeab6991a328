"""A scripted engine: OpenAI server, prefix cache, KV events with replay, and metrics.

It speaks as vLLM does: events as msgpack maps, numbered from 0 at each start, a replay socket that
keeps the last batches, `usage.prompt_tokens_details.cached_tokens`, and `vllm:` metrics. What a
real engine does only when something breaks is a call here.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import zmq
from tests.waiting import DEADLINE_S

BLOCK_TOKENS = 16
END = b"\xff" * 8


class Events:
    """The sockets of one start of an engine: PUB on one port, ROUTER for replays on another."""

    def __init__(
        self,
        events_port: int = 0,
        replay_port: int = 0,
        buffer: int = 1000,
        patience_s: float = DEADLINE_S,
    ) -> None:
        context = zmq.Context.instance()
        self.live = context.socket(zmq.XPUB)
        self.replays = context.socket(zmq.ROUTER)
        for each in (self.live, self.replays):
            each.linger = 0
        self.live.xpub_verbose = True
        try:
            self.events_port = _bind(self.live, events_port, patience_s)
            self.replay_port = _bind(self.replays, replay_port, patience_s)
        except AssertionError:
            # A socket that nobody closes fails whichever test runs when Python collects it.
            self.live.close()
            self.replays.close()
            raise
        self.sequence = 0
        self.buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer)
        self.subscribed = threading.Event()
        self.lock = threading.Lock()
        self.replay_drops: set[int] = set()
        """Numbers that the next replay leaves out, as a full queue of the socket does."""
        self.replay_starts: list[int] = []
        self.has_replay = True
        self.to_lose = 0
        """Live messages that are lost on their way."""
        self._stop = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def publish(self, events: Sequence[dict[str, Any]], rank: int | None = None) -> None:
        payload = msgspec.msgpack.encode([time.time(), list(events), rank])
        with self.lock:
            number, self.sequence = self.sequence, self.sequence + 1
            self.buffer.append((number, payload))
            if self.to_lose:
                self.to_lose -= 1
                return
            self.live.send_multipart([b"", struct.pack(">Q", number), payload])

    def publish_raw(self, payload: bytes) -> None:
        with self.lock:
            number, self.sequence = self.sequence, self.sequence + 1
            self.buffer.append((number, payload))
            self.live.send_multipart([b"", struct.pack(">Q", number), payload])

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        with self.lock:
            self.live.close()
            self.replays.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self.live, zmq.POLLIN)
        poller.register(self.replays, zmq.POLLIN)
        while not self._stop:
            ready = dict(poller.poll(10))
            with self.lock:
                if self.live in ready and self.live.recv().startswith(b"\x01"):
                    self.subscribed.set()
                if self.replays in ready and self.has_replay:
                    self._replay(*self.replays.recv_multipart())

    def _replay(self, client: bytes, empty: bytes, start: bytes) -> None:
        first = struct.unpack(">Q", start)[0]
        self.replay_starts.append(first)
        dropped, self.replay_drops = self.replay_drops, set()
        for number, payload in self.buffer:
            if number >= first and number not in dropped:
                self.replays.send_multipart([client, empty, struct.pack(">Q", number), payload])
        self.replays.send_multipart([client, empty, END, b""])


def _bind(socket: zmq.Socket, port: int, patience_s: float) -> int:
    if port == 0:
        return socket.bind_to_random_port("tcp://127.0.0.1")
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
        except zmq.ZMQError:
            assert time.monotonic() < deadline_s, f"port {port} stays taken"
            time.sleep(0.01)
        else:
            return port


class Bootstrap:
    """Where the legs of SGLang meet: a decode leg waits for the prefill leg of its room."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rooms: dict[int, threading.Event] = {}

    def room(self, number: int) -> threading.Event:
        """Set once the prefill leg of this room has computed the prompt."""
        with self._lock:
            return self._rooms.setdefault(number, threading.Event())


class Engine:
    """An engine with one model, `m`, and a cache of `capacity_blocks` blocks.

    With a `role` of prefill or decode, the engine is one half of a pair with the given connector.
    """

    def __init__(
        self,
        *,
        events: bool = True,
        model: str = "m",
        capacity_blocks: int = 1000,
        loras: Sequence[str] = (),
        prefill_s_per_token: float = 0.0,
        token_s: float = 0.0,
        role: str = "aggregated",
        connector: str = "vllm",
        bootstrap: Bootstrap | None = None,
        ranks: int = 1,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.tls, self.host = tls, host
        self.model, self.loras = model, list(loras)
        self.role, self.connector, self.ranks = role, connector, ranks
        self.bootstrap = bootstrap or Bootstrap()
        self.keeps_blocks = True
        """Whether a prefill of vLLM's connector says where its blocks are."""
        self.aborted = 0
        """Completions whose caller closed the connection while they waited."""
        self.capacity_blocks = capacity_blocks
        self.prefill_s_per_token = prefill_s_per_token
        self.token_s = token_s
        """Time between two tokens of a stream; without one a stream is a single event."""
        self.cache: OrderedDict[int, int] = OrderedDict()
        """Blocks by hash, oldest first, with the hash of the block before."""
        self.served: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        """Status of every completion."""
        self.breaks = False
        """Closes the connection of every completion before the first byte."""
        self.lie: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None
        """Changes each event before it is sent; `None` in place of an event drops it."""
        self.waiting = 0
        self.running = 0
        self.started_s = time.time()
        self.gate = threading.Event()
        self.awake = threading.Event()
        """Clear, the engine answers no probe, as a stopped process does."""
        self.awake.set()
        """Completions wait for it."""
        self.gate.set()
        self.lock = threading.Lock()
        self.compute = threading.Lock()
        self.events = Events() if events else None
        self._listen(0)

    def _listen(self, port: int) -> None:
        engine = self

        class Handler(_Handler):
            pass

        Handler.engine = engine
        self.server = _Server(("127.0.0.1", port), Handler)
        if self.tls is not None:
            # Each connection has a thread for its handshake, so a bad client delays no other.
            self.server.socket = self.tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self.server.server_address[1])
        self.url = f"http{'s' if self.tls else ''}://{self.host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def worker(self) -> str:
        """Text for `--worker`."""
        text = self.url
        if self.role != "aggregated":
            text += f",role={self.role},connector={self.connector}"
        if self.role == "prefill" and self.connector == "sglang":
            text += f",bootstrap_port={self.bootstrap_port}"
        if self.ranks > 1:
            text += f",ranks={self.ranks}"
        if self.events is None:
            return text
        return (
            f"{text},events=tcp://127.0.0.1:{self.events.events_port}"
            f",replay=tcp://127.0.0.1:{self.events.replay_port}"
        )

    @property
    def bootstrap_port(self) -> int:
        """A port that names this engine; the legs meet inside the process."""
        return self.port

    def close(self) -> None:
        self.gate.set()
        self.awake.set()
        self.server.shutdown()
        self.server.server_close()
        self.server.cut()
        if self.events is not None:
            self.events.close()

    def restart(self) -> None:
        """End as a killed process does, and start again on the same ports with an empty cache."""
        self.close()
        self.start_again()

    def start_again(self) -> None:
        self.cache.clear()
        self.started_s = time.time()
        if self.events is not None:
            self.events = Events(self.events.events_port, self.events.replay_port)
        self._listen(self.port)

    def reset_cache(self, *, is_silent: bool = False) -> None:
        """Drop the whole cache; an idle engine says nothing until its next step."""
        with self.lock:
            self.cache.clear()
            if self.events is not None and not is_silent:
                self.events.publish([{"type": "AllBlocksCleared"}])

    def complete(self, tokens: list[int], salt: str | None, lora: str | None) -> int:
        """Put the blocks of a prompt into the cache; the cached tokens of the prompt."""
        hashes: list[int] = []
        parent = 0
        for at in range(len(tokens) // BLOCK_TOKENS):
            block = tuple(tokens[at * BLOCK_TOKENS : (at + 1) * BLOCK_TOKENS])
            key = (parent, block, salt if at == 0 else None, lora)
            parent = hash(key) & (2**63 - 1) or 1
            hashes.append(parent)
        with self.lock:
            held = 0
            # As vLLM: the last token is always computed.
            most = (len(tokens) - 1) // BLOCK_TOKENS
            while held < min(len(hashes), most) and hashes[held] in self.cache:
                self.cache.move_to_end(hashes[held])
                held += 1
            batch: list[dict[str, Any]] = []
            new = [h for h in hashes[held:] if h not in self.cache]
            first = hashes.index(new[0]) if new else len(hashes)
            while new and len(self.cache) + len(new) > self.capacity_blocks and self.cache:
                gone, _ = self.cache.popitem(last=False)
                batch.append({"type": "BlockRemoved", "block_hashes": [gone], "medium": "GPU"})
            if new:
                extra = [
                    [part for part in (lora, salt if at == 0 else None) if part] or None
                    for at in range(first, len(hashes))
                ]
                batch.append(
                    {
                        "type": "BlockStored",
                        "block_hashes": hashes[first:],
                        "parent_block_hash": hashes[first - 1] if first else None,
                        "token_ids": tokens[first * BLOCK_TOKENS : len(hashes) * BLOCK_TOKENS],
                        "block_size": BLOCK_TOKENS,
                        "lora_id": None,
                        "lora_name": lora,
                        "medium": "GPU",
                        "extra_keys": extra,
                    }
                )
                self.cache.update((h, 0) for h in new)
            if self.lie is not None:
                batch = [told for told in map(self.lie, batch) if told is not None]
            if batch and self.events is not None:
                self.events.publish(batch)
            return held * BLOCK_TOKENS

    def metrics(self) -> str:
        label = f'{{engine="0",model_name="{self.model}"}}'
        return (
            f"vllm:num_requests_running{label} {self.running}.0\n"
            f"vllm:num_requests_waiting{label} {self.waiting}.0\n"
            f"vllm:kv_cache_usage_perc{label} 0.25\n"
            f'vllm:cache_config_info{{block_size="{BLOCK_TOKENS}",engine="0",'
            f'num_gpu_blocks="{self.capacity_blocks}"}} 1.0\n'
            f"process_start_time_seconds {self.started_s}\n"
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self.open: set[Any] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def cut(self) -> None:
        """Close every connection, as the end of a process does."""
        for each in list(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(2)

    def handle_error(self, *_arguments: Any) -> None:
        return


class _Handler(BaseHTTPRequestHandler):
    engine: Engine
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None:
        return

    def do_GET(self) -> None:
        self.engine.awake.wait(DEADLINE_S)
        engine = self.engine
        if self.path == "/metrics":
            self._answer(engine.metrics().encode(), "text/plain")
        elif self.path == "/v1/models":
            entries: list[dict[str, Any]] = [
                {"id": engine.model, "parent": None, "max_model_len": 4096}
            ]
            entries += [{"id": lora, "parent": engine.model} for lora in engine.loras]
            self._answer(json.dumps({"object": "list", "data": entries}).encode())
        else:
            self._answer(b"{}", status=404)

    def do_POST(self) -> None:
        engine = self.engine
        body = json.loads(self._body())
        engine.served.append(body)
        engine.headers.append({k.lower(): v for k, v in self.headers.items()})
        if engine.breaks:
            self.close_connection = True
            return
        engine.running += 1
        try:
            if not self._wait(engine.gate):
                return
            if engine.status != 200:
                self._answer(b'{"error": {"message": "scripted"}}', status=engine.status)
                return
            prompt = body.get("prompt")
            tokens = prompt if isinstance(prompt, list) else []
            lora = body["model"] if body["model"] in engine.loras else None
            cached = engine.complete(tokens, body.get("cache_salt"), lora)
            if engine.prefill_s_per_token:
                with engine.compute:
                    time.sleep(engine.prefill_s_per_token * (len(tokens) - cached))
            if not self._meet(body):
                return
        finally:
            engine.running -= 1
        usage = {
            "prompt_tokens": len(tokens),
            "completion_tokens": body.get("max_tokens", 1),
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        choice = {"index": 0, "text": "x", "finish_reason": "length"}
        answer = {"id": "c", "object": "text_completion", "choices": [choice], "usage": usage}
        transfer = body.get("kv_transfer_params") or {}
        if transfer.get("do_remote_decode") and engine.keeps_blocks:
            answer["kv_transfer_params"] = {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_engine_id": engine.url,
                "remote_block_ids": [1, 2, 3],
                "remote_host": "127.0.0.1",
                "remote_port": engine.port,
            }
        if not body.get("stream"):
            self._answer(json.dumps(answer).encode())
            return
        if engine.token_s:
            self._stream(answer, int(body.get("max_tokens", 1)))
            return
        events = f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n"
        self._answer(events.encode(), "text/event-stream")

    def _wait(self, event: threading.Event) -> bool:
        """Wait for an event; False, and counted, when the caller closes the connection first."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not event.wait(0.005) and time.monotonic() < deadline_s:
            with contextlib.suppress(BlockingIOError):
                # A socket with TLS takes no flags, so it does not notice a caller that left.
                flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
                if self.engine.tls is None and self.connection.recv(1, flags) == b"":
                    self.engine.aborted += 1
                    self.close_connection = True
                    return False
        return True

    def _meet(self, body: dict[str, Any]) -> bool:
        """Meet the other leg of SGLang, where the request names a room."""
        engine, rooms = self.engine, body.get("bootstrap_room")
        if rooms is None or engine.role == "aggregated":
            return True
        for room in rooms if isinstance(rooms, list) else [rooms]:
            if engine.role == "prefill":
                engine.bootstrap.room(room).set()
            elif not self._wait(engine.bootstrap.room(room)):
                return False
        return True

    def _body(self) -> bytes:
        """The whole body: of a known length, or in chunks as a proxy that streams sends it."""
        if (length := self.headers["content-length"]) is not None:
            return self.rfile.read(int(length))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _stream(self, answer: dict[str, Any], tokens: int) -> None:
        """One event per token, then one with the usage, in chunks as engines stream."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        token = {key: value for key, value in answer.items() if key != "usage"}
        for _ in range(tokens):
            self._chunk(f"data: {json.dumps(token)}\n\n".encode())
            time.sleep(self.engine.token_s)
        end = answer | {"choices": []}
        self._chunk(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())
        self._chunk(b"")

    def _chunk(self, piece: bytes) -> None:
        """One chunk; an empty one ends the body."""
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def _answer(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
