"""A run of `wardrop doctor` as a test reads it."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from wardrop.commands.doctor import app


def diagnose(admin: str, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and findings by the name of the check."""
    ran = CliRunner().invoke(app, ["--admin-url", admin, "--json", *arguments])
    assert ran.exit_code in (0, 1), ran.output
    return ran.exit_code, {one["check"]: one for one in json.loads(ran.stdout)["findings"]}
