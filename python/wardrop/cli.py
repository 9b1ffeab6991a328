"""Entry point of the command `wardrop` and of `python -m wardrop`.

Help and version come from a table, without typer: they cost little more than the start of an
interpreter. Every other command line goes to the tree of commands in `wardrop.commands.tree`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from wardrop.commands import SUBCOMMANDS, TOPICS

_COMPLETION = "_WARDROP_COMPLETE"
"""Variable through which a shell asks typer for completions; its presence skips the table."""

_MISSING_MODULE = 1
"""Exit code when a package that a subcommand imports is not installed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end with an exit code.

    Args:
        arguments: Command line without the program's name; `sys.argv` by default.

    Raises:
        SystemExit: Always. 0: done. 1: the command failed. 2: the command line is wrong.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if _COMPLETION in os.environ:
        _run(given)
    if not given or given in (["-h"], ["--help"], ["help"]):
        print(_help_text())
        raise SystemExit(0 if given else 2)
    if given in (["-V"], ["--version"], ["version"]):
        import wardrop

        print(f"wardrop {wardrop.__version__}")
        raise SystemExit(0)
    _run(given)


def _run(given: list[str]) -> None:
    from wardrop.commands.tree import app

    try:
        app(args=given, prog_name="wardrop")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "wardrop"):
            raise
        print(f"wardrop: {_install_hint(given[0] if given else '', package)}", file=sys.stderr)
        raise SystemExit(_MISSING_MODULE) from None


def _help_text() -> str:
    groups = [
        f"{topic}:\n"
        + "\n".join(
            f"  {name:<9} {SUBCOMMANDS[name].summary}" for name in names if name in SUBCOMMANDS
        )
        for topic, names in TOPICS.items()
    ]
    return (
        "usage: wardrop SUBCOMMAND [OPTION…]\n\n"
        "KV-cache-aware request router for disaggregated LLM inference.\n\n"
        f"{chr(10).join(groups)}\n\n"
        "options:\n"
        "  --version             print the version\n"
        "  --install-completion  complete subcommands and options in this shell\n"
        "  --help                print this text\n\n"
        "`wardrop SUBCOMMAND --help` lists the subcommand's options, each with its default."
    )


def _install_hint(name: str, package: str) -> str:
    extras = SUBCOMMANDS[name].extras if name in SUBCOMMANDS else ""
    target = f"wardrop[{extras}]" if extras else "wardrop"
    return (
        f"the Python package {package!r}, which `wardrop {name}` imports, is not installed; "
        f"run: pip install '{target}'"
    )
