"""Decision records: every ending of a request, limits of the files, faults of the disk, privacy."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest
from tests.gateway.held import background, waits
from tests.waiting import wait_until

from wardrop.traces import read_trace
from wardrop.traces.records import Record, Settings

PROMPT = [4711, 4712, 4713, 4714, *range(60)]
OSL_HINT = {"nvext": {"agent_hints": {"osl": 9}}}
LINE = msgspec.json.Decoder(Record)
USAGE = {
    "prompt_tokens": 64,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 16},
}


def start(serve, folder: Path, workers=(1, 2, 3), receipts=0, **options):
    routing = {"policy": {"name": "toll"}, "receipts": receipts, **options.pop("routing", {})}
    return serve(workers=workers, routing=routing, records={"dir": str(folder), **options})


def lines(folder: Path) -> list[dict]:
    texts = [path.read_text() for path in sorted(folder.glob("requests-*.jsonl"))]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def records(folder: Path) -> list[Record]:
    """Every request of a folder, decoded by the documented schema, unknown fields refused."""
    requests = [line for line in lines(folder) if line["schema"] == "wardrop.record/1"]
    found = [LINE.decode(json.dumps(line)) for line in requests]
    for one, line in zip(found, requests, strict=True):
        assert msgspec.to_builtins(one) == line, "the schema names every field"
    return found


def written(folder: Path, count: int) -> list[Record]:
    wait_until(lambda: folder.exists() and len(records(folder)) >= count, f"{count} records")
    return records(folder)


def usage_answer(seen, conn):
    body = json.dumps({"choices": [], "usage": USAGE}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


@pytest.mark.parametrize("receipts", [0, 8])
def test_record_holds_arrival_price_and_outcome_with_and_without_receipts(
    upstream, serve, tmp_path, receipts
):
    upstream.script = usage_answer
    folder = tmp_path / "records"
    running = start(serve, folder, receipts=receipts)
    running.gateway.set_figures(json.dumps({"regime": 1}))
    before_s = time.time()
    headers = {"x-request-id": "abc", "x-tenant-id": "secret-tenant"}
    assert running.complete(PROMPT, headers=headers, **OSL_HINT)[0] == 200
    [one] = written(folder, 1)
    assert before_s - 1 < one.arrived_s < time.time()
    assert (one.request_id, one.model, one.block_size) == ("abc", "m", 4)
    assert (one.input_tokens, len(one.block_ids), one.is_estimated) == (64, 16, False)
    assert (one.expected_output_tokens, one.is_streamed) == (9, False)
    assert (one.regime, one.policy, one.settings_version) == ("transition", "toll", 1)
    [leg] = one.legs
    pinned = int(upstream.seen[0].header("x-dynamo-worker-instance-id"))
    assert (leg.role, leg.worker.instance, leg.candidates) == ("aggregated", pinned, 3)
    assert leg.parts["own_first_token_s"] > 0
    assert sum(leg.parts.values()) == pytest.approx(leg.cost)
    assert (leg.waited_s, leg.cause, leg.at_once) == (0, "at_once", None)
    end = one.outcome
    assert (end.how, end.status, end.input_tokens, end.output_tokens) == ("finished", 200, 64, 7)
    assert (end.cached_tokens, end.predicted_cached_tokens) == (16, 0)
    assert 0 < end.ttft_s <= end.e2e_s < 10
    assert (running.gateway.receipt("abc") is not None) == (receipts > 0)
    first = lines(folder)[0]
    settings = msgspec.json.decode(json.dumps(first), type=Settings)
    assert msgspec.to_builtins(settings) == first
    assert (settings.version, settings.policy["name"]) == (1, "toll")
    wait_until(lambda: running.metric("records_written_total") == 1)
    text = "".join(path.read_text() for path in folder.glob("requests-*"))
    assert "secret-tenant" not in text
    # Four digits may stand in an id by chance, so the test looks for two tokens in a row.
    assert not re.search(r"4711\D+4712", text), "nothing of a prompt"


def test_equal_prefixes_have_equal_ids_and_a_key_file_keeps_them_over_a_restart(serve, tmp_path):
    key = tmp_path / "key"
    key.write_text("00112233445566778899aabbccddeeff\n")
    folder = tmp_path / "records"
    ids = []
    for options in ({"key_file": str(key)}, {"key_file": str(key)}, {}):
        running = start(serve, folder, **options)
        had = len(records(folder)) if folder.exists() else 0
        running.complete(PROMPT)
        running.complete([*PROMPT[:8], *range(500, 508)])
        running.complete(PROMPT, cache_salt="salt")
        running.gateway.stop()
        ids.append([one.block_ids for one in records(folder)[had:]])
    assert len(ids[0]) == 3, "a stopped router has written everything"
    whole, shared, salted = ids[0]
    assert shared[:2] == whole[:2]
    assert not set(shared[2:]) & set(whole)
    assert not set(salted) & set(whole), "a salt is a cache of its own"
    assert ids[1] == ids[0]
    assert not set(ids[2][0]) & set(whole), "without a key file each start has its own key"
    assert all(0 <= each < 2**53 for each in whole), "exact in every reader of JSON"


def test_ids_are_no_hashes_that_others_can_compute(serve, tmp_path):
    from wardrop import _core

    folder = tmp_path / "records"
    start(serve, folder).complete(PROMPT)
    [one] = written(folder, 1)
    hashes = _core.sequence_hashes(_core.block_hashes(PROMPT, 4))
    assert not {int(each) >> 11 for each in hashes} & set(one.block_ids)


def test_every_ending_has_one_record(upstream, serve, engines, tmp_path):
    folder = tmp_path / "records"
    queue = {"queue": {"backlog_s": 1e-9, "max_requests": 2}}
    running = start(serve, folder, workers=(1,), routing=queue)
    answers: list = []
    threads = background(running, 1, answers, {"x-request-id": "first"})
    assert engines.arrived.acquire(timeout=10)
    # A client that leaves while its request waits in the queue.
    conn = http.client.HTTPConnection("127.0.0.1", running.port)
    body = json.dumps({"model": "m", "prompt": PROMPT})
    named = {"content-type": "application/json", "x-request-id": "left"}
    conn.request("POST", "/v1/completions", body, named)
    waits(running, 1)
    threads += background(running, 1, answers, {"x-request-id": "waited"})
    waits(running, 2)
    assert running.complete(PROMPT, headers={"x-request-id": "refused"})[0] == 429
    conn.sock.close()
    waits(running, 1)
    engines.finish(threads)
    upstream.script = lambda seen, conn: b"HTTP/1.1 400 no\r\ncontent-length: 2\r\n\r\n{}"
    assert running.complete(PROMPT, headers={"x-request-id": "wrong"})[0] == 400

    def stream(seen, conn):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        event = b'data: {"choices": [{"text": "a"}]}\n\n'
        chunk = b"%x\r\n%s\r\n" % (len(event), event)
        # The last chunk is missing: the upstream breaks off.
        conn.sendall(head + b"transfer-encoding: chunked\r\n\r\n" + chunk + chunk)

    upstream.script = stream
    running.complete(PROMPT, headers={"x-request-id": "broken"}, stream=True)
    found = {one.request_id: one for one in written(folder, 6)}
    assert len(records(folder)) == len(found) == 6
    ends = {name: (one.outcome.how, one.outcome.status) for name, one in found.items()}
    assert ends["first"] == ends["waited"] == ("finished", 200)
    assert ends["left"] == ("client_left", 0)
    assert ends["refused"] == ("refused", 429)
    assert ends["wrong"][1] == 400
    assert ends["broken"] == ("broken", 200)
    assert found["broken"].outcome.output_tokens == 2, "two events in one read are two tokens"
    waited = found["waited"].legs[0]
    assert waited.waited_s == found["waited"].queued_s > 0
    assert waited.at_once.worker.instance == 1
    assert waited.at_once.gained_s == pytest.approx(
        waited.at_once.cost - waited.cost - waited.waited_s
    )
    assert found["first"].legs[0].at_once is None


def test_change_of_settings_has_a_version_and_each_file_names_it(serve, tmp_path):
    folder = tmp_path / "records"
    running = start(serve, folder, file_bytes=4096, all_bytes=1 << 20)
    running.complete(PROMPT)
    running.gateway.set_routing(json.dumps({"policy": {"name": "round_robin"}}))
    running.gateway.set_routing(json.dumps({"policy": {"name": "round_robin"}}))
    for _ in range(12):
        running.complete(PROMPT)
    found = written(folder, 13)
    assert [(one.settings_version, one.policy) for one in found[:2]] == [
        (1, "toll"),
        (2, "round_robin"),
    ]
    files = sorted(folder.glob("requests-*.jsonl"))
    assert len(files) > 1
    for path in files:
        assert path.stat().st_size <= 4096
        known: set[int] = set()
        for line in map(json.loads, path.read_text().splitlines()):
            if line["schema"] == "wardrop.settings/1":
                known.add(line["version"])
            else:
                assert line["settings_version"] in known, "each file stands alone"


def test_all_files_keep_their_limit_and_the_newest_stay(serve, tmp_path):
    folder = tmp_path / "records"
    running = start(serve, folder, file_bytes=4096, all_bytes=8192)
    for number in range(40):
        running.complete(PROMPT, headers={"x-request-id": f"r{number}"})
    wait_until(lambda: running.metric("records_written_total") == 40, "40 records")
    assert sum(path.stat().st_size for path in folder.glob("requests-*")) <= 8192
    assert records(folder)[-1].request_id == "r39"
    assert running.metric("record_files_removed_total") > 0
    assert 0 < running.metric("record_files_bytes") <= 8192
    assert running.metric("records_dropped_total") == 0


def test_record_larger_than_a_file_is_counted(serve, tmp_path):
    folder = tmp_path / "records"
    running = start(serve, folder, file_bytes=4096, all_bytes=8192)
    running.complete(list(range(4000)))
    running.complete(PROMPT)
    assert [one.input_tokens for one in written(folder, 1)] == [64]
    assert running.metric("records_dropped_total", reason="too_large") == 1


def test_folder_of_another_router_is_left_alone_and_requests_go_on(serve, tmp_path):
    folder = tmp_path / "records"
    first, second = start(serve, folder), start(serve, folder)
    first.complete(PROMPT)
    written(folder, 1)
    assert second.complete(PROMPT)[0] == 200
    wait_until(lambda: second.metric("records_dropped_total", reason="write_failed") == 1)
    assert second.metric("records_writable") == 0
    status, _, body = second.request("GET", "/health")
    part = json.loads(body)["control"]["records"]
    assert (status, part["up"], part["failures"]) == (200, False, 1)
    assert "give each router a folder of its own" in part["error"]
    first.gateway.stop()

    def recovered() -> bool:
        assert second.complete(PROMPT)[0] == 200
        return second.metric("records_writable") == 1

    wait_until(recovered, "records of the second router")
    assert json.loads(second.request("GET", "/health")[2])["control"]["records"]["up"]


DISK_FULL = """
    import http.client, json, resource, sys
    from pathlib import Path
    from tests.gateway.conftest import Running, Upstream
    from tests.waiting import wait_until
    from wardrop._core import Gateway

    upstream, folder = Upstream(), Path(sys.argv[1])
    config = {"listen": "127.0.0.1:0", "upstreams": [upstream.url],
              "records": {"dir": str(folder)}}
    gateway = Gateway(json.dumps(config))
    gateway.upsert_model(json.dumps({"name": "m", "block_size": 4}))
    gateway.upsert_worker(json.dumps({"model": "m", "role": "aggregated", "instance": 1}))
    running = Running(gateway, gateway.start())
    prompt = list(range(64))
    running.complete(prompt)
    wait_until(lambda: running.metric("records_written_total") == 1, "a record")
    [path] = folder.glob("requests-*.jsonl")
    size = path.stat().st_size
    # Writes beyond this size fail in the middle, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
    assert running.complete(prompt)[0] == 200
    lost = lambda: running.metric("records_dropped_total", reason="write_failed")
    wait_until(lambda: lost() == 1, "a loss")
    assert path.stat().st_size == size, "the file ends with a whole line"
    assert running.metric("records_writable") == 0
    part = json.loads(running.request("GET", "/health")[2])["control"]["records"]
    assert "cannot write" in part["error"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def recovered():
        assert running.complete(prompt)[0] == 200
        return running.metric("records_writable") == 1

    wait_until(recovered, "records again")
    gateway.stop()
    written = running.metric("records_written_total")
    texts = [path.read_text() for path in folder.glob("requests-*.jsonl")]
    lines = [line for text in texts for line in text.splitlines()]
    assert sum(json.loads(line)["schema"] == "wardrop.record/1" for line in lines) == written
"""


def test_full_disk_drops_records_and_nothing_else(tmp_path):
    # A process of its own: the limit on the size of files holds for all files of a process.
    code = textwrap.dedent(DISK_FULL)
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "records")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"file_bytes": 4095}, "records.file_bytes: got 4095, expected 4096 to"),
        ({"file_bytes": 5000, "all_bytes": 9999}, "records.all_bytes: got 9999, expected at least"),
        ({"dir": "/no/such/folder"}, "records.dir: got /no/such/folder, expected a folder, or"),
        ({"key_file": "/no/such/key"}, "records.key_file: cannot read /no/such/key"),
        ({"key_file": __file__}, "expected 32 hexadecimal digits; make them with: openssl rand"),
        ({"size": 1}, "unknown field `size`"),
    ],
)
def test_options_that_cannot_work_are_refused_at_the_start(serve, tmp_path, options, expected):
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
        serve(records={"dir": str(tmp_path), **options})


def test_configured_folder_is_not_touched_before_the_first_record(serve, tmp_path):
    folder = tmp_path / "records"
    start(serve, folder).gateway.stop()
    assert not folder.exists()


def test_cut_last_line_is_left_out_and_any_other_bad_line_is_named(serve, tmp_path):
    folder = tmp_path / "records"
    running = start(serve, folder)
    running.complete(PROMPT)
    running.complete(PROMPT)
    running.gateway.stop()
    [path] = folder.glob("requests-*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert len(read_trace(folder).rows) == 1
    path.write_bytes(whole[:-30] + b"\n")
    with pytest.raises(Exception, match=rf"{path.name}:3.* is not JSON"):
        read_trace(folder)
