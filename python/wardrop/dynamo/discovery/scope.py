"""The namespaces whose workers a frontend sees, by Dynamo's own rules.

A frontend has `--namespace` (an exact name) or `--namespace-prefix` (the start of a name), which
takes precedence. Neither of them, an empty one, and the name `dynamo` mean every namespace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_EVERYWHERE = ("", "dynamo")
_GENERATION = re.compile(r"-(legacy|[0-9a-f]{8})")
_TRUE = ("1", "true", "on", "yes")


@dataclass(frozen=True)
class Scope:
    """A filter of namespaces.

    Attributes:
        exact: The only namespace; None without that restriction.
        prefix: Start of every namespace; None without that restriction.
        generations: Whether a prefix admits only itself, and itself with the suffix `-legacy` or
            `-` and eight hexadecimal digits. Dynamo's operator names worker generations so.
    """

    exact: str | None = None
    prefix: str | None = None
    generations: bool = False

    def has(self, namespace: str) -> bool:
        """Whether a frontend of this scope sees the workers of a namespace."""
        if self.prefix is not None:
            rest = namespace.removeprefix(self.prefix)
            if not namespace.startswith(self.prefix):
                return False
            return not self.generations or not rest or bool(_GENERATION.fullmatch(rest))
        return self.exact is None or namespace == self.exact


def choose_scope(
    namespace: str, prefix: str, frontend_arguments: Sequence[str], environment: Mapping[str, str]
) -> Scope:
    """The scope of the frontends.

    Strongest first: flags of the frontends, settings of the router, Dynamo's own variables.

    Args:
        namespace: Setting `dynamo.namespace`; empty where it is not set.
        prefix: Setting `dynamo.namespace_prefix`; empty where it is not set.
        frontend_arguments: Flags that the started frontends get.
        environment: Variables of the process.
    """
    exact = (
        _flag(frontend_arguments, "--namespace") or namespace or environment.get("DYN_NAMESPACE")
    )
    start = (
        _flag(frontend_arguments, "--namespace-prefix")
        or prefix
        or environment.get("DYN_NAMESPACE_PREFIX")
    )
    strict = environment.get("DYN_NAMESPACE_PREFIX_STRICT", "").strip().lower() in _TRUE
    if start is not None and start != "":
        return Scope() if start in _EVERYWHERE else Scope(prefix=start, generations=strict)
    return Scope() if exact is None or exact in _EVERYWHERE else Scope(exact=exact)


def _flag(arguments: Sequence[str], name: str) -> str | None:
    """The last value of a flag, written `--flag VALUE` or `--flag=VALUE`; None without it."""
    found: str | None = None
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
    return found
