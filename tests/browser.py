"""Chromium without a window, driven over the DevTools protocol: a page as a person sees it.

Each test that opens a page skips with a reason where no Chromium is installed. Playwright would
bring a browser of its own; the protocol needs only the websocket client of aiohttp.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.waiting import wait_until

from wardrop.demo.live_page import BROWSERS

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-port=0",
)
_CALL_TIMEOUT_S = 60


def find_chromium() -> str:
    """Path of an installed Chromium; without one the test skips."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


class Page:
    """One open page."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        """Exceptions, failed requests and refusals of the security policy, as the browser says."""
        self._run(self._connect())
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setScrollbarsHidden", hidden=True)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_TIMEOUT_S)

    async def _connect(self) -> None:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(self._address, max_msg_size=0)
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded":
                entry = said["params"]["entry"]
                self.errors += [json.dumps(entry)] if entry["level"] == "error" else []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""

        async def send() -> dict[str, Any]:
            self._number += 1
            answer = self._answers[self._number] = self._loop.create_future()
            await self._socket.send_json(
                {"id": self._number, "method": method, "params": parameters}
            )
            return await answer

        said = self._run(send())
        assert "error" not in said, said
        return said["result"]

    def evaluate(self, script: str) -> Any:
        """Value of a script in the page; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """Text of all elements that match."""
        return self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            ".map((one) => one.innerText).join('\\n')"
        )

    def count(self, selector: str) -> int:
        """Number of elements that match."""
        return self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")

    def open(self, url: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=url)

    def await_text(self, selector: str, text: str) -> None:
        """Wait until the elements that match show a text."""
        wait_until(lambda: text in self.text(selector), f"{text!r} in {selector}")

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page another size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def prefer(self, scheme: str) -> None:
        """Prefer the `light` or the `dark` scheme of colours."""
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def picture(self, file: Path) -> None:
        """Write the whole page as a PNG file."""
        result = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(result["data"]))

    def close(self) -> None:
        """Close the connection and stop its thread."""

        async def close() -> None:
            self._reader.cancel()
            await self._session.close()

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def open_page() -> Iterator[Page]:
    """A new Chromium with one empty page; it ends with the context."""
    program = find_chromium()
    with tempfile.TemporaryDirectory(prefix="wardrop-browser-", ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port_file = Path(home) / "DevToolsActivePort"
            wait_until(lambda: port_file.exists() and "\n" in port_file.read_text(), "Chromium")
            port = port_file.read_text().splitlines()[0]
            page = Page(asyncio.run(_page_address(port)))
            try:
                yield page
            finally:
                page.close()
        finally:
            process.terminate()
            process.wait(20)


async def _page_address(port: str) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/json/list") as answer,
    ):
        targets = await answer.json()
    return next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
