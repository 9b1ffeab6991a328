"""Blocking calls beside the event loop, each in a daemon thread of its own.

`asyncio.to_thread` has a few threads for everything and waits for them when the process ends. One
call that hangs, for example on a network file system, would then delay every other call and the
end of the process. Callers bound the number of their calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def run_in_thread(function: Callable[[], T]) -> T:
    """The result of a call in a thread of its own.

    The thread keeps running when the caller is cancelled; its result is then dropped.

    Raises:
        Exception: As `function`. `RuntimeError` when the system has no thread left.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType]

    def call() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = function()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=call, daemon=True).start()
    return await future
