"""Fleets of engines without Dynamo: vLLM, SGLang and TensorRT-LLM servers with an OpenAI API.

    flags, file, admin API, DNS, Kubernetes ─▶ members ─▶ probes (models, metrics) ─▶ FleetView
                                                             └─▶ reports of load and reachability

`spec` reads what a user writes, `members` follows it, `probe` asks one engine, `engine_metrics`
reads its metrics page. `source.FleetSource` is the discovery backend that a door follows: the HTTP
gateway of `wardrop serve`, or another door.
"""

from wardrop.fleet.source import FleetSource
from wardrop.fleet.spec import (
    FleetSpec,
    KubernetesSpec,
    ModelSpec,
    WorkerSpec,
    parse_selector,
    parse_worker,
    read_fleet,
)

__all__ = [
    "FleetSource",
    "FleetSpec",
    "KubernetesSpec",
    "ModelSpec",
    "WorkerSpec",
    "parse_selector",
    "parse_worker",
    "read_fleet",
]
