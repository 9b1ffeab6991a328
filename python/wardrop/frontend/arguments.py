"""Flags of the frontend: those of `dynamo.frontend`, read by Dynamo's own parser, and Wardrop's.

Dynamo's parser is used instead of a copy, so every flag, variable, default and check is the one of
the installed Dynamo. Wardrop's settings have the flags `--wardrop-NAME`, the variables `WARDROP_*`
and the YAML file that `wardrop dynamo` has.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wardrop.config import Config, ConfigError, Setting, Tracing, check_files, load, settings
from wardrop.config.files import configured_points
from wardrop.decoding import shown

STAGES = ("routing", "predicted", "feed", "control", "shadows", "records", "peers")
"""Stages of Wardrop's configuration that a frontend has."""

ROUTER_ID = "http.router_id"
"""The setting of another stage that a frontend has."""

ABSENT = {
    "tracing": "Dynamo's exporter carries Wardrop's spans; set OTEL_EXPORT_ENABLED=1 and "
    "OTEL_EXPORTER_OTLP_ENDPOINT, as for python -m dynamo.frontend",
    "index": "the blocks are read from the workers at the start, so no file keeps them",
    "dynamo.observe": "it measures only its own decisions; --no-wardrop-decide leaves all of them "
    "to Dynamo",
    "routing.queue_hints": "the priority comes from Dynamo's own fields of a request, "
    "nvext.agent_hints, which are always read",
    "routing.explain_headers": "Dynamo writes the heads of answers; a receipt says the same",
    "http": "use Dynamo's own flags, such as --http-port",
    "limits": "Dynamo's server has limits of its own",
    "routes": "Dynamo's routes are served as they are",
    "upstream": "there is no hop to an upstream",
    "prompt": "Dynamo prepares the prompts",
    "dynamo": "no other frontend is started; use Dynamo's own flags, such as --discovery-backend",
    "fleet": "`wardrop serve` routes to engines without Dynamo",
    "log": "DYN_LOG sets the level of the log",
}
"""Settings that a frontend does not have, by stage or by setting, with the reason."""

_LOUD = (
    "tracing",
    "index",
    "dynamo.observe",
    "routing.queue_hints",
    "routing.explain_headers",
)
"""Keys of `ABSENT` that are refused in every source. The others are refused as flags only, because
a file or an environment may serve `wardrop dynamo` as well."""

_DEFAULTS: dict[str, object] = {"feed.silence_ms": 2_000, "control.admin_port": -1}
"""Defaults that differ from those of `wardrop dynamo`.

Workers send a heartbeat each second, so a stream continues elsewhere within 2.5 s. The admin API
needs a process of its own, with about 70 MB of memory, so a user turns it on.
"""

_POLICY_INSTANCES = ("router_prefill_policy", "router_decode_policy")
"""Settings of Dynamo's KV router that its configuration type does not read from JSON."""

_RESERVED = "--wardrop-"


@dataclass(frozen=True)
class FrontendArguments:
    """What the flags ask for.

    Attributes:
        settings: Settings of the native frontend, a JSON object.
        environment: Variables that Dynamo's runtime reads; None removes a variable.
        dump_config_to: File for Dynamo's dump of its configuration, or None.
        dynamo_config: Dynamo's own configuration object.
    """

    settings: dict[str, Any]
    environment: Mapping[str, str | None]
    dump_config_to: str | None
    dynamo_config: Any


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> FrontendArguments:
    """Read the flags.

    Args:
        arguments: Command line after the command's name.
        environment: Process environment, for Wardrop's variables.

    Raises:
        ConfigError: A value is wrong, or the native frontend cannot do what a flag asks for.
        SystemExit: Dynamo's parser refuses the command line (code 2) or prints its help (code 0).
    """
    parser = _parser()
    namespace, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        _refuse_absent(unknown)
        raise ConfigError(
            f"got the arguments {unknown}, expected flags of dynamo.frontend or {_RESERVED}*; "
            "`wardrop frontend --help` lists them"
        )
    ours = {name: value for name, value in vars(namespace).items() if name.startswith("wardrop__")}
    for name in ours:
        delattr(namespace, name)
    config = _dynamo_config(namespace)
    _refuse_unsupported(config)
    wardrop = _wardrop_config(ours, environment)
    native = {
        "frontend": _frontend(config),
        "wardrop": _native(wardrop),
        "decides": bool(ours["wardrop__decide"]),
        "control_plane": _control_plane(wardrop, config),
    }
    return FrontendArguments(
        settings={name: value for name, value in native.items() if value is not None},
        environment=_runtime_environment(config),
        dump_config_to=config.dump_config_to,
        dynamo_config=config,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wardrop frontend",
        description="Dynamo Frontend: HTTP+Pre-processor+Router, Wardrop's decision in process",
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=True,
    )
    _dynamo_arguments().FrontendArgGroup().add_arguments(parser)
    group = parser.add_argument_group(
        "Wardrop Options", "each is also a variable: --wardrop-policy is WARDROP_POLICY"
    )
    group.add_argument(
        "--wardrop-config", dest="wardrop__config", metavar="FILE", help="strict YAML file"
    )
    group.add_argument(
        "--wardrop-decide",
        dest="wardrop__decide",
        default=True,
        action=argparse.BooleanOptionalAction,
        help="decide on requests; otherwise Dynamo routes all of them, as in its own frontend "
        "[default: true; no variable]",
    )
    for setting in _settings():
        options: dict[str, Any] = {
            "dest": f"wardrop__{setting.key}",
            "default": None,
            "help": f"{setting.summary} [default: {_default_text(setting)}]".replace("%", "%%"),
        }
        if setting.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = setting.name.upper()
        group.add_argument(f"{_RESERVED}{setting.flag}", **options)
    return parser


def _dynamo_arguments() -> Any:
    """Dynamo's module of flags, which has no type stubs."""
    return importlib.import_module("dynamo.frontend.frontend_args")


def _settings() -> list[Setting]:
    return [
        setting
        for setting in settings()
        if (setting.stage in STAGES or setting.key == ROUTER_ID) and setting.key not in ABSENT
    ]


def _default_text(setting: Setting) -> str:
    return str(_DEFAULTS.get(setting.key, setting.default_text))


def _refuse_absent(unknown: Sequence[str]) -> None:
    """Refuse a flag of `wardrop dynamo` that a frontend does not have, with the reason."""
    absent = {
        f"{_RESERVED}{setting.flag}": ABSENT.get(setting.key) or ABSENT[setting.stage]
        for setting in settings()
        if setting.key in ABSENT or (setting.stage in ABSENT and setting.key != ROUTER_ID)
    }
    for argument in unknown:
        flag = argument.partition("=")[0].replace("--no-wardrop-", _RESERVED)
        if flag in absent:
            raise ConfigError(f"{flag}: the frontend does not have it: {absent[flag]}")


def _dynamo_config(namespace: argparse.Namespace) -> Any:
    config = _dynamo_arguments().FrontendConfig.from_cli_args(namespace)
    try:
        config.validate()
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    return config


def _refuse_unsupported(config: Any) -> None:
    """Refuse what only the stock frontend can do, with the reason."""
    refusals = [
        (config.interactive, "--interactive", "a text chat has no requests to route"),
        (
            config.chat_processor != "dynamo",
            f"--dyn-chat-processor {config.chat_processor}",
            "it prepares prompts in Python, and no Python runs in the native frontend",
        ),
        (
            bool(config.frontend_route_extensions),
            "--frontend-route-extension",
            "it adds Python routes, and no Python runs in the native frontend",
        ),
        (
            config.router_prefill_load_model != "none",
            "--router-prefill-load-model",
            "its estimator is a Python package, and no Python runs in the native frontend",
        ),
    ]
    for is_asked_for, flag, reason in refusals:
        if is_asked_for:
            raise ConfigError(
                f"{flag}: {reason}; use python -m dynamo.frontend, with `wardrop dynamo` in front"
            )


def _frontend(config: Any) -> dict[str, Any]:
    """Dynamo's settings under the names of the native frontend; absent ones have its defaults."""
    prefix = config.metrics_prefix
    frontend = {
        "http_host": config.http_host,
        "http_port": config.http_port,
        "tls_cert_path": _text(config.tls_cert_path),
        "tls_key_path": _text(config.tls_key_path),
        "tls_client_ca_cert_path": _text(config.tls_client_ca_cert_path),
        "kserve_grpc_server": config.kserve_grpc_server,
        "grpc_metrics_port": config.grpc_metrics_port or None,
        "metrics_prefix": prefix if prefix and prefix.strip() else None,
        "kv_cache_block_size": config.kv_cache_block_size,
        "namespace": config.namespace,
        "namespace_prefix": config.namespace_prefix,
        "model_name": config.model_name,
        "model_path": config.model_path,
        "migration_limit": config.migration_limit,
        "migration_max_seq_len": config.migration_max_seq_len,
        "enable_anthropic_api": config.enable_anthropic_api,
        "strip_anthropic_preamble": config.strip_anthropic_preamble,
        "enable_streaming_tool_dispatch": config.enable_streaming_tool_dispatch,
        "enable_streaming_reasoning_dispatch": config.enable_streaming_reasoning_dispatch,
        "reasoning_field_name": config.reasoning_field_name,
        "tokenizer_backend": config.tokenizer_backend,
        "tokenizer_fallback": config.tokenizer_fallback,
        "router": _router(config),
    }
    return {name: value for name, value in frontend.items() if value is not None}


def _router(config: Any) -> dict[str, Any]:
    modes = {"power-of-two": "power_of_two_choices", "kv": "k_v"}
    mode = modes.get(config.router_mode, config.router_mode.replace("-", "_"))
    thresholds = config.router_kwargs()
    router: dict[str, Any] = {
        "router_mode": mode,
        "session_affinity_ttl_secs": thresholds.pop("session_affinity_ttl_secs"),
        "session_affinity_mode": thresholds.pop("session_affinity_mode"),
        "load_threshold_config": {
            name: value for name, value in thresholds.items() if value is not None
        },
    }
    if config.router_mode == "kv":
        kv = {name: value for name, value in config.kv_router_kwargs().items() if value is not None}
        cache_policy = kv.pop("router_approximate_cache_policy", "ttl")
        if cache_policy != "ttl":
            raise ConfigError(
                f"--router-approximate-cache-policy {cache_policy}: the native frontend has only "
                "ttl; use python -m dynamo.frontend, with `wardrop dynamo` in front"
            )
        for name in _POLICY_INSTANCES:
            router[name] = kv.pop(name, None)
        router["kv_router_config"] = kv
    return {name: value for name, value in router.items() if value is not None}


def _wardrop_config(ours: Mapping[str, Any], environment: Mapping[str, str]) -> Config:
    """Wardrop's settings from all sources, without the settings that a frontend does not have."""
    known = {setting.key: setting for setting in _settings()}
    flags: dict[str, str] = {}
    for name, value in ours.items():
        key = name.removeprefix("wardrop__")
        if key in known and value is not None:
            flags[key] = str(value).lower() if isinstance(value, bool) else str(value)
    file = ours.get("wardrop__config") or environment.get("WARDROP_CONFIG")
    try:
        config = load(flags, environment, Path(file) if file else None, defaults=_DEFAULTS)
        for key in _LOUD:
            _refuse_set(key, config)
        check_files(config)
    except ConfigError as error:
        raise ConfigError(re.sub("^--", _RESERVED, str(error))) from error
    return config


def _refuse_set(key: str, config: Config) -> None:
    """Refuse a value other than the default for a key of `ABSENT`."""
    for setting in settings():
        if key in (setting.stage, setting.key):
            value = getattr(getattr(config, setting.stage), setting.name)
            if value != setting.default:
                raise ConfigError(
                    f"{setting.key}: got {shown(value)}, but the frontend does not have it: "
                    f"{ABSENT[key]}"
                )


def _native(config: Config) -> dict[str, Any]:
    """The settings of the routing service inside the frontend."""
    timing = configured_points(config.control.timing_table)
    # The exporter of the gateway is not used, so variables for it are not looked at.
    native = json.loads(replace(config, tracing=Tracing()).gateway_json([], timing, {}))
    names = ("router_id", "routing", "feed", "shadows", "records", "peers")
    return {name: native[name] for name in names if native[name] is not None}


def _control_plane(config: Config, dynamo: Any) -> dict[str, Any] | None:
    """The process of the control plane; None where no setting needs it."""
    control = config.control
    is_needed = (
        control.admin_port >= 0
        or control.controller
        or bool(control.curves_file)
        or bool(control.audit_file)
        or config.shadows.calibrate
    )
    if not is_needed:
        return None
    from wardrop.frontend import control_process

    settings = control_process.Settings(
        control,
        config.shadows,
        importlib.metadata.version("ai-dynamo"),
        dynamo.router_mode,
        dynamo.discovery_backend,
    )
    return {"command": control_process.command(settings)}


def _runtime_environment(config: Any) -> dict[str, str | None]:
    """Variables that Dynamo's runtime reads, as the flags set them."""
    return {
        "DYN_SYSTEM_PORT": None,  # a worker's port: Dynamo's own frontend drops it as well
        "DYN_DISCOVERY_BACKEND": config.discovery_backend,
        "DYN_REQUEST_PLANE": config.request_plane,
        "DYN_RESPONSE_PLANE": config.response_plane,
        "DYN_EVENT_PLANE": config.event_plane or os.environ.get("DYN_EVENT_PLANE"),
        "DYN_ROUTER_MIN_INITIAL_WORKERS": str(config.min_initial_workers),
        "DYN_TCP_TLS_CERT_PATH": config.tcp_tls_cert_path,
        "DYN_TCP_TLS_KEY_PATH": config.tcp_tls_key_path,
        "DYN_TCP_TLS_CA_CERT_PATH": config.tcp_tls_ca_cert_path,
        "DYN_TCP_TLS_CLIENT_CERT_PATH": config.tcp_tls_client_cert_path,
        "DYN_TCP_TLS_CLIENT_KEY_PATH": config.tcp_tls_client_key_path,
        "DYN_TCP_TLS_CLIENT_CA_CERT_PATH": config.tcp_tls_client_ca_cert_path,
        "NATS_TLS_CA_CERT_PATH": config.nats_tls_ca_cert_path,
        "NATS_TLS_INSECURE": "1" if config.nats_tls_insecure else None,
        "NATS_TLS_CLIENT_CERT_PATH": config.nats_tls_client_cert_path,
        "NATS_TLS_CLIENT_KEY_PATH": config.nats_tls_client_key_path,
    }


def _text(path: object) -> str | None:
    return None if path is None else str(path)
