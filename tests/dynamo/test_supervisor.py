"""The supervisor with real child processes: a stand-in frontend that misbehaves on request."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.waiting import wait_until, wait_until_async

from wardrop.config import ConfigError
from wardrop.dynamo import supervisor
from wardrop.dynamo.supervisor import (
    FrontendProcess,
    FrontendSpec,
    Launch,
    Supervisor,
    SupervisorError,
    check_arguments,
)

FRONTEND = """
import http.server, os, sys
port = int(sys.argv[sys.argv.index("--http-port") + 1])
print("listening on", port, flush=True)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


async def ready(_url: str) -> bool:
    return True


def frontend(tmp_path: Path, changed: Callable[[], None], limit: int = 10) -> FrontendProcess:
    script = tmp_path / "frontend.py"
    script.write_text(FRONTEND)
    return FrontendProcess(
        "frontend-0", Launch([sys.executable, str(script)], os.environ, limit), changed, ready
    )


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_killed_frontend_is_started_again_at_an_address_that_is_reported(tmp_path, caplog):
    caplog.set_level("INFO")
    reported: list[str | None] = []

    async def run() -> None:
        child = frontend(tmp_path, lambda: reported.append(child.url))
        task = asyncio.create_task(child.run())
        await wait_until_async(lambda: child.url is not None)
        first, pid = child.url, child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_until_async(lambda: child.url not in (None, first))
        assert child.restarts == 1
        second = child.pid
        assert second is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not alive(second), "cancelling must stop the child"
        assert reported == [first, None, reported[2], None]

    asyncio.run(run())
    assert "ended with code -9" in caplog.text
    assert "frontend-0: listening on" in caplog.text


def test_restarted_frontend_is_reported_only_when_it_is_ready(tmp_path):
    async def run() -> None:
        asked: list[str] = []

        async def at_the_third(url: str) -> bool:
            asked.append(url)
            return len(asked) >= 3

        script = tmp_path / "frontend.py"
        script.write_text(FRONTEND)
        child = FrontendProcess(
            "f", Launch([sys.executable, str(script)], os.environ, 1), lambda: None, at_the_third
        )
        task = asyncio.create_task(child.run())
        await wait_until_async(lambda: child.url is not None)
        assert len(asked) == 3
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_frontend_that_can_not_run_is_given_up_at_the_limit(tmp_path):
    async def run() -> None:
        script = tmp_path / "broken.py"
        script.write_text("raise SystemExit(7)")
        child = FrontendProcess(
            "frontend-0", Launch([sys.executable, str(script)], os.environ, 2), lambda: None, ready
        )
        async with asyncio.timeout(20):
            await child.run()

    with pytest.raises(SupervisorError, match=r"ended 3 times.*code 7"):
        asyncio.run(run())


def test_hung_frontend_is_killed_and_started_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("wardrop.dynamo.supervisor._PROBE_INTERVAL_S", 0.02)
    monkeypatch.setattr("wardrop.dynamo.supervisor._PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("wardrop.dynamo.supervisor._SECOND_PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("wardrop.dynamo.supervisor._KILL_AFTER_S", 0.5)

    async def run() -> None:
        child = frontend(tmp_path, lambda: None)
        task = asyncio.create_task(child.run())
        await wait_until_async(lambda: child.url is not None)
        pid = child.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await wait_until_async(lambda: child.url is not None and child.pid != pid)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert "does not answer any more; killing it" in caplog.text


def test_silent_frontend_loses_its_place_and_gets_it_back_with_its_next_answer(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("wardrop.dynamo.supervisor._KILL_AFTER_S", 1e6)

    async def run() -> None:
        child = frontend(tmp_path, lambda: None)
        task = asyncio.create_task(child.run())
        await wait_until_async(lambda: child.url is not None)
        first, pid = child.url, child.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await wait_until_async(lambda: child.url is None, "the silence to be noticed")
        os.kill(pid, signal.SIGCONT)
        await wait_until_async(lambda: child.url == first, "the same frontend again")
        assert (child.pid, child.restarts) == (pid, 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert "is silent; requests go to other frontends" in caplog.text
    assert "answers again" in caplog.text


def test_silence_is_known_within_two_seconds():
    longest_s = (
        supervisor._PROBE_INTERVAL_S
        + supervisor._PROBE_TIMEOUT_S
        + supervisor._SECOND_PROBE_TIMEOUT_S
    )
    assert longest_s < 2.0


def test_probe_without_a_descriptor_says_nothing_about_the_frontend(tmp_path, monkeypatch):
    monkeypatch.setattr("wardrop.dynamo.supervisor._PROBE_INTERVAL_S", 0.01)
    monkeypatch.setattr("wardrop.dynamo.supervisor._KILL_AFTER_S", 0.0)

    async def run() -> None:
        child = frontend(tmp_path, lambda: None)
        task = asyncio.create_task(child.run())
        await wait_until_async(lambda: child.url is not None)
        url, pid = child.url, child.pid
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Fewer descriptors than are open: every further one is refused with EMFILE.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            await wait_until_async(lambda: child.shortages >= 10, "probes without a descriptor")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert (child.url, child.pid, child.restarts) == (url, pid, 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_start_without_a_process_or_descriptor_is_tried_again_and_not_counted(
    tmp_path, monkeypatch, caplog
):
    start = asyncio.create_subprocess_exec
    refusals = 0

    async def refuse_twice(*arguments, **options):
        nonlocal refusals
        refusals += 1
        if refusals <= 2:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse_twice)

    async def run() -> None:
        child = frontend(tmp_path, lambda: None, limit=0)
        task = asyncio.create_task(child.run())
        await wait_until_async(lambda: child.url is not None)
        assert child.shortages == 2
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert "cannot start" in caplog.text


def test_frontend_over_its_limit_ends_nothing_while_another_answers(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("wardrop.dynamo.supervisor._FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr("wardrop.dynamo.supervisor._MAX_BACKOFF_S", 0.01)
    script = tmp_path / "frontend.py"
    script.write_text(FRONTEND)
    spec = FrontendSpec(2, "kv", (), os.environ, restart_limit=0)

    async def run() -> None:
        several = Supervisor(spec, lambda _urls: None, ready)
        good = Launch([sys.executable, str(script)], os.environ, 0)
        bad = Launch([sys.executable, "-c", "raise SystemExit(7)"], os.environ, 0)
        several.frontends = [
            FrontendProcess(name, launch, several._report, ready)
            for name, launch in (("good", good), ("bad", bad))
        ]
        monkeypatch.setattr("wardrop.dynamo.supervisor._MAX_BACKOFF_S", 0.01)
        task = asyncio.create_task(several.frontends[0].run())
        await wait_until_async(lambda: several.urls)
        keeping = asyncio.create_task(several._keep(several.frontends[1]))
        await wait_until_async(lambda: caplog.text.count("the other frontends serve") >= 2)
        assert not keeping.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(SupervisorError, match=r"bad ended 1 times"):
            await asyncio.wait_for(keeping, 60)

    asyncio.run(run())


def test_frontend_dies_with_a_killed_parent(tmp_path):
    (tmp_path / "frontend.py").write_text(FRONTEND)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import asyncio, os, sys\n"
            "from wardrop.dynamo.supervisor import FrontendProcess, Launch\n"
            "async def main():\n"
            "    tell = lambda: child.url and print(child.pid, flush=True)\n"
            "    async def ready(url): return True\n"
            "    command = [sys.executable, sys.argv[1]]\n"
            "    launch = Launch(command, os.environ, 1)\n"
            "    child = FrontendProcess('f', launch, tell, ready)\n"
            "    await child.run()\n"
            "asyncio.run(main())",
            str(tmp_path / "frontend.py"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not alive(pid), "the end of the orphan")


@pytest.mark.parametrize("flag", ["--http-port", "--router-mode=kv", "-i", "--tls-cert-path"])
def test_flags_that_are_ours_are_refused(flag):
    with pytest.raises(ConfigError, match=flag.partition("=")[0]):
        check_arguments(["--migration-limit", "3", flag])


def test_other_flags_pass():
    check_arguments(["--migration-limit", "3", "--namespace", "front"])
