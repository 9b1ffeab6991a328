from __future__ import annotations

import os
import subprocess
import sys

import pytest


def wardrop(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wardrop", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
    )


def test_help_lists_subcommands_and_imports_neither_typer_nor_dynamo():
    script = (
        "import sys; from wardrop.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'typer', 'rich', 'numpy', 'yaml', 'aiohttp', 'dynamo.llm', 'wardrop._core'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "dynamo" in run.stdout
    assert "heavy: []" in run.stdout


def test_unknown_subcommand_names_the_nearest():
    run = wardrop("dynmo")
    assert run.returncode == 2
    assert "Did you mean 'dynamo'" in run.stderr


def test_shell_completion_knows_subcommands_and_their_options():
    def complete(line: str) -> list[str]:
        words = line.split(" ")
        request = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return wardrop(_WARDROP_COMPLETE="complete_bash", **request).stdout.split()

    # `python -m wardrop` is the program `wardrop` for typer, so the variable has one name.
    assert complete("wardrop d") == ["dynamo", "demo", "doctor"]
    assert "--roll-back" in complete("wardrop set --r")
    assert complete("wardrop games sp") == ["split"]


def test_version_is_an_attribute_and_an_option():
    import wardrop as package

    assert wardrop("--version").stdout.split() == ["wardrop", package.__version__]


@pytest.mark.parametrize(
    ("package", "arguments", "extras"),
    [
        ("aiohttp", ["dynamo", "--upstream", "http://127.0.0.1:1"], "dynamo"),
        ("matplotlib", ["demo"], "dynamo,plot"),
    ],
)
def test_a_missing_package_names_the_extra_to_install(package, arguments, extras):
    script = (
        f"import sys; sys.modules[{package!r}] = None; from wardrop.cli import main\n"
        f"main({arguments!r})"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert f"pip install 'wardrop[{extras}]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_every_flag_shows_its_default_in_the_section_of_its_stage():
    from wardrop.config import settings

    run = wardrop("dynamo", "--help", COLUMNS="80")
    assert run.returncode == 0
    every = list(settings("fleet"))
    sections = [line.split()[0] for line in run.stdout.splitlines() if line.endswith("):")]
    assert sections == list(dict.fromkeys(setting.stage for setting in every))
    text = " ".join(run.stdout.split())
    with_default = [setting for setting in every if setting.default_text != "none"]
    assert text.count("[default: ") == len(with_default)
    assert "--frontend-mode kv|direct|round-robin" in text
    assert all(f"--{setting.flag} " in text for setting in every)
    assert "WARDROP_HTTP_PORT" in text


def test_switches_take_no_value():
    run = wardrop("dynamo", "--queue", "true", "--policy", "toll")
    assert run.returncode == 2
    assert "write --queue or --no-queue" in run.stderr
    assert "--no-bootstrap" in wardrop("dynamo", "--help").stdout


def test_bad_values_are_refused_before_anything_starts():
    for arguments, says in (
        (("--http-port", "x"), "--http-port: got 'x', expected a whole number"),
        (("--policy", ""), "routing.policy"),
        (("--policy", "tol"), 'routing.policy: unknown policy "tol"; one of round_robin'),
        (("--shadows", "dynamo;toll(kapa=1)"), "shadows.policies: toll(kapa=1): policy toll"),
        (("--no-queue", "--queue-parameters", "kappa=5"), "kappa without a queue; leave out"),
        (("--queue-parameters", "kapa=5"), "unknown field `kapa`"),
        (("--queue-parameters", "patience=-1"), "patience = -1: expected"),
        (("--frontends", "0"), "dynamo.frontends: got 0"),
        (("--controller-moves", "kapa"), "control.moves: got kapa"),
        (("--", "--http-port", "1"), "use --http-port before `--`"),
        (("--", "--router-mode=kv"), "use --frontend-mode"),
        (("--upstream", "http://h:1", "--", "--migration-limit", "3"), "starts no frontend"),
        (("--upstream", "http://h:99999"), "got address 'http://h:99999', expected http://HOST"),
        (("--upstream", "http://h:x"), "expected http://HOST:PORT"),
        (("--upstream", "http://h:1/path"), "http://h:1/path"),
        (("--etcd-endpoints", "etcd:2379"), "got address 'etcd:2379'"),
        (
            ("--upstream", "http://h:1", "--discovery", "frontend", "--event-endpoint", "x@y"),
            "dynamo.event_endpoints: got event endpoint 'x@y'",
        ),
        (("--http-host", "no host"), "no host"),
        (("--dynamo-python", "/no/such/python"), "dynamo.python: got '/no/such/python'"),
        (("--audit-file", "/no/such/folder/a.jsonl"), "control.audit_file: got"),
        (("--curves-file", "/"), "control.curves_file: got '/', but it is a folder"),
        (("--index-file", "/no/such/folder/i"), "index.file: got"),
        (("--index-file", "/tmp/" + "x" * 300), "index.file: got"),
        (("--timing-table", "/no/such.npz"), "control.timing_table: "),
        (("--timing-table", "/etc/passwd", "--upstream", "http://h:1"), "control.timing_table: "),
        (("--config", "/no/such.yaml"), "/no/such.yaml: cannot be read as YAML"),
        (("--log-level", "loud"), "log.level: got 'loud'"),
        (("--controller-prometheus", "metrics:9090"), "control.prometheus: got address"),
    ):
        run = wardrop("dynamo", *arguments)
        assert run.returncode == 2, (arguments, run.stderr)
        assert says in run.stderr
        assert "Traceback" not in run.stderr


def test_bad_variable_is_refused():
    run = wardrop("dynamo", WARDROP_FRONTENDS="many")
    assert run.returncode == 2
    assert "WARDROP_FRONTENDS: got 'many', expected a whole number" in run.stderr
