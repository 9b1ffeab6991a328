"""The page `reference/configuration.md`, from the dataclasses of `wardrop.config`."""

from __future__ import annotations

import inspect
from dataclasses import fields
from itertools import groupby
from typing import get_type_hints

from wardrop.config import Config, Setting, settings

HEAD = """# Configuration

`wardrop dynamo` and `wardrop serve` read each setting from four places. The strongest wins: flag,
environment variable, YAML file (`--config FILE`), default. `wardrop dynamo` has no stage `fleet`,
and `wardrop serve` has no stage `dynamo`. A key that does not exist is refused with the
nearest one that does. This page is generated from `wardrop.config`.

A setting `limits.body_bytes` is written in YAML as `limits: {body_bytes: 33554432}`.
"""


def page() -> str:
    """The whole page in Markdown: one section per stage, one table row per setting."""
    classes = get_type_hints(Config)
    order = [field.name for field in fields(Config)]
    parts = [HEAD]
    for stage, group in groupby(sorted(settings(), key=lambda s: order.index(s.stage)), key=_stage):
        about = (inspect.getdoc(classes[stage]) or "").partition("\n\n")[0]
        rows = [
            f"| `{each.key}` | `--{each.flag}`<br>`{each.variable}` "
            f"| `{each.default_text}` | {_cell(each.summary)} |"
            for each in group
        ]
        parts.append(
            f"## `{stage}`\n\n{about}\n\n| setting | flag, variable | default | meaning |\n"
            "|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(parts)


def _stage(setting: Setting) -> str:
    return setting.stage


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
