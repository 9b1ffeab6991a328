"""Command lines and environment of the processes of an embedded fleet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from wardrop.dynamo.discovery.fleet_view import Role
from wardrop.dynamo.fleet_spec import FleetSpec
from wardrop.dynamo.ports import free_port


def frontend_command(
    python: str, mode: str, port: int, arguments: tuple[str, ...], module: str
) -> list[str]:
    """Command line of a frontend on the loopback.

    Args:
        python: Interpreter with Dynamo.
        mode: `--router-mode`.
        port: Port on the loopback.
        arguments: Further flags.
        module: Module to run, `dynamo.frontend` or one with the same flags.
    """
    command = [python, "-m", module, "--http-host", "127.0.0.1"]
    return [*command, "--http-port", str(port), "--router-mode", mode, *arguments]


def worker_command(spec: FleetSpec, model: Path, role: Role, count: int) -> list[str]:
    """Command line of one process with `count` mock workers of one role.

    Args:
        spec: The fleet.
        model: Folder with tokenizer and template.
        role: Role of the workers.
        count: Number of workers in the process.
    """
    command = [spec.python, "-m", "dynamo.mocker"]
    command += ["--model-path", str(model), "--model-name", spec.model_name]
    command += ["--num-workers", str(count), "--block-size", str(spec.block_size)]
    command += ["--num-gpu-blocks-override", str(spec.blocks)]
    command += ["--max-model-len", str(spec.max_model_len)]
    command += ["--speedup-ratio", str(spec.speedup_ratio)]
    if spec.timing_table is not None:
        command += ["--planner-profile-data", str(spec.timing_table.resolve())]
    if role != "aggregated":
        command += ["--disaggregation-mode", role]
    if role == "prefill":
        command += ["--bootstrap-ports", ",".join(str(free_port()) for _ in range(count))]
    return [*command, *spec.mocker_arguments]


def dynamo_environment(store: Path) -> dict[str, str]:
    """Variables with which Dynamo, or a router, finds the fleet; every address is the loopback.

    Args:
        store: Folder of the file store.
    """
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(store),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_HTTP_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",  # an interface name, not an address
        "DYN_LOG": os.environ.get("DYN_LOG", "warn"),
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
    }


def process_environment(
    spec: FleetSpec, dynamo: Mapping[str, str], scratch: Path
) -> dict[str, str]:
    """All variables of a process of the fleet.

    The variables of this process are inherited, except its `DYN_*` variables. Mock workers leave
    files with their engine arguments in `TMPDIR`, which is therefore a folder of the fleet.

    Args:
        spec: The fleet, with further variables.
        dynamo: Variables of `dynamo_environment`.
        scratch: Folder for temporary files.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
    return {**inherited, "TMPDIR": str(scratch), **dynamo, **dict(spec.environment)}
