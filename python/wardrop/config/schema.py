"""The configuration file described: a JSON schema, and a commented file of all defaults."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Literal, get_args, get_origin

import msgspec

from wardrop.config.config import Config
from wardrop.config.sources import Setting, settings

_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string"}


def json_schema(without: str) -> dict[str, Any]:
    """A JSON schema (draft 2020-12) of the file that `--config` reads.

    The schema knows stages, names and types. Ranges, and settings that exclude each other, are
    checked only when the file is loaded.

    Args:
        without: stage that the command does not have.
    """
    stages = {
        stage: {
            "type": "object",
            "additionalProperties": False,
            "properties": {each.name: _value_schema(each) for each in members},
        }
        for stage, members in _by_stage(without)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of wardrop",
        "type": "object",
        "additionalProperties": False,
        "properties": stages,
    }


def defaults_file(without: str) -> str:
    """All settings with their defaults as YAML, each below its one-line description.

    Args:
        without: stage that the command does not have.
    """
    parts: list[str] = []
    for stage, members in _by_stage(without):
        parts.append(f"{stage}:")
        for each in members:
            parts.append(f"  # {each.summary}")
            parts.append(f"  {each.name}: {_yaml(each.default)}")
    return "\n".join(parts) + "\n"


def changed_settings(config: Config) -> list[tuple[str, object, object]]:
    """(key, value, default) of each setting that differs from its default."""
    rows: list[tuple[str, object, object]] = []
    for each in settings():
        value = getattr(getattr(config, each.stage), each.name)
        if value != each.default:
            rows.append((each.key, value, each.default))
    return rows


def _by_stage(without: str) -> Iterator[tuple[str, list[Setting]]]:
    for stage, members in groupby(settings(without), key=lambda each: each.stage):
        yield stage, list(members)


def _value_schema(each: Setting) -> dict[str, Any]:
    return {"description": each.summary, "default": each.default} | _kind_schema(each.kind)


def _kind_schema(kind: Any) -> dict[str, Any]:
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _kind_schema(get_args(kind)[1])}
    # The only other kind of a setting is a list of texts.
    return {"type": "array", "items": {"type": "string"}}


def _yaml(value: object) -> str:
    """A value on one line. JSON is YAML too."""
    return msgspec.json.encode(value).decode()
