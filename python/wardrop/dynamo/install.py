"""The version of the Dynamo that an interpreter has, and how to install one."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

INSTALL = (
    "pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1 && "
    "pip install 'pydantic>=2.10.6,<=2.13.5' uvloop 'aiohttp<4' 'kubernetes<33' msgspec "
    "prometheus-client pyzmq tqdm "
    "transformers zstandard 'redis<9' certifi"
)
"""Shell command that installs Dynamo 1.6.1 from PyPI alone.

A plain `pip install ai-dynamo` fails: PyPI alone cannot build its dependency `aisimulate`.
"""

_ASK = "import importlib.metadata as m; print(m.version('ai-dynamo'))"


class DynamoMissingError(RuntimeError):
    """An interpreter does not exist, or has no Dynamo."""


@cache
def dynamo_version(python: str = sys.executable) -> str:
    """Version of the `ai-dynamo` package that an interpreter imports.

    Args:
        python: Path of the interpreter.

    Raises:
        DynamoMissingError: The text has the command that installs Dynamo.
    """
    if not Path(python).exists():
        raise DynamoMissingError(
            f"no interpreter at {python!r}; give the path of a Python that has ai-dynamo"
        )
    answer = subprocess.run(
        [python, "-c", _ASK], capture_output=True, text=True, timeout=60, check=False
    )
    if answer.returncode != 0:
        raise DynamoMissingError(
            f"Dynamo is not installed for {python}. In a checkout `make setup` installs it; "
            f"elsewhere: {INSTALL}"
        )
    return answer.stdout.strip()
