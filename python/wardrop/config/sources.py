"""Building the configuration from flags, environment variables and a YAML file.

Sources, strongest first: flags, `WARDROP_*` variables, the YAML file, the defaults of the stages.
A key, stage or variable that does not exist is refused with the nearest name that exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_type_hints

from wardrop.config.config import Config
from wardrop.config.fields import ConfigError
from wardrop.config.values import check_value, parse_text
from wardrop.yaml_file import read_yaml

_MAX_FILE_BYTES = 1 << 20
_OTHER_VARIABLES = {"WARDROP_SHARED", "WARDROP_PRIVATE_NETWORK", "WARDROP_CONFIG"}
"""Variables of the project that are no settings."""


@dataclass(frozen=True)
class Setting:
    """One setting with its name in every source.

    Attributes:
        stage: Name of the stage, such as `routing`.
        name: Name of the field in the stage.
        kind: Type of the value, as annotated in the stage.
        default: Value without any source.
        summary: One line for the help text.
        flag: Name of the flag, without the leading dashes.
    """

    stage: str
    name: str
    kind: object
    default: object
    summary: str
    flag: str

    @property
    def key(self) -> str:
        """`stage.name`, as in YAML."""
        return f"{self.stage}.{self.name}"

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return "WARDROP_" + self.flag.upper().replace("-", "_")

    @property
    def default_text(self) -> str:
        """The default as a user writes it; `none` for an empty one."""
        if isinstance(self.default, bool):
            return "true" if self.default else "false"
        if isinstance(self.default, tuple | dict):
            items = cast(Any, self.default)
            return ",".join(map(str, items)) if items else "none"
        return str(self.default) or "none"


def settings(without: str = "") -> Iterator[Setting]:
    """Every setting, in the order of the stages.

    Args:
        without: Name of a stage that is left out, because a command does not have it.
    """
    for stage in fields(Config):
        if stage.name == without:
            continue
        kind = cast(type[Any], get_type_hints(Config)[stage.name])
        hints = get_type_hints(kind)
        defaults = kind()
        for item in fields(kind):
            flag = item.metadata["flag"] or f"{stage.name}-{item.name}".replace("_", "-")
            default = getattr(defaults, item.name)
            summary = item.metadata["summary"]
            yield Setting(stage.name, item.name, hints[item.name], default, summary, flag)


def load(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    file: Path | None = None,
    *,
    without: str = "fleet",
    defaults: Mapping[str, object] | None = None,
) -> Config:
    """Build the configuration from all sources.

    Args:
        flags: Text of a flag by the key of its setting, `stage.name`.
        environment: The process environment, of which only `WARDROP_*` is read.
        file: YAML file, or None.
        without: Stage that the command does not have.
        defaults: Values in place of the defaults of the stages, by key.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or is out of range.
    """
    known = {setting.key: setting for setting in settings(without)}
    values: dict[str, object] = dict(defaults or {})
    if file is not None:
        values.update(_read_yaml(file, known))
    _refuse_misspelt_variables(environment)
    for setting in known.values():
        if setting.variable in environment:
            text = environment[setting.variable]
            values[setting.key] = parse_text(setting.kind, text, setting.variable)
        if setting.key in flags:
            values[setting.key] = parse_text(setting.kind, flags[setting.key], f"--{setting.flag}")
    stages: dict[str, Any] = {}
    hints = get_type_hints(Config)
    for stage in fields(Config):
        given = {
            key.partition(".")[2]: value
            for key, value in values.items()
            if key.startswith(f"{stage.name}.")
        }
        stages[stage.name] = hints[stage.name](**given)
    return Config(**stages)


def _read_yaml(file: Path, known: Mapping[str, Setting]) -> dict[str, object]:
    content = read_yaml(file, _MAX_FILE_BYTES, ConfigError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: got {type(content).__name__}, expected a mapping of stages")
    stages = sorted({setting.stage for setting in known.values()})
    values: dict[str, object] = {}
    for stage, items in cast(dict[object, object], content).items():
        if stage not in stages:
            raise ConfigError(_unknown(f"{file}: stage", str(stage), stages))
        if not isinstance(items, dict):
            raise ConfigError(f"{file}: {stage}: expected a mapping, got {type(items).__name__}")
        for name, value in cast(dict[object, object], items).items():
            setting = known.get(f"{stage}.{name}")
            if setting is None:
                names = [s.name for s in known.values() if s.stage == stage]
                raise ConfigError(_unknown(f"{file}: {stage}: key", str(name), names))
            values[setting.key] = check_value(setting.kind, value, f"{file}: {setting.key}")
    return values


def _refuse_misspelt_variables(environment: Mapping[str, str]) -> None:
    """Refuse a `WARDROP_*` variable whose name is close to the name of a setting.

    Variables with other names pass: Kubernetes adds `WARDROP_SERVICE_HOST`, `WARDROP_PORT` and
    more to every pod in the namespace of a service named `wardrop`.
    """
    ours = {setting.variable for setting in settings()}
    for name in environment:
        if not name.startswith("WARDROP_") or name in ours or name in _OTHER_VARIABLES:
            continue
        if re.fullmatch(r"WARDROP_(SERVICE_(HOST|PORT)\w*|PORT(_\d+_\w+)?)", name):
            continue
        if get_close_matches(name, ours, 1, 0.85):
            raise ConfigError(_unknown("environment: variable", name, sorted(ours)))


def _unknown(where: str, got: str, known: list[str]) -> str:
    near = get_close_matches(got, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    return f"{where} {got!r} is not known{hint}"
