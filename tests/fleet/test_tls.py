"""`wardrop serve` in front of HTTPS servers: whose certificates it believes."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import wait_until

from wardrop._core import Gateway
from wardrop.config import Config
from wardrop.errors import InputError
from wardrop.fleet import FleetSource, FleetSpec, parse_worker

PROMPT = list(range(100))


class Authority:
    """A certificate authority, and certificates that it signed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.file = folder / f"{name}.crt"
        self.key = folder / f"{name}.key"
        self._openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2", [
            "-subj", f"/CN={name}", "-keyout", str(self.key), "-out", str(self.file),
            "-addext", "keyUsage=critical,keyCertSign",
            "-addext", "basicConstraints=critical,CA:TRUE",
        ])  # fmt: skip

    def context(self, names: str, days: int = 2) -> ssl.SSLContext:
        """A server's side of TLS with a certificate for the names, as `IP:…` or `DNS:…`."""
        stem = self.folder / f"{self.name}-{abs(hash((names, days)))}"
        key, request, made = (str(stem.with_suffix(kind)) for kind in (".key", ".csr", ".crt"))
        self._openssl("req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes", [
            "-subj", "/CN=engine", "-keyout", key, "-out", request,
            "-addext", f"subjectAltName={names}",
        ])  # fmt: skip
        signing = f"x509 -req -copy_extensions copy -days {days}"
        paths = ["-in", request, "-out", made, "-CA", str(self.file), "-CAkey", str(self.key)]
        self._openssl(signing, paths)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made, key)
        return context

    def _openssl(self, command: str, more: list[str]) -> None:
        made = subprocess.run(
            ["openssl", *command.split(), *more], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[str], Authority]:
    return lambda name: Authority(tmp_path, name)


def believing(authority: Authority) -> Config:
    config = Config()
    return replace(config, upstream=replace(config.upstream, ca_file=str(authority.file)))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_worker_with_a_believed_certificate_serves(route, engines, authority, is_streamed):
    own = authority("own")
    pair = [engines(tls=own.context("IP:127.0.0.1"), token_s=0.001) for _ in range(2)]
    router = route(*pair, config=believing(own))
    for number in range(6):
        prompt = [number * 1000, *PROMPT]
        answer = router.complete(prompt, stream=is_streamed, max_tokens=40)
        assert answer[0] == 200
        if is_streamed:
            assert answer[2].count(b"data: ") == 42
    # More than one record of TLS, and more than a socket takes at once.
    assert router.complete(PROMPT, user="x" * (4 << 20))[0] == 200
    assert sum(len(engine.served) for engine in pair) == 7
    assert router.metric("upstream_tls_failures_total") == 0


def test_name_of_the_address_must_be_in_the_certificate(route, engines, authority):
    own = authority("own")
    named = engines(tls=own.context("DNS:localhost"), host="localhost")
    other = engines(tls=own.context("DNS:localhost"))
    router = route(named, texts=(), config=believing(own))
    router.admin("POST", "/v1/workers", {"url": other.url})
    wait_until(lambda: "certificate" in state(router, other)["error"], "a refused certificate")
    assert router.complete(PROMPT)[0] == 200
    assert (len(named.served), len(other.served)) == (1, 0)


def state(router: Any, engine: Any) -> dict[str, Any]:
    members = router.admin("GET", "/v1/workers")[2]["workers"]
    return next((each for each in members if each["url"] == engine.url), {"error": ""})


def test_certificate_of_another_authority_is_refused(route, engines, authority):
    own, other = authority("own"), authority("other")
    engine = engines(tls=other.context("IP:127.0.0.1"))
    router = route(engine, config=believing(own), waits=False)
    wait_until(lambda: "certificate" in state(router, engine)["error"], "a refused certificate")
    assert router.complete(PROMPT)[0] == 503
    assert not engine.served


def test_worker_that_changes_to_another_certificate_gets_no_request(route, engines, authority):
    own, other = authority("own"), authority("other")
    pair = [engines(tls=own.context("IP:127.0.0.1")) for _ in range(2)]
    router = route(*pair, config=believing(own))
    changed, kept = pair
    changed.close()
    changed.tls = other.context("IP:127.0.0.1")
    changed.start_again()
    for number in range(8):
        assert router.complete([number * 1000, *PROMPT])[0] == 200
    assert not changed.served
    assert len(kept.served) == 8
    wait_until(lambda: not router.worker(changed)["available"], "a worker that is not chosen")


def test_dns_worker_has_a_certificate_for_its_name(route, engines, authority):
    own = authority("own")
    engine = engines(tls=own.context("DNS:localhost"), events=False)
    text = f"https://localhost:{engine.port},dns=true"
    router = route(texts=(text,), config=believing(own), count=1)
    assert router.complete(PROMPT)[0] == 200


def test_frontends_of_the_gateway_may_have_https(engines, authority):
    import http.client
    import json

    own = authority("own")
    engine = engines(tls=own.context("IP:127.0.0.1"), events=False)
    config = json.loads(believing(own).gateway_json([engine.url]))
    gateway = Gateway(json.dumps(config | {"listen": "127.0.0.1:0"}))
    port = gateway.start()
    try:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("GET", "/v1/models")
        answer = json.loads(client.getresponse().read())
        assert answer["data"][0]["id"] == "m"
        client.close()
    finally:
        gateway.stop()


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_file_without_authorities_is_refused_at_the_start(tmp_path: Path, content: str | None):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    config = Config()
    config = replace(config, upstream=replace(config.upstream, ca_file=str(file)))
    with pytest.raises(ValueError, match=r"upstream\.ca_file: got .*[,;] expected a PEM file"):
        Gateway(config.gateway_json([]))
    spec = FleetSpec(workers=(parse_worker("https://a:1"),))
    with pytest.raises(InputError, match=r"upstream\.ca_file: got .*[,;] expected a PEM file"):
        FleetSource(spec, ca_file=file)
