"""Checks of a configuration that only the native module can make: policy names and parameters.

Commands call them before they start a process or open a port.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from wardrop import shadow_policies
from wardrop.config.config import Config
from wardrop.config.fields import ConfigError


def check_policy(name: str, parameters: Mapping[str, Any], source: str) -> None:
    """Refuse a policy that does not exist or does not take the parameters.

    Args:
        name: Name of the policy.
        parameters: Parameters of the policy, by name.
        source: Setting or flag that names the policy, for the error.

    Raises:
        ConfigError: The text lists what exists.
    """
    from wardrop import _core

    try:
        # Any block size will do: the router is dropped at once.
        cast(Any, _core).Router(16, name, **parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error


def check_gateway(config: Config) -> None:
    """Refuse a configuration that the native gateway would refuse.

    Raises:
        ConfigError: The text names the setting, what was received and what is expected.
    """
    from wardrop import _core

    routing = config.routing
    check_policy(routing.policy, routing.parameters, "routing.policy")
    for shadow in shadow_policies.parse(config.shadows.policies):
        policy = dict(shadow["policy"])
        name = policy.pop("name")
        check_policy(name, policy, f"shadows.policies: {shadow['name']}")
    try:
        # The gateway is dropped at once: it does not listen before `start`.
        _core.Gateway(config.gateway_json(list(config.dynamo.upstreams)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
