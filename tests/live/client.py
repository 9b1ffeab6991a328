"""A plain HTTP client for tests: every byte and header of an answer can be looked at."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Data of a server-sent stream; `[DONE]` as that text."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


def connect(url: str, timeout_s: float = 30.0) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)


def request(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Answer:
    connection = connect(url, timeout_s)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, named, answer.read())
    finally:
        connection.close()


def get(url: str, path: str) -> Answer:
    return request(url, "GET", path)


def post(url: str, path: str, body: Any, timeout_s: float = 30.0, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request(
        url, "POST", path, content, {"content-type": "application/json", **named}, timeout_s
    )


def stream(url: str, path: str, body: Any) -> tuple[http.client.HTTPConnection, Iterator[bytes]]:
    """An open stream, line by line; close the connection to disconnect."""
    connection = connect(url)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return connection, iter(answer.readline, b"")


def shape(value: Any) -> Any:
    """Keys and types of a JSON value; lists by their first element."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


class Metrics:
    """A Prometheus text; `total` sums over what is not named."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._rows: list[tuple[str, dict[str, str], float]] = []
        for line in text.splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match is not None:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                self._rows.append((match[1], labels, float(match[3])))

    def names(self) -> set[str]:
        return {name for name, _, _ in self._rows}

    def total(self, name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(v for n, has, v in self._rows if n == name and wanted <= has.items())

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        wanted = labels.items()
        found: dict[str, float] = {}
        for n, has, v in self._rows:
            if n == name and wanted <= has.items():
                found[has[label]] = found.get(has[label], 0) + v
        return found
