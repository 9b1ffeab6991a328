"""Clients that are too many, too slow or too large, beside small requests."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

from bench.reliability.clients import Clients, p99
from bench.reliability.door import opened, resources

from wardrop.dynamo.embedded import FleetSpec

LARGE_BYTES = 44_000_000
SLOW_CLIENTS = 4_096
_WATCHED_S = 20.0


def spec() -> FleetSpec:
    """Two workers whose engine time is small."""
    return FleetSpec(workers=2, speedup_ratio=20.0)


async def large_prompts(door_name: str) -> dict[str, Any]:
    """Two prompts of 44 MB of text, sent at once, beside small requests."""
    async with opened(door_name, spec()) as door:
        text = "river stone lamp orange " * (LARGE_BYTES // 24)
        body = json.dumps({"model": "tiny", "prompt": text, "max_tokens": 1}).encode()
        async with _small(door.urls) as clients:
            await clients.warm()
            before_s = time.monotonic()
            sending = [asyncio.create_task(_post(url, body)) for url in (door.urls * 2)[:2]]
            await asyncio.wait(sending, timeout=90)
            sent_s = time.monotonic()
            await asyncio.sleep(2.0)
            statuses = [task.result() if task.done() else "no answer in 90 s" for task in sending]
        return {
            "answers": [str(status) for status in statuses],
            "answered_after_s": sent_s - before_s,
            **_figures(clients, before_s),
        }


async def slow_clients(door_name: str) -> dict[str, Any]:
    """4,096 connections that send a request head byte by byte and never end it."""
    async with opened(door_name, spec()) as door:
        crowd: list[asyncio.StreamWriter] = []
        async with _small(door.urls) as clients:
            await clients.warm()
            before = resources(door.pids())
            before_s = time.monotonic()
            refused = 0
            for number in range(SLOW_CLIENTS):
                url = urlsplit(door.urls[number % len(door.urls)])
                try:
                    _, writer = await asyncio.open_connection(url.hostname, url.port)
                except OSError:
                    refused += 1
                    continue
                writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-slow: ")
                crowd.append(writer)
            while time.monotonic() < before_s + _WATCHED_S:
                for writer in crowd:
                    if not writer.is_closing():
                        writer.write(b"y")
                await asyncio.sleep(1.0)
            during = resources(door.pids())
            held = sum(not writer.is_closing() for writer in crowd)
            for writer in crowd:
                writer.transport.abort()
        return {
            "refused": refused,
            "held_at_end": held,
            "descriptors": [before.descriptors, during.descriptors],
            "resident_mb": [round(before.resident_mb), round(during.resident_mb)],
            **_figures(clients, before_s),
        }


def _small(urls: tuple[str, ...]) -> Clients:
    return Clients(urls, 4, prompt_tokens=64, max_tokens=2, pause_s=0.02)


def _figures(clients: Clients, since_s: float) -> dict[str, Any]:
    later = [one for one in clients.seen if one.sent_s >= since_s]
    before = [one for one in clients.seen if one.sent_s < since_s]
    times = [one.ended_s - one.sent_s for one in later if one.whole and one.ended_s]
    quiet = [one.ended_s - one.sent_s for one in before if one.whole and one.ended_s]
    return {
        "small_requests": len(later),
        "small_failed": sum(not one.whole for one in later),
        "small_p99_s": p99(times),
        "small_longest_s": max(times, default=0.0),
        "small_p99_before_s": p99(quiet),
    }


async def _post(url: str, body: bytes) -> str:
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session,
            session.post(
                f"{url}/v1/completions", data=body, headers={"content-type": "application/json"}
            ) as answer,
        ):
            await answer.read()
            return f"HTTP {answer.status}"
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return type(error).__name__
