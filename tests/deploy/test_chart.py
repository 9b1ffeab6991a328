"""The chart, the example manifests and the image recipe.

`helm` renders the chart, the schemas of Kubernetes judge what it renders, and the router reads the
files in it. Custom resources have no schema here: the tests check the fields that others read.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from wardrop.config import load
from wardrop.dynamo.discovery.kubernetes_source import WORKER_METADATA
from wardrop.fleet import FleetSource, FleetSpec, read_fleet
from wardrop.kubernetes.objects import ENDPOINT_SLICES, INFERENCE_POOLS, PODS
from wardrop.picker import read_file

validation = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "wardrop"
EXAMPLES = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.37")
"""The oldest version that the chart supports, and the newest that has schemas here."""
WITHOUT_SCHEMA = (
    "ServiceMonitor",
    "PrometheusRule",
    "InferencePool",
    "DynamoGraphDeployment",
)

SERVE: dict[str, Any] = {
    "mode": "serve",
    "serve": {
        "fleet": {
            "models": [{"name": "llama", "folder": "/models/llama"}],
            "kubernetes": [
                {"service": "vllm", "events_port": 5557},
                {"inference_pool": "llm/qwen", "pods": "role=decode"},
                {"pods": "app=x", "port": 8000, "namespace": "other"},
            ],
        }
    },
}
PICKER: dict[str, Any] = {
    "mode": "picker",
    "picker": {
        "file": {"models": [{"name": "qwen"}], "kubernetes": [{"inference_pool": "qwen"}]},
        "tlsSecretName": "picker-tls",
    },
}
DYNAMO: dict[str, Any] = {
    "mode": "dynamo",
    "dynamo": {"upstreams": ["http://graph-frontend:8000"], "namespace": "graphs"},
}
EVERYTHING: dict[str, Any] = {
    "replicaCount": 3,
    "imagePullSecrets": [{"name": "pull"}],
    "extraArgs": ["--log-level", "debug"],
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    "extraVolumeMounts": [{"name": "models", "mountPath": "/models"}],
    "podAnnotations": {"a/b": "c"},
    "podLabels": {"team": "llm"},
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
    "serviceAccount": {"annotations": {"a": "b"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "serve": SERVE,
    "picker": PICKER,
    "dynamo": DYNAMO,
    "serve with everything": SERVE | EVERYTHING,
    "picker with everything": PICKER | EVERYTHING,
    "dynamo with everything": DYNAMO | EVERYTHING,
}


def helm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).parent / "helm"
    program = str(beside) if beside.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed; make setup, or python .ci/helm .venv/bin")
    return subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )


def attempt(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return helm(
        "template", "r", str(CHART), "--namespace", "prod", "-f", "-", stdin=json.dumps(values)
    )


@cache
def _rendered(values: str) -> str:
    ran = attempt(json.loads(values))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    text = _rendered(json.dumps(values))
    return [each for each in yaml.safe_load_all(text) if each]


def only(objects: list[dict[str, Any]], kind: str, name: str = "r-wardrop") -> dict[str, Any]:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def check_schema(found: dict[str, Any]) -> None:
    if found["kind"] in WITHOUT_SCHEMA:
        return
    for version in VERSIONS:
        validation.validate(found, version, strict=True)


def test_lint_finds_nothing():
    for values in CASES.values():
        ran = helm("lint", str(CHART), "--strict", "-f", "-", stdin=json.dumps(values))
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", CASES)
def test_objects_have_the_forms_of_kubernetes(name: str):
    objects = render(CASES[name])
    kinds = [each["kind"] for each in objects]
    assert {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget"} <= set(kinds)
    for each in objects:
        check_schema(each)
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
             for each in objects]  # fmt: skip
    assert len(set(names)) == len(names)


def test_schemas_refuse_a_wrong_object():
    deployment = only(render({}), "Deployment")
    deployment["spec"]["replica"] = 3
    with pytest.raises(validation.ValidationError):
        check_schema(deployment)


def rights(objects: list[dict[str, Any]]) -> dict[str, set[tuple[str, str, str]]]:
    """Group, resource and verb by namespace."""
    found: dict[str, set[tuple[str, str, str]]] = {}
    for role in (each for each in objects if each["kind"] == "Role"):
        binding = next(
            each
            for each in objects
            if each["kind"] == "RoleBinding"
            and each["metadata"]["namespace"] == role["metadata"]["namespace"]
        )
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == ("r-wardrop", "prod")
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        namespace = role["metadata"]["namespace"]
                        found.setdefault(namespace, set()).add((group, resource, verb))
    assert not [each for each in objects if each["kind"].startswith("Cluster")]
    return found


def of(*resources: Any) -> set[tuple[str, str, str]]:
    return {(each.group, each.plural, verb) for each in resources for verb in ("list", "watch")}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, {}),
        (
            SERVE,
            {
                "prod": of(ENDPOINT_SLICES),
                "llm": of(PODS, INFERENCE_POOLS),
                "other": of(PODS),
            },
        ),
        (PICKER, {"prod": of(PODS, INFERENCE_POOLS)}),
        (DYNAMO, {"graphs": of(ENDPOINT_SLICES, WORKER_METADATA)}),
        (
            {**DYNAMO, "dynamo": {**DYNAMO["dynamo"], "discoveryMode": "container"}},
            {"graphs": of(PODS, WORKER_METADATA)},
        ),
        (SERVE | {"rbac": {"create": False}}, {}),
    ],
    ids=["none", "serve", "picker", "dynamo", "containers", "off"],
)
def test_roles_have_exactly_the_rights_of_discovery(values: dict[str, Any], wanted: Any):
    objects = render(values)
    assert rights(objects) == wanted
    pod = only(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is (values not in ({},)), "a token only if needed"


@pytest.mark.parametrize("name", CASES)
def test_pods_run_without_rights_and_only_the_ports_of_the_service_are_open(name: str):
    objects = render(CASES[name])
    spec = only(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    (container,) = spec["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    picker = CASES[name].get("mode") == "picker"
    assert ports == ({"ext-proc": 9002, "health": 9003, "metrics": 9090} if picker
                     else {"http": 8000})  # fmt: skip
    targets = {port["targetPort"] for port in only(objects, "Service")["spec"]["ports"]}
    assert targets == set(ports)
    http = "metrics" if picker else "http"
    probes = {key: container[key]["httpGet"] for key in container if key.endswith("Probe")}
    assert probes == {
        "startupProbe": {"path": "/live", "port": http},
        "livenessProbe": {"path": "/live", "port": http},
        "readinessProbe": {"path": "/ready", "port": http},
    }
    # The drain begins after the sleep, and ends before the pod is killed.
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > sleep + 30
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_probe_routes_are_those_of_the_doors():
    gateway = (ROOT / "rust/gateway/src/proxy/admin.rs").read_text()
    picker = (ROOT / "rust/picker/src/http.rs").read_text()
    for route in ("/live", "/ready", "/metrics"):
        assert f'"{route}"' in gateway
        assert f'"{route}"' in picker


def test_the_commands_read_the_files_of_the_chart(tmp_path: Path):
    for values in (SERVE, DYNAMO):
        mode = values["mode"]
        file = tmp_path / f"{mode}.yaml"
        file.write_text(only(render(values), "ConfigMap")["data"]["config.yaml"])
        config = load({}, {}, file, without="dynamo" if mode == "serve" else "fleet")
        assert (config.http.host, config.http.port) == ("0.0.0.0", 8000)
        if mode == "dynamo":
            assert config.dynamo.discovery == "kubernetes"
            assert config.dynamo.kubernetes_namespace == "graphs"
            assert config.dynamo.bootstrap is False
            assert config.dynamo.upstreams == ("http://graph-frontend:8000",)
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(only(render(SERVE), "ConfigMap", "r-wardrop-fleet")["data"]["fleet.yaml"])
    assert [each.what for each in read_fleet(fleet).kubernetes] == [
        "service vllm",
        "InferencePool llm/qwen",
        "pods app=x",
    ]
    assert FleetSource(FleetSpec(), fleet).fleet.has_events
    picker = tmp_path / "picker.yaml"
    picker.write_text(only(render(PICKER), "ConfigMap")["data"]["picker.yaml"])
    found = read_file(picker)
    assert found.listen == "0.0.0.0:9002"
    assert found.tls is not None
    assert found.tls.certificate == "/etc/wardrop/tls/tls.crt"


def test_only_settings_that_a_router_cannot_follow_start_new_pods():
    def checksum(values: dict[str, Any]) -> str:
        template = only(render(values), "Deployment")["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/config"]

    assert checksum(SERVE) == checksum({"mode": "serve"})
    assert checksum(SERVE) != checksum(SERVE | {"config": {"routing": {"queue": False}}})
    more = {**PICKER["picker"]["file"], "kubernetes": [{"service": "x"}]}
    assert checksum(PICKER) == checksum({"mode": "picker", "picker": {"file": more}})
    other = {**PICKER["picker"]["file"], "dialect": "dynamo"}
    assert checksum(PICKER) != checksum({"mode": "picker", "picker": {"file": other}})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"mode": "gateway"}, "mode"),
        ({"mode": "dynamo"}, "dynamo.upstreams: got none"),
        ({"mode": "picker"}, "picker.file.models: got none"),
        ({"colour": "red"}, "colour"),
        ({"image": {"repository": ""}}, "repository"),
        ({"serve": {"fleet": {"kubernetes": [{"events_port": 5}]}}}, "kubernetes"),
        ({"serve": {"fleet": {"kubernetes": [{"service": "a", "events_port": 0}]}}}, "events_port"),
        ({"dynamo": {"upstreams": ["graph:8000"]}}, "upstreams"),
        ({"config": {"fleet": {"services": ["a"]}}}, "serve.fleet.kubernetes"),
        ({"replicaCount": "three"}, "replicaCount"),
    ],
    ids=range(10),
)
def test_wrong_values_are_refused(values: dict[str, Any], text: str):
    ran = attempt(values)
    assert ran.returncode != 0
    assert text in ran.stderr


def test_every_value_has_a_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) | {"global"} == set(schema["properties"])
    for key, value in values.items():
        known = schema["properties"][key].get("properties")
        if isinstance(value, dict) and known is not None:
            assert set(value) <= set(known), key


def test_rules_and_dashboard_are_those_of_the_repository():
    for copy, original in (
        ("alerts.yml", ROOT / "deploy/prometheus/alerts.yml"),
        ("wardrop.json", ROOT / "deploy/grafana/wardrop.json"),
    ):
        assert (CHART / "files" / copy).read_text() == original.read_text(), "make chart"
    objects = render(SERVE | EVERYTHING)
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    assert only(objects, "PrometheusRule")["spec"] == {"groups": groups}
    dashboard = only(objects, "ConfigMap", "r-wardrop-dashboard")
    assert json.loads(dashboard["data"]["wardrop.json"]) == json.loads(
        (ROOT / "deploy/grafana/wardrop.json").read_text()
    )
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    monitor = only(objects, "ServiceMonitor")
    (scraped,) = monitor["spec"]["endpoints"]
    assert scraped["relabelings"] == [{"targetLabel": "job", "replacement": "wardrop"}]
    assert 'job="wardrop"' in json.dumps(groups).replace('\\"', '"')
    service = only(objects, "Service")
    assert scraped["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= (
        service["metadata"]["labels"].items()
    )


def test_example_manifests_have_the_forms_of_kubernetes(tmp_path: Path):
    files = sorted(EXAMPLES.glob("*/*.yaml"))
    assert len(files) >= 6
    for file in files:
        if file.name == "values.yaml":
            objects = render(yaml.safe_load(file.read_text()))
        else:
            objects = [each for each in yaml.safe_load_all(file.read_text()) if each]
        for each in objects:
            check_schema(each)
            if each["kind"] == "InferencePool":
                pool = INFERENCE_POOLS.decode(json.dumps(each).encode(), file.name)
                assert each["apiVersion"] == "inference.networking.k8s.io/v1"
                assert pool.spec.selector.match_labels


def test_example_pods_are_those_that_the_router_selects():
    """The labels and ports of the examples match the selectors beside them."""
    engines = list(yaml.safe_load_all((EXAMPLES / "vllm" / "engines.yaml").read_text()))
    service = next(each for each in engines if each["kind"] == "Service")
    deployment = next(each for each in engines if each["kind"] == "Deployment")
    values = yaml.safe_load((EXAMPLES / "vllm" / "values.yaml").read_text())
    (selector,) = values["serve"]["fleet"]["kubernetes"]
    assert selector["service"] == service["metadata"]["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    text = json.dumps(deployment)
    for port in (selector["events_port"], selector["replay_port"]):
        assert f"tcp://*:{port}" in text
    pool_file = EXAMPLES / "inference-pool" / "pool.yaml"
    pool = next(
        o for o in yaml.safe_load_all(pool_file.read_text()) if o["kind"] == "InferencePool"
    )
    picked = yaml.safe_load((EXAMPLES / "inference-pool" / "values.yaml").read_text())
    (selector,) = picked["picker"]["file"]["kubernetes"]
    assert selector["inference_pool"] == pool["metadata"]["name"]
    service_name = pool["spec"]["endpointPickerRef"]["name"]
    objects = render({**picked, "fullnameOverride": service_name})
    ports = [port["port"] for port in only(objects, "Service", service_name)["spec"]["ports"]]
    assert pool["spec"]["endpointPickerRef"]["port"]["number"] in ports


def test_values_of_the_page_are_valid(tmp_path: Path):
    page = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()
    blocks = re.findall(r"```yaml\n# values.yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    for number, block in enumerate(blocks):
        values = yaml.safe_load(block)
        objects = render(values)
        if values["mode"] == "picker":
            name = values.get("fullnameOverride", "r-wardrop")
            text = only(objects, "ConfigMap", name)["data"]["picker.yaml"]
            file = tmp_path / f"picker-{number}.yaml"
            file.write_text(text)
            assert read_file(file).kubernetes


def test_image_runs_as_a_user_and_needs_no_shell():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert len(stages) == 3
    last = stages[-1]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["/opt/wardrop/bin/wardrop"\]$', last, re.MULTILINE)
    assert not re.search(r"^RUN ", last, re.MULTILINE)
    assert "--locked" in stages[0]
