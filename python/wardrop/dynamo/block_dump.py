"""Reading the blocks that the workers of one endpoint hold now.

Dynamo's own router recovers them in the same way. A process of its own (`block_reader.py`) does it:
the threads and subscriptions of Dynamo's runtime end with the process, and the interpreter may be
another one than the router's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from wardrop.dynamo.child_process import bound_to_parent

MAX_DUMP_BYTES = 1 << 30
"""A larger dump is not read (about ten million blocks)."""

_MAX_ERROR_BYTES = 1 << 20
_READER = Path(__file__).with_name("block_reader.py")


class DumpError(RuntimeError):
    """The blocks could not be read. Routing continues with the index that the events build."""


async def dump_blocks(
    python: str, endpoint: str, block_size: int, environment: Mapping[str, str], timeout_s: float
) -> str:
    """The blocks on the workers of an endpoint, as the JSON list of `KvRouter.dump_events()`.

    Args:
        python: Interpreter with Dynamo.
        endpoint: `namespace.component.endpoint`.
        block_size: Tokens per block of the workers.
        environment: Variables for Dynamo, which say where discovery is.
        timeout_s: Longest time for the whole reading.

    Raises:
        DumpError: The process failed, took longer than `timeout_s`, or printed more than
            `MAX_DUMP_BYTES`.
    """
    command = bound_to_parent([python, "-P", str(_READER), endpoint, str(block_size)])
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
                _read(process.stdout, MAX_DUMP_BYTES), _read(process.stderr, _MAX_ERROR_BYTES)
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
        raise DumpError(f"the dump of {endpoint} ended with code {code}: {last[:300]}")
    return text.decode()


async def _read(stream: asyncio.StreamReader | None, limit_bytes: int) -> bytes:
    content = bytearray()
    while stream is not None and (chunk := await stream.read(1 << 20)):
        content += chunk
        if len(content) > limit_bytes:
            raise DumpError(f"the dump is larger than {limit_bytes} bytes")
    return bytes(content)
