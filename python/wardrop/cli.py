"""The `wardrop` command: a subcommand's module is imported only when it is called.

`wardrop --help` and `--version` therefore cost a bare interpreter start. A subcommand is a line in
`SUBCOMMANDS`: a module with a typer application named `app`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple


class Subcommand(NamedTuple):
    """Where a subcommand lives and what it does."""

    module: str
    says: str


SUBCOMMANDS = {
    "dynamo": Subcommand("wardrop.dynamo.command", "route requests in front of NVIDIA Dynamo"),
    "demo": Subcommand("wardrop.demo.command", "compare routers on a real Dynamo, mock workers"),
    "replay": Subcommand("wardrop.replay.command", "run traces through the router in a simulator"),
    "set": Subcommand("wardrop.control.set_command", "change a running router, or take it back"),
    "curves": Subcommand("wardrop.control.curves_command", "learned latency curves of a router"),
    "shadows": Subcommand("wardrop.control.shadows_command", "what other policies would give"),
    "audit": Subcommand("wardrop.control.command", "print what was changed, by whom, and why"),
    "games": Subcommand("wardrop.games.cli", "the routing games: analysis and plots"),
}


def installed() -> dict[str, Subcommand]:
    """The subcommands that this installation has."""
    return {name: sub for name, sub in SUBCOMMANDS.items() if _exists(sub.module)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script and of `python -m wardrop`; ends with an exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help_text())
        raise SystemExit(0 if given else 2)
    if given[0] in ("-V", "--version", "version"):
        print(f"wardrop {importlib.metadata.version('wardrop')}")
        raise SystemExit(0)
    known = installed()
    if given[0] not in known:
        print(f"wardrop: {_unknown(given[0], list(known))}", file=sys.stderr)
        raise SystemExit(2)
    app: Any = importlib.import_module(known[given[0]].module).app
    app(args=given[1:], prog_name=f"wardrop {given[0]}")


def _help_text() -> str:
    rows = "\n".join(f"  {name:<9} {sub.says}" for name, sub in installed().items())
    return (
        "usage: wardrop SUBCOMMAND [OPTION…]\n\n"
        "KV-cache-aware request router for disaggregated LLM inference.\n\n"
        f"subcommands:\n{rows}\n\n"
        "options:\n  --version  print the version\n  --help     print this text\n\n"
        "`wardrop SUBCOMMAND --help` lists its options, each with its variable and default."
    )


def _unknown(got: str, known: list[str]) -> str:
    near = get_close_matches(got, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
    return f"got subcommand {got!r}, which does not exist; {hint} `wardrop --help` lists them"


def _exists(module: str) -> bool:
    # By its file: `find_spec` would import the packages above it, and those may load numpy.
    return Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file()
