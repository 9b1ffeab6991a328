"""A proxy between the router and a frontend that keeps the bodies it forwards."""

from __future__ import annotations

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

DRY_RUN = ["query_instance_id:"]


class Recorder:
    """Forwards every request to `target` and keeps the last body that asked for an answer.

    The router's own dry runs pass too, and are not kept.
    """

    def __init__(self, target: str) -> None:
        place = urlsplit(target)
        self.last: dict[str, Any] | None = None
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.command == "POST":
                    recorder.keep(body)
                connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                connection.close()

            do_GET = do_POST = forward  # noqa: N815, the names are http.server's

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def keep(self, body: bytes) -> None:
        """Takes note of a body, unless it is a dry run."""
        content = json.loads(body)
        if (content.get("nvext") or {}).get("annotations") != DRY_RUN:
            self.last = content

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
