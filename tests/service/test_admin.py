"""The admin API: what it refuses, and the commands that speak to it."""

import asyncio
import http.client
import json
import socket
import threading
from contextlib import contextmanager

import pytest
from tests.service.wired import wiring_with
from tests.waiting import wait_until
from typer.testing import CliRunner

from wardrop._core import Gateway
from wardrop.commands import audit as audit_command
from wardrop.commands import curves as curves_command
from wardrop.commands import set as set_command
from wardrop.commands import shadows as shadows_command
from wardrop.control import AuditLog, Door
from wardrop.service.admin import Admin
from wardrop.service.curve_file import SavedCurves
from wardrop.service.live import LiveFeed

WORKER = {"model": "m", "role": "aggregated", "instance": 7}


@pytest.fixture
def gateway():
    routing = {"policy": {"name": "toll"}, "queue": {"kappa": 10}}
    native = Gateway(json.dumps({"listen": "127.0.0.1:0", "routing": routing}))
    native.upsert_model(json.dumps({"name": "m", "block_size": 4}))
    native.upsert_worker(json.dumps(WORKER))
    yield native
    native.stop()


@pytest.fixture
def url(gateway, tmp_path):
    """The API at work in a thread of its own."""
    with serving(gateway, tmp_path) as address:
        yield address


@contextmanager
def serving(gateway, tmp_path):
    loop = asyncio.new_event_loop()
    door = Door(gateway, AuditLog(tmp_path / "audit.jsonl"))
    admin = Admin(gateway, door, 0, LiveFeed(gateway, door, dict), wiring_with())
    port = loop.run_until_complete(admin.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(admin.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def send(url, method, path, body=None, **headers):
    conn = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    named = {"content-type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    conn.request(method, path, body, named)
    answer = conn.getresponse()
    out = answer.status, json.loads(answer.read())
    conn.close()
    return out


def test_it_listens_on_the_loopback_only(url):
    port = int(url.rpartition(":")[2])
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        with pytest.raises(OSError, match=r"refused"):
            socket.create_connection(("127.0.0.2", port), timeout=2)


def test_pages_of_other_origins_can_not_change_anything(url, gateway):
    before = gateway.routing()
    change = json.dumps({"changes": {"kappa": 1}})
    assert send(url, "POST", "/v1/settings", change, content_type="text/plain")[0] == 415
    assert send(url, "POST", "/v1/settings", change, host="evil.example")[0] == 403
    assert send(url, "GET", "/v1/settings", host="evil.example:8010")[0] == 403
    assert gateway.routing() == before


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"changes": {}}', "changes: got an object, expected an object of length >= 1"),
        (json.dumps({"changes": {str(n): 1 for n in range(33)}}), "of length <= 32"),
        ('{"reason": "x"}', "field 'changes' is missing"),
        ('{"changes": {"kappa": 1}, "by": "controller"}', "got the field 'by'"),
        ('{"changes": {"kappa": 1000}}', "expected 0 to 100"),
        ('{"changes": {"kappa": 1}, "reason": 5}', "expected a text"),
        ("[" * 100_000, "expected an object"),
        ('{"changes": {"kappa": ' + "[" * 100_000, "nested too deeply"),
        ('{"changes": {"kappa": 1}, "reason": "' + "x" * (2 << 20) + '"}', "expected at most"),
    ],
)
def test_bad_bodies_are_refused_with_the_reason(url, body, text):
    status, answer = send(url, "POST", "/v1/settings", body)
    assert status == 400
    assert text in answer["error"]


def test_set_changes_lists_and_takes_back_and_audit_tells_it(url, gateway):
    run = CliRunner().invoke
    changed = run(set_command.app, ["kappa=20", "objective.e2e=2", "--reason", "why", "--url", url])
    assert changed.exit_code == 0, changed.output
    assert json.loads(gateway.routing())["queue"]["kappa"] == 20
    assert json.loads(gateway.routing())["policy"]["e2e"] == 2
    assert "kappa                 20" in run(set_command.app, ["--url", url]).output
    undone = run(set_command.app, ["--roll-back", "--url", url])
    assert undone.exit_code == 0, undone.output
    assert json.loads(gateway.routing())["queue"]["kappa"] == 10
    reported = run(audit_command.app, ["--url", url]).output
    assert "hand" in reported
    assert "[rolled back]" in reported
    assert "why" in reported
    wrong = run(set_command.app, ["kapa=1", "--url", url])
    assert (wrong.exit_code, "did you mean 'kappa'" in wrong.output) == (2, True)
    assert run(set_command.app, ["kappa", "--url", url]).exit_code == 2
    assert run(set_command.app, ["kappa=1", "--url", "http://127.0.0.1:1"]).exit_code == 1


def test_receipt_is_found_by_its_request_id(gateway, tmp_path):
    upstream = socket.create_server(("127.0.0.1", 0))

    def answer():
        conn, _ = upstream.accept()
        with conn:
            conn.recv(65536)
            conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    threading.Thread(target=answer).start()
    address = f"http://127.0.0.1:{upstream.getsockname()[1]}"
    routing = {"policy": {"name": "toll"}, "receipts": 4}
    native = Gateway(
        json.dumps({"listen": "127.0.0.1:0", "routing": routing, "upstreams": [address]})
    )
    native.upsert_model(json.dumps({"name": "m", "block_size": 4}))
    native.upsert_worker(json.dumps(WORKER))
    port = native.start()

    async def look() -> list[tuple[int, dict]]:
        found = []
        for gate, count in ((native, 4), (gateway, 0)):
            door = Door(gate, AuditLog(tmp_path / "a.jsonl"))
            admin = Admin(gate, door, 0, LiveFeed(gate, door, dict), wiring_with(count))
            api = f"http://127.0.0.1:{await admin.start()}"
            found += [
                await asyncio.to_thread(send, api, "GET", f"/v1/receipts/{name}")
                for name in ("a%2Fb", "other")
            ]
            await admin.stop()
        return found

    body = json.dumps({"model": "m", "prompt": [1, 2, 3, 4]})
    headers = {"x-request-id": "a/b", "host": f"127.0.0.1:{port}"}
    assert send(f"http://127.0.0.1:{port}", "POST", "/v1/completions", body, **headers)[0] == 200
    (status, receipt), unknown, off, _ = asyncio.run(look())
    assert (status, receipt["request_id"]) == (200, "a/b")
    assert receipt["legs"][0]["worker"]["instance"] == WORKER["instance"]
    assert unknown[0] == off[0] == 404
    assert "expected the x-request-id of one of the last 4 requests" in unknown[1]["error"]
    assert "start with --receipts N" in off[1]["error"]
    native.stop()
    upstream.close()


def test_curves_are_printed_drawn_saved_and_restored(url, gateway, tmp_path):
    run = CliRunner().invoke
    file, picture = tmp_path / "curves.json", tmp_path / "curves.png"
    shown = run(curves_command.app, ["--url", url, "--save", str(file), "--plot", str(picture)])
    assert shown.exit_code == 0, shown.output
    assert "7/0" in shown.output
    assert picture.read_bytes()[:4] == b"\x89PNG"
    units = json.loads(run(curves_command.app, ["--url", url, "--json"]).output)["units"]
    assert units["step"]["coefficients"] == ["s", "s/sequence", "s/token"]
    content = json.loads(file.read_text())
    content["pools"][0]["record"]["fleet"]["step"]["theta"][0] = 0.25
    file.write_text(json.dumps(content))
    restored = run(curves_command.app, ["--url", url, "--restore", str(file)])
    assert "1 workers" in restored.output
    (pool,) = json.loads(gateway.curves())
    assert pool["record"]["fleet"]["step"]["theta"][0] == 0.25
    content["version"] = 9
    file.write_text(json.dumps(content))
    assert run(curves_command.app, ["--url", url, "--restore", str(file)]).exit_code == 2


def test_without_shadows_the_command_says_how_to_get_some(url):
    status, answer = send(url, "GET", "/v1/shadows")
    assert (status, "start it with --shadows" in answer["error"]) == (404, True)
    shown = CliRunner().invoke(shadows_command.app, ["--url", url])
    assert (shown.exit_code, "--shadows" in shown.output) == (1, True)


def test_shadows_are_printed_as_a_table_and_as_json(tmp_path):
    arms = [{"name": "sticky", "policy": {"name": "sticky"}}]
    fast = {"tick_s": 0.2, "window_ticks": 8, "warm_ticks": 0, "lag_s": 0}
    native = Gateway(json.dumps({"listen": "127.0.0.1:0", "shadows": {"policies": arms, **fast}}))
    native.upsert_model(json.dumps({"name": "m", "block_size": 4}))
    with serving(native, tmp_path) as url:
        run = CliRunner().invoke
        wait_until(lambda: "no worker yet" in run(shadows_command.app, ["--url", url]).output)
        native.upsert_worker(json.dumps(WORKER))
        wait_until(lambda: "in_force" in run(shadows_command.app, ["--url", url]).output)
        table = run(shadows_command.app, ["--url", url]).output
        assert "m (aggregated), 1 workers: in doubt: too few complete ticks yet" in table
        assert "did not report their KV capacity" in table
        assert "sticky" in table
        (model,) = json.loads(run(shadows_command.app, ["--url", url, "--json"]).output)
        assert [policy["name"] for policy in model["policies"]] == ["in_force", "sticky"]
    native.stop()


def test_curves_outlive_a_restart_and_a_damaged_file_is_left_behind(gateway, tmp_path):
    file = tmp_path / "curves.json"
    (pool,) = json.loads(gateway.curves())
    pool["record"]["fleet"]["prefill"]["theta"][0] = 0.125
    gateway.restore_curves("m", "aggregated", json.dumps(pool["record"]))
    saved = SavedCurves(gateway, file)
    saved.load()
    saved.save()
    second = Gateway('{"listen": "127.0.0.1:0"}')
    second.upsert_model(json.dumps({"name": "m", "block_size": 4}))
    later = SavedCurves(second, file)
    later.load()
    later.restore()
    later.save()  # its workers are not there yet: what was read must not be lost
    second.upsert_worker(json.dumps(WORKER))
    later.restore()
    (after,) = json.loads(second.curves())
    assert after["record"]["fleet"]["prefill"]["theta"][0] == 0.125
    second.stop()
    file.write_text("{")
    SavedCurves(gateway, file).load()


class Broken:
    """A gateway whose status fails."""

    def __init__(self, gateway):
        self._gateway = gateway

    def __getattr__(self, name):
        return getattr(self._gateway, name)

    def status(self):
        raise RuntimeError("no status now")


def test_failure_behind_a_request_costs_that_request_only(gateway, tmp_path):
    with serving(Broken(gateway), tmp_path) as url:
        status, answer = send(url, "GET", "/v1/status")
        assert (status, answer["error"]) == (
            500,
            "the request failed: RuntimeError: no status now",
        )
        assert send(url, "GET", "/v1/settings")[0] == 200
