"""Flags: those of `dynamo.frontend` with the same defaults, and Wardrop's beside them."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from wardrop.config import ConfigError
from wardrop.frontend.arguments import parse
from wardrop.frontend.launch import main

pytest.importorskip("dynamo.frontend", reason="Dynamo is not installed")


@cache
def help_of(module: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    ).stdout


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text.partition("\n\n")[0]))


def test_every_flag_of_dynamo_is_a_flag_here_and_ours_have_a_name_of_their_own():
    stock, here = flags_in(help_of("dynamo.frontend")), flags_in(help_of("wardrop.frontend"))
    assert len(stock) > 80
    assert stock <= here
    assert all(flag.startswith(("--wardrop-", "--no-wardrop-")) for flag in here - stock)


def test_every_default_of_dynamo_is_the_default_here():
    from dynamo.frontend.frontend_args import FrontendArgGroup

    stock = argparse.ArgumentParser()
    FrontendArgGroup().add_arguments(stock)
    expected = vars(stock.parse_args([]))
    ours = parse([], {}).dynamo_config
    assert {name: getattr(ours, name) for name in expected} == expected


def test_flags_of_dynamo_reach_the_native_frontend():
    arguments = ["--http-port", "8123", "--migration-limit", "4", "--router-mode", "kv"]
    arguments += ["--router-ttl-secs", "33", "--namespace", "n", "--enable-anthropic-api"]
    frontend = parse(arguments, {}).settings["frontend"]
    assert frontend["http_port"] == 8123
    assert frontend["migration_limit"] == 4
    assert frontend["namespace"] == "n"
    assert frontend["enable_anthropic_api"] is True
    assert frontend["router"]["router_mode"] == "k_v"
    assert frontend["router"]["kv_router_config"]["router_ttl_secs"] == 33


def test_planes_reach_the_runtime_as_variables():
    arguments = ["--discovery-backend", "file", "--request-plane", "nats", "--event-plane", "nats"]
    environment = parse([*arguments, "--tcp-tls-ca-cert-path", "/ca"], {}).environment
    assert environment["DYN_DISCOVERY_BACKEND"] == "file"
    assert environment["DYN_REQUEST_PLANE"] == "nats"
    assert environment["DYN_EVENT_PLANE"] == "nats"
    assert environment["DYN_TCP_TLS_CA_CERT_PATH"] == "/ca"
    assert environment["DYN_SYSTEM_PORT"] is None


def test_wardrops_settings_come_from_flags_and_variables():
    arguments = ["--wardrop-policy", "toll", "--wardrop-queue"]
    wardrop = parse(arguments, {"WARDROP_SEED": "7"}).settings["wardrop"]
    assert wardrop["routing"]["policy"] == {"name": "toll"}
    assert wardrop["routing"]["queue"] is not None
    assert wardrop["routing"]["seed"] == 7


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, 2_000),
        (["--wardrop-feed-silence-ms", "9000"], {}, 9000),
        ([], {"WARDROP_FEED_SILENCE_MS": "3500"}, 3500),
    ],
)
def test_silence_is_short_unless_a_source_says_otherwise(
    arguments: list[str], environment: dict[str, str], expected: int
):
    assert parse(arguments, environment).settings["wardrop"]["feed"]["silence_ms"] == expected


def test_file_that_names_the_usual_silence_gets_it(tmp_path: Path):
    file = tmp_path / "wardrop.yaml"
    file.write_text("feed: {silence_ms: 5000}\n")
    settings = parse(["--wardrop-config", str(file)], {}).settings
    assert settings["wardrop"]["feed"]["silence_ms"] == 5_000


def test_records_peers_and_label_reach_the_routing_service(tmp_path: Path):
    arguments = ["--wardrop-records", str(tmp_path), "--wardrop-peer", "127.0.0.1:7"]
    arguments += ["--wardrop-peer-listen", "127.0.0.1:0", "--wardrop-router-id", "a"]
    wardrop = parse(arguments, {}).settings["wardrop"]
    assert wardrop["records"]["dir"] == str(tmp_path)
    assert wardrop["peers"]["routers"] == ["127.0.0.1:7"]
    assert wardrop["peers"]["listen"] == "127.0.0.1:0"
    assert wardrop["router_id"] == "a"


def test_nothing_is_kept_for_a_control_plane_that_is_off():
    settings = parse([], {}).settings
    assert "control_plane" not in settings
    assert settings["wardrop"]["routing"]["receipts"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--wardrop-admin-port", "0"],
        ["--wardrop-controller"],
        ["--wardrop-curves-file", "curves.json"],
        ["--wardrop-audit-file", "audit.jsonl"],
        ["--wardrop-shadows", "dynamo", "--wardrop-shadows-calibrate"],
    ],
)
def test_each_setting_of_the_control_plane_starts_its_process(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    command = parse(arguments, {}).settings["control_plane"]["command"]
    assert command[:3] == [sys.executable, "-m", "wardrop.frontend.control_process"]
    settings = json.loads(Path(command[3]).read_text())
    assert {"control", "shadows"} <= settings.keys(), "no setting stands in the command line"


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (["--wardrop-tracing", "http://c:4318"], {}, "--wardrop-tracing: .*OTEL_EXPORT_ENABLED"),
        ([], {"WARDROP_TRACING": "http://c:4318"}, "tracing.endpoint: .*OTEL_EXPORT_ENABLED"),
        (["--wardrop-index-file=x"], {}, "--wardrop-index-file: .*read from the workers"),
        ([], {"WARDROP_INDEX_FILE": "x"}, "index.file: .*read from the workers"),
        (["--wardrop-http-port", "1"], {}, "--wardrop-http-port: .*Dynamo's own flags"),
        (["--wardrop-routing-explain-headers"], {}, "explain-headers: .*receipt"),
        ([], {"WARDROP_ROUTING_QUEUE_HINTS": "true"}, "routing.queue_hints: .*nvext"),
        ([], {"WARDROP_OBSERVE": "true"}, "dynamo.observe: .*--no-wardrop-decide"),
        (["--wardrop-curves-file", "/no/such/folder/c"], {}, "control.curves_file: .*not exist"),
    ],
)
def test_what_a_frontend_does_not_have_is_refused_with_the_reason(
    arguments: list[str], environment: dict[str, str], text: str
):
    with pytest.raises(ConfigError, match=text):
        parse(arguments, environment)


def test_settings_of_the_gateway_in_the_environment_are_no_error():
    assert parse([], {"WARDROP_HTTP_PORT": "1", "WARDROP_LOG_LEVEL": "debug"}).settings


@pytest.mark.parametrize(
    "arguments",
    [
        ["--interactive"],
        ["--dyn-chat-processor", "vllm"],
        ["--frontend-route-extension", "a:b"],
        ["--router-mode", "kv", "--router-approximate-cache-policy", "lru"],
    ],
)
def test_what_only_the_stock_frontend_can_do_is_refused_with_the_reason(arguments: list[str]):
    with pytest.raises(ConfigError, match=r"python -m dynamo\.frontend"):
        parse(arguments, {})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--migration-limit", "-1"], "--migration-limit"),
        (["--wardrop-feed-silence-ms", "x"], "--wardrop-feed-silence-ms: got 'x'"),
        (["--wardrop-config", "/no/such/file"], "/no/such/file"),
    ],
)
def test_wrong_command_line_ends_with_code_2_and_names_the_flag(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


def test_other_line_of_dynamo_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def version(name: str) -> Any:
        return "1.7.0"

    monkeypatch.setattr("importlib.metadata.version", version)
    assert main([]) == 1
    assert "got Dynamo 1.7.0, expected 1.6" in capsys.readouterr().err


def test_native_frontend_has_the_version_of_the_workspace():
    root = Path(__file__).parents[2]
    frontend = tomllib.loads((root / "frontend" / "Cargo.toml").read_text())
    workspace = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]
    assert frontend["package"]["version"] == workspace["package"]["version"]
