from __future__ import annotations

import os
import subprocess
import sys


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
    assert complete("wardrop d") == ["dynamo", "demo"]
    assert "--roll-back" in complete("wardrop set --r")
    assert complete("wardrop games sp") == ["split"]


def test_version_is_an_attribute_and_an_option():
    import wardrop as package

    assert wardrop("--version").stdout.split() == ["wardrop", package.__version__]


def test_a_missing_package_names_the_extra_to_install():
    script = (
        "import sys; sys.modules['aiohttp'] = None; from wardrop.cli import main\n"
        "main(['dynamo', '--upstream', 'http://127.0.0.1:1'])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "pip install 'wardrop[dynamo]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_every_flag_shows_its_variable_and_default():
    run = wardrop("dynamo", "--help")
    assert run.returncode == 0
    flags = [line for line in run.stdout.splitlines() if line.strip().startswith("--")]
    assert len(flags) > 40
    text = " ".join(run.stdout.split())
    assert text.count("[default: ") >= 40
    assert text.count("[env: WARDROP_") >= 40


def test_bad_values_are_refused_before_anything_starts():
    for arguments, says in (
        (("--http-port", "x"), "--http-port: got 'x', expected a whole number"),
        (("--policy", ""), "routing.policy"),
        (("--policy", "tol"), 'routing.policy: unknown policy "tol"; one of round_robin'),
        (("--shadows", "dynamo;toll(kapa=1)"), "shadows.policies: toll(kapa=1): policy toll"),
        (("--queue-parameters", "kappa=5"), "got kappa without a queue; add --queue true"),
        (("--queue", "true", "--queue-parameters", "kapa=5"), "unknown field `kapa`"),
        (("--queue", "true", "--queue-parameters", "patience=-1"), "patience = -1: expected"),
        (("--frontends", "0"), "dynamo.frontends: got 0"),
        (("--controller-moves", "kapa"), "control.moves: got kapa"),
        (("--", "--http-port", "1"), "use --http-port before `--`"),
        (("--", "--router-mode=kv"), "use --frontend-mode"),
        (("--upstream", "http://h:1", "--", "--migration-limit", "3"), "starts no frontend"),
    ):
        run = wardrop("dynamo", *arguments)
        assert run.returncode in (1, 2), run.stderr
        assert says in run.stderr
        assert "Traceback" not in run.stderr


def test_bad_variable_is_refused():
    run = wardrop("dynamo", WARDROP_FRONTENDS="many")
    assert run.returncode == 2
    assert "WARDROP_FRONTENDS: got 'many', expected a whole number" in run.stderr
