"""A scripted OpenAI server with a prefix cache: `python -m tests.picker.engine`.

It prints its port, then serves until it is killed. A prompt is a list of token ids. The answer
names the server, and its usage counts the tokens of the longest prefix that the server has seen.
`GET /seen` returns each request: path, headers, and the length and model of its body. With
`--prefill-us-per-token N`, one prompt at a time takes N µs for each token that is not cached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from aiohttp import web

BLOCK = 16


class Engine:
    def __init__(self, prefill_us_per_token: float = 0.0) -> None:
        self.prefill_s_per_token = prefill_us_per_token / 1e6
        self.compute = asyncio.Lock()
        self.blocks: set[tuple[int, ...]] = set()
        self.seen: list[dict[str, object]] = []
        self.held = asyncio.Event()
        self.held.set()
        self.cut = False

    def cached_tokens(self, prompt: list[int]) -> int:
        cached, growing = 0, True
        for end in range(BLOCK, len(prompt) + 1, BLOCK):
            block = tuple(prompt[:end])
            growing = growing and block in self.blocks
            cached = end if growing else cached
            self.blocks.add(block)
        return cached

    async def complete(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        prompt = body["prompt"]
        prompt = prompt if isinstance(prompt, list) else list(prompt.encode())
        self.seen.append(
            {
                "path": request.path,
                "headers": dict(request.headers),
                "bytes": len(raw),
                "model": body.get("model"),
            }
        )
        usage: dict[str, Any] = {
            "prompt_tokens": len(prompt),
            "completion_tokens": int(body.get("max_tokens", 3)),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens(prompt)},
        }
        if self.prefill_s_per_token:
            cached = int(usage["prompt_tokens_details"]["cached_tokens"])
            async with self.compute:
                await asyncio.sleep((len(prompt) - cached) * self.prefill_s_per_token)
        if body.get("fail"):
            return web.json_response({"error": {"message": "full"}}, status=int(body["fail"]))
        port = request.transport.get_extra_info("sockname")[1]
        if not body.get("stream"):
            choice = {"index": 0, "text": str(port)}
            return web.json_response({"choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(int(body.get("max_tokens", 3))):
            await self.held.wait()
            chunk = {"choices": [{"index": 0, "text": f"{port}:{number} "}]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def models(self, _request: web.Request) -> web.Response:
        self.seen.append({"path": "/v1/models"})
        return web.json_response({"data": [{"id": "m"}]})

    async def facts(self, _request: web.Request) -> web.Response:
        """What other routers ask a server of vLLM or SGLang before they send it requests."""
        return web.json_response({"model_path": "m", "served_model_name": "m", "model_id": "m"})

    async def list_seen(self, _request: web.Request) -> web.Response:
        return web.json_response(self.seen)

    async def hold(self, request: web.Request) -> web.Response:
        if request.match_info["what"] == "on":
            self.held.clear()
        else:
            self.held.set()
        return web.Response()


async def main(prefill_us_per_token: float) -> None:
    engine = Engine(prefill_us_per_token)
    app = web.Application(client_max_size=1 << 30)
    app.add_routes(
        [
            web.post("/v1/completions", engine.complete),
            web.get("/v1/models", engine.models),
            *(
                web.get(path, engine.facts)
                for path in (
                    "/health",
                    "/health_generate",
                    "/get_model_info",
                    "/get_server_info",
                    "/model_info",
                    "/server_info",
                    "/version",
                )
            ),
            web.get("/seen", engine.list_seen),
            web.post("/hold/{what}", engine.hold),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--prefill-us-per-token", type=float, default=0.0)
    asyncio.run(main(parser.parse_args().prefill_us_per_token))
