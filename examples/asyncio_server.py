"""Route inside an asyncio HTTP server.

A small server takes OpenAI-style requests, routes each with `wardrop.Router`, and passes the
answer of the chosen engine on as it arrives. Two fake engines stand in for real ones: they stream
tokens, and report a KV event for each prompt that they compute.

`Router.route` takes microseconds and releases the GIL for long prompts, so the event loop calls it
directly. Tokens here are the bytes of the prompt; a real server uses its model's tokeniser.

Run (needs aiohttp):
    python examples/asyncio_server.py

Expected output:
    turn 1: answered by engine ..., 0 cached blocks
    turn 2: answered by engine ..., 16 cached blocks
    turn 3: answered by engine ..., 32 cached blocks
    one engine answered the conversation: True
    requests in flight: 0
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import ClientSession, web

import wardrop

BLOCK_SIZE = 16

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def tokens_of(text: str) -> list[int]:
    return list(text.encode())


class Engine:
    """A fake engine: streams four tokens per request and reports the blocks of each prompt."""

    def __init__(self, instance: int, router: wardrop.Router) -> None:
        self.instance = instance
        self.router = router

    async def answer(self, request: web.Request) -> web.StreamResponse:
        prompt = tokens_of((await request.json())["prompt"])
        names = wardrop.sequence_hashes(wardrop.block_hashes(prompt, BLOCK_SIZE))
        whole = prompt[: len(names) * BLOCK_SIZE]
        self.router.apply(self.instance, wardrop.Stored(names, tokens=whole, block_size=BLOCK_SIZE))
        response = web.StreamResponse()
        await response.prepare(request)
        for token in ("a", "b", "c", "d"):
            await response.write(token.encode())
            await asyncio.sleep(0)
        return response


class Gateway:
    """The server that clients call."""

    def __init__(
        self, router: wardrop.Router, engines: dict[int, str], session: ClientSession
    ) -> None:
        self.router = router
        self.engines = engines
        self.session = session
        self.ids = itertools.count()

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        request_id = next(self.ids)
        decision = self.router.route(tokens_of(body["prompt"]), request_id=request_id)
        instance, _ = decision.worker
        response = web.StreamResponse(
            headers={"x-engine": str(instance), "x-cached-blocks": str(decision.overlap_blocks)}
        )
        try:
            async with self.session.post(self.engines[instance], json=body) as upstream:
                await response.prepare(request)
                first = True
                async for chunk in upstream.content.iter_any():
                    if first:
                        self.router.prefill_done(request_id)
                        first = False
                    await response.write(chunk)
        finally:
            # Also after an error or a disconnect: an open booking counts as load.
            self.router.release(request_id)
        return response


@asynccontextmanager
async def serve(handler: Handler) -> AsyncGenerator[str]:
    """Serve POST / on a free port of the loopback; the server's address."""
    app = web.Application()
    app.router.add_post("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/"
    finally:
        await runner.cleanup()


async def converse(session: ClientSession, address: str) -> None:
    """Three turns of one conversation; each prompt begins with the one before."""
    prompt = ""
    engines: set[str] = set()
    for turn in range(1, 4):
        prompt += f"[turn {turn}] ".ljust(256, ".")
        async with session.post(address, json={"prompt": prompt}) as response:
            assert await response.text() == "abcd"
            engine, cached = response.headers["x-engine"], response.headers["x-cached-blocks"]
            print(f"turn {turn}: answered by engine {engine}, {cached} cached blocks")
            engines.add(engine)
    print("one engine answered the conversation:", len(engines) == 1)


async def main() -> None:
    router = wardrop.Router(BLOCK_SIZE, policy="dynamo")
    router.add_worker(1)
    router.add_worker(2)
    async with (
        ClientSession() as session,
        serve(Engine(1, router).answer) as first,
        serve(Engine(2, router).answer) as second,
        serve(Gateway(router, {1: first, 2: second}, session).completions) as address,
    ):
        await converse(session, address)
    print("requests in flight:", router.snapshot()["bookings"])


if __name__ == "__main__":
    asyncio.run(main())
