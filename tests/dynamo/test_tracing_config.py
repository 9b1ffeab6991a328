"""Settings of spans, and the variables of OpenTelemetry behind them."""

from __future__ import annotations

import json

import pytest

from wardrop.config import ConfigError, Tracing, load

BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
URL = "http://collector:4318/v1/traces"


def test_tracing_is_off_without_a_collector():
    assert Tracing().native({}) is None
    assert Tracing(ratio=0.5, sampler="always_on").native({"OTEL_SERVICE_NAME": "a"}) is None


def test_setting_alone_samples_every_request_of_no_caller():
    assert Tracing("http://h:4318").native({}) == {
        "endpoint": "http://h:4318/v1/traces",
        "sampler": "parentbased_traceidratio",
        "ratio": 1.0,
        "service_name": "wardrop",
    }
    assert Tracing("http://h:4318/otlp/traces").native({})["endpoint"] == (
        "http://h:4318/otlp/traces"
    )


def test_standard_variables_turn_tracing_on():
    variables = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    assert Tracing().native(BASE | variables | {"OTEL_SERVICE_NAME": "r"}) == {
        "endpoint": URL,
        "sampler": "traceidratio",
        "ratio": 0.25,
        "service_name": "r",
    }
    exact = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://other:1/as-it-is"}
    assert Tracing().native(BASE | exact)["endpoint"] == "http://other:1/as-it-is"


def test_settings_win_over_variables():
    variables = BASE | {
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_SERVICE_NAME": "r",
    }
    chosen = Tracing("http://h:1", "parentbased_traceidratio", 0.5, "mine")
    assert chosen.native(variables) == {
        "endpoint": "http://h:1/v1/traces",
        "sampler": "parentbased_traceidratio",
        "ratio": 0.5,
        "service_name": "mine",
    }


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318"},
    ],
)
def test_variables_that_are_meant_for_others_leave_tracing_off(variables):
    assert Tracing().native(BASE | variables) is None


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"OTEL_TRACES_SAMPLER": "jaeger"}, "OTEL_TRACES_SAMPLER: got 'jaeger', expected one of"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG: got '2', expected 0 to 1",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "x"},
            "OTEL_TRACES_SAMPLER_ARG: got 'x', expected 0 to 1",
        ),
    ],
)
def test_variable_that_cannot_be_used_is_named(variables, says):
    with pytest.raises(ConfigError, match=says):
        Tracing().native(BASE | variables)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"tracing.endpoint": "https://h:1"}, "tracing.endpoint: got 'https://h:1', expected http"),
        ({"tracing.endpoint": "h"}, "tracing.endpoint: got address 'h'"),
        ({"tracing.ratio": "1.5"}, "tracing.ratio: got 1.5, expected 0 to 1"),
        ({"tracing.sampler": "some"}, "tracing.sampler: got 'some', expected one of"),
        ({"records.key_file": "k"}, "records.key_file: got a key without records; add --records"),
        ({"records.dir": "d", "records.all_bytes": "1"}, "records.all_bytes: got 1, expected"),
    ],
)
def test_setting_that_cannot_be_used_is_named(text, says):
    with pytest.raises(ConfigError, match=says):
        load(text, {})


def test_stages_reach_the_native_gateway(monkeypatch, tmp_path):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert json.loads(load({}, {}).gateway_json([]))["tracing"] is None
    assert json.loads(load({}, {}).gateway_json([]))["records"] is None
    texts = {"tracing.endpoint": "http://h:1", "records.dir": str(tmp_path)}
    native = json.loads(load(texts, {}).gateway_json([]))
    assert native["tracing"]["endpoint"] == "http://h:1/v1/traces"
    assert native["records"] == {
        "dir": str(tmp_path),
        "file_bytes": 64 << 20,
        "all_bytes": 1 << 30,
        "key_file": None,
    }
