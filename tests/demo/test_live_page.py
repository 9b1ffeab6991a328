"""The relay of the demo's live page, and the picture of it."""

from __future__ import annotations

import http.client
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tests.browser import find_chromium
from tests.waiting import DEADLINE_S

from wardrop.demo import live_page
from wardrop.demo.live_page import DESCRIPTOR, HOST, LivePage, open_port, take_picture


class _Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        text = f"<!doctype html><title>admin</title>{self.path}".encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def admin_port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer((HOST, 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[LivePage]:
    monkeypatch.delenv(DESCRIPTOR, raising=False)
    with LivePage(open_port()) as relay:
        yield relay


def ask(address: str, path: str = "/") -> tuple[int, bytes]:
    conn = http.client.HTTPConnection(address.split("/")[2], timeout=DEADLINE_S)
    conn.request("GET", path)
    answer = conn.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        conn.close()


def test_relay_leads_to_the_router_only_while_it_runs(page, admin_port):
    status, text = ask(page.url)
    assert status == 503
    assert b"does not run at this moment" in text
    with page.showing(admin_port):
        assert ask(page.url, "/v1/live") == (200, b"<!doctype html><title>admin</title>/v1/live")
    assert ask(page.url)[0] == 503


def test_router_without_an_admin_port_leaves_the_short_page(page):
    with page.showing(None):
        assert ask(page.url)[0] == 503


def test_router_that_does_not_listen_leaves_the_short_page(page):
    with socket.create_server((HOST, 0)) as gone:
        port = gone.getsockname()[1]
    with page.showing(port):
        assert ask(page.url)[0] == 503


def test_connections_beyond_the_limit_are_closed(page, admin_port, monkeypatch):
    monkeypatch.setattr(live_page, "MAX_CONNECTIONS", 1)
    host, port = page.url.split("/")[2].split(":")
    with page.showing(admin_port), socket.create_connection((host, int(port))) as first:
        first.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert first.recv(9) == b"HTTP/1.1 "
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as second:
            assert second.recv(1) == b""


def test_port_survives_a_second_execution_of_the_command(monkeypatch):
    monkeypatch.delenv(DESCRIPTOR, raising=False)
    with open_port() as opened:
        address = opened.getsockname()
        script = "from wardrop.demo.live_page import open_port; print(open_port().getsockname())"
        ran = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ,
            pass_fds=[opened.fileno()],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == str(address)


def test_workers_of_the_demo_do_not_inherit_the_port(monkeypatch):
    monkeypatch.delenv(DESCRIPTOR, raising=False)
    opened = open_port()
    assert opened.get_inheritable()
    assert os.environ[DESCRIPTOR] == str(opened.fileno())
    with LivePage(opened):
        assert not opened.get_inheritable()
        assert DESCRIPTOR not in os.environ


def test_picture_of_a_page(admin_port, tmp_path, monkeypatch):
    find_chromium()
    scratch = tmp_path / ("long" * 20)
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    picture = tmp_path / "deep" / "live.png"
    assert take_picture(f"http://{HOST}:{admin_port}/", picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_without_a_browser_there_is_no_picture(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not take_picture(f"http://{HOST}:1/", tmp_path / "live.png")
    assert list(tmp_path.iterdir()) == []
