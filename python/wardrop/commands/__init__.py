"""The subcommands of `wardrop`: one module per subcommand, each with a typer application `app`.

This module imports nothing heavy: `wardrop --help` prints `SUBCOMMANDS` and costs little more than
the start of an interpreter. `wardrop.commands.tree` makes the tree of commands from the same table.
"""

from __future__ import annotations

from typing import NamedTuple


class Subcommand(NamedTuple):
    """One subcommand of `wardrop`.

    Attributes:
        module: Full name of the module with the typer application `app`.
        summary: One line for the help text.
        extras: Extras of the package `wardrop` that the subcommand imports, with commas between.
    """

    module: str
    summary: str
    extras: str = ""


SUBCOMMANDS = {
    "dynamo": Subcommand(
        "wardrop.commands.dynamo", "route requests in front of NVIDIA Dynamo", "dynamo"
    ),
    "serve": Subcommand(
        "wardrop.commands.serve",
        "route requests to vLLM or SGLang servers",
        "serve",
    ),
    "frontend": Subcommand(
        "wardrop.commands.frontend", "Dynamo's frontend, with the decision in process", "frontend"
    ),
    "picker": Subcommand(
        "wardrop.commands.picker", "pick endpoints for Envoy and Gateway API gateways"
    ),
    "select": Subcommand(
        "wardrop.commands.select", "serve decisions over gRPC and Dynamo's selection API"
    ),
    "demo": Subcommand(
        "wardrop.commands.demo", "compare routers on a real Dynamo, mock workers", "dynamo,plot"
    ),
    "replay": Subcommand("wardrop.commands.replay", "run traces through the router in a simulator"),
    "advise": Subcommand(
        "wardrop.commands.advise", "advise on a trace: policy, workers, split, configuration"
    ),
    "anarchy": Subcommand("wardrop.commands.anarchy", "price of anarchy of recorded requests"),
    "config": Subcommand(
        "wardrop.commands.config", "print the defaults, check a file, print its schema"
    ),
    "set": Subcommand("wardrop.commands.set", "change settings of a running router, or undo it"),
    "curves": Subcommand("wardrop.commands.curves", "learned latency curves of a router", "plot"),
    "shadows": Subcommand("wardrop.commands.shadows", "estimates for policies not in force"),
    "top": Subcommand("wardrop.commands.top", "the live facts of a running router"),
    "receipt": Subcommand("wardrop.commands.receipt", "why one request went where it went"),
    "doctor": Subcommand("wardrop.commands.doctor", "prove the wiring of a running router"),
    "audit": Subcommand("wardrop.commands.audit", "print changes of settings: who, when and why"),
    "games": Subcommand("wardrop.commands.games", "the routing games: analysis and plots", "plot"),
}

TOPICS = {
    "route": ("dynamo", "frontend", "serve", "picker", "select"),
    "decide what to deploy": ("advise", "replay", "games", "demo"),
    "see and check": ("doctor", "top", "receipt", "shadows", "curves", "anarchy", "audit"),
    "configure": ("config", "set"),
}
"""Groups of subcommands in the help text, in order. A name without a subcommand is skipped."""
