"""Read the blocks that the workers of one endpoint hold now, as Dynamo's own router recovers them.

A process of its own does it (`block_reader.py`), so that Dynamo's runtime and its router's threads
and subscriptions cost nothing afterwards, and so that the interpreter may be another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from wardrop.dynamo.child import tethered

MAX_DUMP_BYTES = 1 << 30
"""A larger answer is not read (about ten million blocks)."""

_READER = Path(__file__).with_name("block_reader.py")


class DumpError(RuntimeError):
    """The blocks could not be read; routing goes on, with the index that the events build."""


async def dump_events(
    python: str, endpoint: str, block_size: int, environment: Mapping[str, str], timeout_s: float
) -> str:
    """The JSON list of `KvRouter.dump_events()` for `namespace.component.endpoint`.

    Raises:
        DumpError: it failed, took longer than `timeout_s`, or was larger than `MAX_DUMP_BYTES`.
    """
    command = tethered([python, "-P", str(_READER), endpoint, str(block_size)])
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**environment, "DYN_LOG": "error"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=1 << 20,
    )
    try:
        async with asyncio.timeout(timeout_s):
            text, errors = await asyncio.gather(
                _read(process.stdout, MAX_DUMP_BYTES), _read(process.stderr, 1 << 20)
            )
            code = await process.wait()
    except TimeoutError:
        raise DumpError(f"no dump of {endpoint} within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise DumpError(f"dump of {endpoint} ended with code {code}: {last[:300]}")
    return text.decode()


async def _read(stream: asyncio.StreamReader | None, limit: int) -> bytes:
    content = bytearray()
    while stream is not None and (chunk := await stream.read(1 << 20)):
        content += chunk
        if len(content) > limit:
            raise DumpError(f"the dump is larger than {limit} bytes")
    return bytes(content)
