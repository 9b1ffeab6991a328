"""The live page of the demo: a port of this machine that leads into the demo's private network.

    browser ─▶ listening socket, opened before the namespace ─▶ relay thread ─▶ admin port, inside

A socket belongs to the network namespace in which it was opened, whichever process accepts from it.
So the demo opens a port first, enters its private network, and a thread copies bytes between the
two. While no router runs, the relay answers with a short page that reloads itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
PREFERRED_PORT = 8010
"""The default admin port of `wardrop dynamo`; a taken port is replaced by a free one."""

DESCRIPTOR = "WARDROP_DEMO_PAGE_FD"
"""Environment variable that carries the open socket through a second execution of the command."""

MAX_CONNECTIONS = 32
"""Connections of browsers at once. Further connections are closed."""

_CHUNK_BYTES = 1 << 16
_HEAD_BYTES = 1 << 14
_WAIT_PAGE = (
    b"<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=2>"
    b"<title>Wardrop demo</title><body style='font:16px system-ui;margin:3em'>"
    b"<p>Wardrop does not run at this moment: another router of the demo has its turn, or the demo "
    b"is over. This page reloads itself every two seconds."
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Names under which Chromium is installed."""

_SHORT_FOLDER = "/tmp"
_PICTURE_TIMEOUT_S = 60.0


def open_port() -> socket.socket:
    """A listening socket of this machine for the live page; it survives an `exec`.

    The first call opens the socket, and names it in the environment. A second execution of the same
    command finds it there.

    Raises:
        OSError: No port can be opened.
    """
    inherited = os.environ.get(DESCRIPTOR, "")
    if inherited.isdecimal():
        with contextlib.suppress(OSError):
            return socket.socket(fileno=int(inherited))
    try:
        opened = socket.create_server((HOST, PREFERRED_PORT))
    except OSError:
        opened = socket.create_server((HOST, 0))
    opened.set_inheritable(True)
    os.environ[DESCRIPTOR] = str(opened.fileno())
    return opened


class LivePage:
    """Relays connections of a listening socket to the admin port of the running router.

    Args:
        listener: The socket that `open_port` returned. The relay closes it.
    """

    def __init__(self, listener: socket.socket) -> None:
        # The workers and routers of the demo must not inherit the socket.
        listener.set_inheritable(False)
        os.environ.pop(DESCRIPTOR, None)
        self._listener = listener
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="live page", daemon=True)
        self._stop = asyncio.Event()
        self._target: int | None = None
        self._connections = 0
        self.url = f"http://{HOST}:{listener.getsockname()[1]}/"
        """Address of the page for a browser on this machine."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @contextlib.contextmanager
    def showing(self, admin_port: int | None) -> Generator[None]:
        """Lead to an admin port until the context ends; None leads to the short page."""
        self._target = admin_port
        try:
            yield
        finally:
            self._target = None

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._relay, sock=self._listener)
        try:
            await self._stop.wait()
        finally:
            server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if self._target is None or not await _join(reader, writer, self._target):
                    await _answer_wait_page(reader, writer)
        finally:
            self._connections -= 1
            writer.close()


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, admin_port: int
) -> bool:
    """Copy both ways until one side ends; False when nothing listens on the admin port."""
    try:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, admin_port)
    except OSError:
        return False
    copies = [
        asyncio.create_task(_copy(reader, inner_writer)),
        asyncio.create_task(_copy(inner_reader, writer)),
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        inner_writer.close()
    return True


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK_BYTES):
        target.write(data)
        await target.drain()


async def _answer_wait_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # The request is read first: a connection closed over unread bytes is reset, page and all.
    await asyncio.wait_for(reader.read(_HEAD_BYTES), timeout=5)
    writer.write(
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/html; charset=utf-8\r\n"
        b"connection: close\r\ncache-control: no-store\r\ncontent-length: %d\r\n\r\n%b"
        % (len(_WAIT_PAGE), _WAIT_PAGE)
    )
    await writer.drain()


def take_picture(address: str, path: Path) -> bool:
    """Save a picture of a page with an installed Chromium; the page's own history fills its charts.

    Args:
        address: Address of the page, as seen from this process.
        path: The PNG file to write. Its folder is made.

    Returns:
        False without a Chromium, or when it made no picture in time.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # Chromium keeps a Unix socket in its temporary folder, and dies of a path beyond 108 bytes.
    with tempfile.TemporaryDirectory(prefix="wardrop-", dir=_SHORT_FOLDER) as profile:
        command = [
            browser,
            "--headless=new",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
        ]
        command += ["--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        command += ["--window-size=1280,1800", "--timeout=4000", f"--screenshot={path.resolve()}"]
        if os.geteuid() == 0:
            # Chromium refuses to run as root inside its sandbox. The page is our own.
            command.append("--no-sandbox")
        try:
            ran = subprocess.run(
                [*command, address],
                env={**os.environ, "TMPDIR": profile},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_PICTURE_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return ran.returncode == 0 and path.is_file()
