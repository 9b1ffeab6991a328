"""The faults: each method injects one kind, ends its effect, and returns a proof that it fired.

A proof counts something that only the fault can cause: an exit code, a stopped process, reset
connections, swallowed bytes, refused connections.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import socket
import time
from pathlib import Path

import aiohttp
from tests.chaos.arena import Arena
from tests.chaos.oracle import Violation, judge_blocks
from tests.chaos.phantom import INSTANCE, MODEL

from wardrop.dynamo.child_process import ChildProcess

_SUBSCRIBED_S = 20.0
_HELD_S = 20.0


class Faults:
    """Injects faults into an arena.

    Args:
        arena: The running fleet.

    Attributes:
        violations: What an injector itself found wrong, such as blocks of a life that has ended.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.violations: list[Violation] = []

    async def inject(self, kind: str, draw: int) -> int:
        """Inject a kind of fault; return its proof."""
        return await getattr(self, f"_{kind}")(random.Random(draw))

    # ---- processes --------------------------------------------------------------------------

    async def _kill_worker(self, dice: random.Random) -> int:
        at = dice.randrange(len(self.arena.workers))
        child = self.arena.workers[at].child
        await asyncio.to_thread(child.kill)
        await self.arena.replace_worker(at)
        return int(child.exit_code == -signal.SIGKILL)

    async def _stop_worker(self, dice: random.Random) -> int:
        child = dice.choice(self.arena.workers).child
        return await self._stopped(child, dice.uniform(0.3, 5.0))

    async def _slow_worker(self, dice: random.Random) -> int:
        """Let a worker run for a third of the time."""
        child = dice.choice(self.arena.workers).child
        stops = 0
        for _ in range(20):
            stops += await self._stopped(child, 0.08)
            await asyncio.sleep(0.04)
        return stops

    async def _kill_frontend(self, dice: random.Random) -> int:
        at = dice.randrange(len(self.arena.frontends))
        child = self.arena.frontends[at].child
        await asyncio.to_thread(child.kill)
        await self.arena.replace_frontend(at)
        return int(child.exit_code == -signal.SIGKILL)

    async def _stop_frontend(self, dice: random.Random) -> int:
        child = dice.choice(self.arena.frontends).child
        return await self._stopped(child, dice.uniform(0.3, 5.0))

    async def _stopped(self, child: ChildProcess, duration_s: float) -> int:
        await asyncio.to_thread(child.suspend)
        stopped = child.state() == "T"
        await asyncio.sleep(duration_s)
        child.resume()
        return int(stopped)

    # ---- connections to frontends, and feeds ---------------------------------------------------

    async def _cut_upstream(self, dice: random.Random) -> int:
        proxy = dice.choice(self.arena.upstreams)
        deadline_s = time.monotonic() + 5
        while not proxy.open_links and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        return proxy.cut()

    async def _half_open_upstream(self, dice: random.Random) -> int:
        proxy = dice.choice(self.arena.upstreams)
        before = proxy.swallowed_bytes
        proxy.silence()
        await asyncio.sleep(dice.uniform(0.5, 4.0))
        proxy.cut()
        proxy.resume()
        return proxy.swallowed_bytes - before

    async def _slow_upstream(self, dice: random.Random) -> int:
        proxy = dice.choice(self.arena.upstreams)
        before = proxy.slowed_bytes
        proxy.bytes_per_s = dice.uniform(40_000, 200_000)
        await asyncio.sleep(dice.uniform(1.0, 3.0))
        proxy.bytes_per_s = None
        return proxy.slowed_bytes - before

    async def _cut_feed(self, dice: random.Random) -> int:
        feeds = [proxy for proxy in self.arena.mirror.feeds.values() if proxy.open_links]
        return dice.choice(feeds).cut() if feeds else 0

    async def _half_open_feed(self, dice: random.Random) -> int:
        feeds = list(self.arena.mirror.feeds.values())
        if not feeds:
            return 0
        proxy = dice.choice(feeds)
        before = proxy.swallowed_bytes
        proxy.silence()
        await asyncio.sleep(dice.uniform(1.0, 4.0))
        proxy.cut()
        proxy.resume()
        return proxy.swallowed_bytes - before

    # ---- the discovery store, and a scripted engine --------------------------------------------

    async def _malformed_entries(self, dice: random.Random) -> int:
        card = json.dumps(self.arena.phantom.card("malformed", 7)).encode()
        contents = [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe\x00",
            b'{"a":' * 60_000 + b"1" + b"}" * 60_000,
            b'{"type":"Model","card_json":3,"instance_id":"x"}',
            b'{"instance_id":' + b"9" * 4_000 + b"}",
            card[: len(card) // 2],
            card.replace(b"127.0.0.1", b"256.0.0.1"),
            card.replace(b'"kv_cache_block_size"', b'"kv_cache_block_sized"'),
            card.replace(b'"source_path":"', b'"source_path":"' + b"x" * 300),
            b"{" + b" " * (2 << 20) + b"}",
        ]
        paths = [
            self.arena.mirror.put(
                dice.choice(["mdc", "instances", "event_channels", "event_sources"]),
                f"malformed-{number}",
                dice.choice(contents),
            )
            for number in range(6)
        ]
        await asyncio.sleep(dice.uniform(0.3, 1.0))
        written = sum(path.exists() for path in paths)
        for path in paths:
            path.unlink(missing_ok=True)
        return written

    async def _store_away(self, dice: random.Random) -> int:
        self.arena.mirror.hide()
        try:
            gone = not (self.arena.mirror.root / "v1").exists()
            await asyncio.sleep(dice.uniform(0.2, 1.0))
        finally:
            self.arena.mirror.show()
        return int(gone)

    async def _same_id_restart(self, dice: random.Random) -> int:
        """A new life under an old id, event ids from 1: the router believes in that life alone."""
        phantom = self.arena.phantom
        if not await self.arena.knows(INSTANCE):
            return 0  # no frontend serves the engine's model now
        phantom.register()
        assert phantom.life is not None
        if not await phantom.life.await_subscription(_SUBSCRIBED_S):
            self.violations.append(
                Violation("feed", f"no subscription to a new publisher in {_SUBSCRIBED_S:g} s")
            )
            return 1
        for _ in range(dice.randrange(1, 6)):
            hashes = [dice.getrandbits(60) + 1 for _ in range(dice.randrange(1, 9))]
            await phantom.life.stored(hashes)
            phantom.held.update(hashes)
        truth = {MODEL: float(len(phantom.held))}
        believed: dict[str, float] = {}
        deadline_s = time.monotonic() + _HELD_S
        while judge_blocks(believed, truth) and time.monotonic() < deadline_s:
            try:
                page = await self.arena.metrics()
            except (OSError, aiohttp.ClientError):
                await asyncio.sleep(0.1)
                continue
            believed = {MODEL: page.total("wardrop_worker_held_blocks", worker_id=str(INSTANCE))}
            await asyncio.sleep(0.05)
        self.violations += judge_blocks(believed, truth)
        return 1

    async def _total(self, name: str) -> float:
        """Sum of a metric of the router."""
        return (await self.arena.metrics()).total(name)

    async def _garbage_events(self, dice: random.Random) -> int:
        life = self.arena.phantom.life
        if life is None:
            return 0
        before = await self._total("wardrop_feed_malformed_total")
        for _ in range(20):
            await life.garbage(dice.randbytes(dice.randrange(0, 200)))
        deadline_s = time.monotonic() + 3
        seen = 0.0
        while not seen and time.monotonic() < deadline_s:
            await asyncio.sleep(0.1)
            seen = await self._total("wardrop_feed_malformed_total") - before
        return int(seen)

    async def _flood_of_ranks(self, dice: random.Random) -> int:
        """Events of ranks that the engine never announced; a new life follows."""
        life = self.arena.phantom.life
        if life is None:
            return 0
        first = dice.randrange(1, 1 << 20)
        for rank in range(first, first + 3_000):
            await life.stored([dice.getrandbits(60) + 1], rank)
        self.arena.phantom.register()
        return 3_000

    async def _flood_of_models(self, dice: random.Random) -> int:
        paths: list[Path] = []
        for number in range(200):
            instance = dice.getrandbits(48)
            card = self.arena.phantom.card(f"flood-{instance:x}", instance)
            address = self.arena.phantom.address(instance)
            for bucket, entry in (("mdc", card), ("instances", address)):
                content = json.dumps(entry).encode()
                paths.append(self.arena.mirror.put(bucket, f"flood-{number}", content))
        await asyncio.sleep(dice.uniform(0.5, 1.5))
        written = sum(path.exists() for path in paths)
        for path in paths:
            path.unlink(missing_ok=True)
        return written

    # ---- clients ---------------------------------------------------------------------------------

    async def _flood_of_tenants(self, dice: random.Random) -> int:
        async def ask(session: aiohttp.ClientSession, tenant: str) -> int:
            body = {"model": "tiny", "prompt": f"{tenant} asks", "max_tokens": 1}
            headers = {"x-tenant-id": tenant}
            try:
                async with (
                    asyncio.timeout(20),
                    session.post(
                        f"{self.arena.url}/v1/completions", json=body, headers=headers
                    ) as answer,
                ):
                    await answer.read()
                    return answer.status
            except (aiohttp.ClientError, OSError, TimeoutError):
                return 0

        names = [f"tenant-{dice.getrandbits(64):x}" for _ in range(60)]
        connector = aiohttp.TCPConnector(limit=6)
        async with aiohttp.ClientSession(connector=connector) as session:
            statuses = await asyncio.gather(*(ask(session, name) for name in names))
        return sum(status == 200 for status in statuses)

    async def _full_descriptors(self, dice: random.Random) -> int:
        """Lower the router's limit of descriptors to what is open, and connect until it is full."""
        pid = self.arena.router.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        open_now = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 4, before[1]))
        errors = await self._total("wardrop_accept_errors_total")
        clients: list[socket.socket] = []
        try:
            for _ in range(40):
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", self._port))
                clients.append(client)
            await asyncio.sleep(dice.uniform(0.5, 2.0))
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            for client in clients:
                client.close()
        return int(await self._total("wardrop_accept_errors_total") - errors)

    async def _clients_abort(self, dice: random.Random) -> int:
        return sum(await asyncio.gather(*(self._abort(dice.randrange(1 << 30)) for _ in range(4))))

    async def _abort(self, number: int) -> int:
        reader, writer = await self._open()
        writer.write(_post({"model": "tiny", "prompt": f"a {number}", "stream": True}, 400))
        try:
            async with asyncio.timeout(5):
                await reader.readuntil(b"data: ")
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return 0
        finally:
            writer.transport.abort()
        return 1

    async def _clients_stall(self, dice: random.Random) -> int:
        """Clients that never read a long answer, and clients that never send a whole body."""
        stalled = 0
        clients: list[asyncio.StreamWriter] = []
        for number in range(4):
            _, writer = await self._open()
            if number % 2:
                body = {"model": "tiny", "prompt": f"s {dice.random()}", "stream": True}
                writer.write(_post(body, 300))
            else:
                writer.write(_post({"model": "tiny"}, 1, short_by=1))
            stalled += 1
            clients.append(writer)
        await asyncio.sleep(dice.uniform(1.0, 3.0))
        for writer in clients:
            writer.transport.abort()
        return stalled

    async def _clients_garbage(self, dice: random.Random) -> int:
        sent = 0
        heads = [
            dice.randbytes(200),
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n{{{{{",
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: nine\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
            b"GET /v1/models HTTP/9.9\r\n\r\n",
            _post({"model": "tiny", "prompt": [-1, 2**70]}, 1),
            _post({"model": "tiny", "prompt": [[[[]]]]}, 1),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
        for head in dice.sample(heads, 4):
            reader, writer = await self._open()
            try:
                writer.write(head)
                writer.write_eof()
                async with asyncio.timeout(2):
                    await reader.read(4096)
            except (OSError, TimeoutError):
                pass
            finally:
                writer.transport.abort()
            sent += 1
        return sent

    @property
    def _port(self) -> int:
        return int(self.arena.url.rpartition(":")[2])

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)


def _post(body: dict[str, object], max_tokens: int, short_by: int = 0) -> bytes:
    """A request; with `short_by`, so many bytes of the announced body are missing."""
    content = json.dumps({**body, "max_tokens": max_tokens, "ignore_eos": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content) + short_by}\r\n\r\n".encode() + content
