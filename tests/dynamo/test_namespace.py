from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from wardrop.dynamo import namespace

SHOW = (
    "import socket; from wardrop.dynamo import namespace as n\n"
    "s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname())\n"
    "print(n.is_private(), [name for _, name in socket.if_nameindex()])"
)


def run_inside(*command: str, **options) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "wardrop.dynamo.namespace", "--", *command]
    run = subprocess.run(launcher, capture_output=True, text=True, timeout=60, **options)
    if run.returncode == 125:
        assert "0.0.0.0" in run.stderr, "a refusal must say what Dynamo exposes"
        pytest.skip(f"the kernel refuses: {run.stderr}")
    return run


def test_command_runs_with_a_working_loopback_and_nothing_else():
    assert run_inside(sys.executable, "-c", SHOW).stdout.split("\n")[0] == "True ['lo']"


def test_exit_code_is_that_of_the_command():
    assert run_inside("sh", "-c", "exit 7").returncode == 7


def test_unknown_command_is_reported():
    run = run_inside("no-such-command-at-all")
    assert run.returncode == 127
    assert "no-such-command-at-all" in run.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_enter_by_a_user_namespace_and_keep_their_id():
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("no /usr/bin/python3 that another user could run")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        launcher = (
            Path(folder) / "namespace.py"
        )  # the package may lie in a folder that only root can read
        launcher.write_text(Path(namespace.__file__).read_text())
        show = "import os, socket; print(os.getuid(), [n for _, n in socket.if_nameindex()])"
        run = subprocess.run(
            [python, str(launcher), "--", python, "-c", show],
            capture_output=True,
            text=True,
            timeout=60,
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
        )
    if run.returncode == 125:
        assert "0.0.0.0" in run.stderr
        pytest.skip(f"the kernel refuses: {run.stderr}")
    assert run.stdout == "65534 ['lo']\n", run.stderr


def test_process_with_threads_is_pointed_to_the_launcher():
    script = (
        "import threading, time, os\n"
        "from wardrop.dynamo import namespace\n"
        "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
        "namespace.os.geteuid = lambda: 1000\n"  # as if not root: the road by a user namespace
        "try: namespace._leave_network()\n"
        "except namespace.NamespaceRefusedError as error: print(error)\n"
        "os._exit(0)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "start it with `python -m wardrop.dynamo.namespace -- COMMAND`" in run.stdout
