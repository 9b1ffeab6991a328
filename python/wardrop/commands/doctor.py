"""`wardrop doctor`: prove the wiring of a running router end to end."""

from __future__ import annotations

from typing import Annotated

import typer

from wardrop.commands.admin_client import URL_HELP, AdminError, admin_url
from wardrop.doctor.canary import run_canaries
from wardrop.doctor.checks import run_checks
from wardrop.doctor.finding import Finding, as_json, as_text, exit_code
from wardrop.doctor.router_client import connect

NO_ROUTER = 3
_NO_ADDRESS = Finding(
    "canary",
    "skipped",
    "no address for canaries: the picker does not name the proxy before it",
    "give the address of the proxy: wardrop doctor http://PROXY:PORT",
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def doctor(
    url: Annotated[
        str | None,
        typer.Argument(
            help="public address of the router, or of the proxy before a picker "
            "[default: as the router reports]"
        ),
    ] = None,
    admin: Annotated[str | None, typer.Option("--admin-url", help=URL_HELP)] = None,
    as_json_text: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    canaries: Annotated[
        bool, typer.Option(help="send short prompts of random token ids to each model")
    ] = True,
    strict: Annotated[bool, typer.Option(help="a warning is a failure")] = False,
) -> None:
    """Prove the wiring of a running router, from versions to cached blocks, and say what to do.

    The address is the admin API of `wardrop dynamo` and `wardrop serve`, http_listen of `wardrop
    picker` and `wardrop select`, or the port of `wardrop frontend`. The doctor asks which of them
    answers.

    Exit code 0: no check failed. 1: a check failed. 2: the command line is wrong. 3: no router
    answers. The canaries are a few short completions per model.
    """
    try:
        router = connect(admin_url(admin), url.rstrip("/") if url else None)
        facts = router.facts()
        findings = run_checks(facts)
        if canaries and not router.takes_canaries:
            findings.append(_NO_ADDRESS)
        elif canaries:
            for model in facts.status.models:
                findings += run_canaries(router, model, facts.door)
    except AdminError as error:
        typer.echo(f"wardrop doctor: {error}", err=True)
        raise typer.Exit(NO_ROUTER) from None
    typer.echo(as_json(findings, strict) if as_json_text else as_text(findings))
    raise typer.Exit(exit_code(findings, strict))
