from __future__ import annotations

import json
from dataclasses import fields

import pytest

from wardrop._core import Gateway
from wardrop.config import Config, ConfigError, Dynamo, load, settings


def test_flag_beats_variable_beats_file_beats_default(tmp_path):
    file = tmp_path / "w.yaml"
    file.write_text("http: {port: 1}\nrouting: {seed: 1}\nfeed: {silence_ms: 1}\n")
    environment = {"WARDROP_HTTP_PORT": "2", "WARDROP_SEED": "2"}
    config = load({"http.port": "3"}, environment, file)
    assert (config.http.port, config.routing.seed, config.feed.silence_ms) == (3, 2, 1)
    assert config.http.host == "127.0.0.1"


def test_every_flag_and_variable_is_unique():
    every = list(settings())
    assert len({setting.flag for setting in every}) == len(every)
    assert sum(len(fields(type(getattr(Config(), f.name)))) for f in fields(Config)) == len(every)


def test_every_default_survives_a_round_trip_through_its_variable():
    environment = {
        setting.variable: setting.default_text
        for setting in settings("fleet")
        if setting.default_text != "none"
    }
    assert len(environment) > 30
    assert load({}, environment) == Config()


FAIR = "routing: {queue: true, queue_parameters: {fair: 1}, "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("htp: {port: 1}", "'htp' is not known; did you mean 'http'?"),
        ("http: {prot: 1}", "'prot' is not known; did you mean 'port'?"),
        ("http: {port: '1'}", "http.port: got '1', expected a whole number"),
        ("http: {port: true}", "http.port: got True"),
        ("http: {port: 70000}", "http.port: got 70000, expected 0 to 65535"),
        ("http: 3", "expected a mapping, got int"),
        ("[1]", "got list, expected a mapping of stages"),
        ("http: {port: [", "cannot be read as YAML"),
        ("http: {port: " + "[" * 5000, "cannot be read as YAML"),
        ("a: " + "x" * (2 << 20), "expected at most 1048576 bytes"),
        ("http: {host: [1, 2, 3, 4, 5]}", "http.host: got a list of 5 values, expected a text"),
        ("http: {host: {a: b}}", "http.host: got an object, expected a text"),
        ("routing: {parameters: {a: x}}", "expected names with numbers"),
        ("routing: {booking_ttl_s: .nan}", "got nan"),
        ("prompt: {handover: 1}", "got 1, expected true or false"),
        ("dynamo: {frontend_mode: kw}", "got 'kw', expected one of kv, direct, round-robin"),
        ("dynamo: {upstreams: ['ftp://x']}", "got address 'ftp://x', expected http://HOST:PORT"),
        ("dynamo: {discovery: frontend}", "without upstreams"),
        ("shadows: {policies: 'toll;toll'}", "got 'toll' twice"),
        ("shadows: {policies: 'toll(e2e)'}", "expected NAME or NAME(parameter=value"),
        ("shadows: {policies: toll+cache}", "expected +queue or +queue("),
        ("shadows: {calibrate: true}", "without shadows"),
        ("shadows: {cpu_share: 0}", "shadows.cpu_share: got 0"),
        ("predicted: {used: maybe}", "got 'maybe', expected one of off, alone, beside"),
        ("predicted: {ttl_s: 0}", "predicted.ttl_s: got 0.0, expected 0.001"),
        ("predicted: {capacity_blocks: 0}", "predicted.capacity_blocks: got 0, expected 1"),
        ("predicted: {ttl: 1}", "'ttl' is not known; did you mean 'ttl_s'?"),
        (
            "routing: {queue: false, queue_parameters: {kappa: 5}}",
            "got kappa without a queue; leave out --no-queue",
        ),
        (
            "routing: {queue: true, queue_parameters: {share_passes: 2}}",
            "share_passes: got 2, expected 0 (off) or 1 (on)",
        ),
        ("routing: {tenant_weights: {a: 1}}", "add --queue-parameters fair=1"),
        (FAIR + "tenant_weights: {a: 0}}", "routing.tenant_weights: a: got 0.0, expected 0.001"),
        (FAIR + "tenant_weights: {'': 1}}", "got the tenant '', expected a name of 1 to 128"),
        (FAIR + "tenant_weights: {a: .inf}}", "expected names with numbers"),
        ("control: {receipts: -1}", "control.receipts: got -1, expected 0 to 65536"),
        ("index: {interval_s: 0.01}", "index.interval_s: got 0.01, expected 0.1 to 86400"),
    ],
)
def test_bad_file_is_refused_with_what_to_do(tmp_path, text, says):
    file = tmp_path / "w.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, file)
    assert says in str(caught.value)


def test_misspelt_variable_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'WARDROP_HTTP_PORT'"):
        load({}, {"WARDROP_HTTP_PROT": "1"})


def test_variables_that_kubernetes_injects_pass():
    environment = {
        "WARDROP_SERVICE_HOST": "10.0.0.1",
        "WARDROP_PORT": "tcp://10.0.0.1:80",
        "WARDROP_PORT_8000_TCP_ADDR": "10.0.0.1",
        "WARDROP_SERVICE_PORT_HTTP": "80",
    }
    assert load({}, environment) == Config()


def test_lists_and_parameters_are_read_from_texts():
    config = load(
        {"routing.parameters": "overlap_score_credit=2, temperature=0.5"},
        {"WARDROP_UPSTREAM": "http://a:1,http://b:2"},
    )
    assert config.routing.parameters == {"overlap_score_credit": 2.0, "temperature": 0.5}
    assert config.dynamo.upstreams == ("http://a:1", "http://b:2")


def test_gateway_gets_its_own_part():
    config = load({"routing.parameters": "x=1", "routing.policy": "p"}, {})
    part = json.loads(config.gateway_json(["http://u:1"]))
    assert part["listen"] == "127.0.0.1:8000"
    assert part["upstreams"] == ["http://u:1"]
    assert part["routing"]["policy"] == {"name": "p", "x": 1.0}
    assert "dynamo" not in part


def test_without_flags_the_price_the_queue_and_receipts_are_on():
    routing = json.loads(Config().gateway_json([]))["routing"]
    assert routing["policy"] == {"name": "toll"}
    assert routing["queue"] == {}
    assert routing["receipts"] == 1000
    plain = load({"routing.policy": "dynamo", "routing.queue": "false"}, {})
    routing = json.loads(plain.gateway_json([]))["routing"]
    assert (routing["policy"], routing["queue"]) == ({"name": "dynamo"}, None)


def test_a_router_without_an_admin_port_keeps_no_receipts():
    closed = load({"control.admin_port": "-1"}, {})
    assert json.loads(closed.gateway_json([]))["routing"]["receipts"] == 0


def test_options_of_cache_tenants_and_receipts_reach_the_gateway():
    config = load(
        {
            "predicted.used": "beside",
            "routing.queue": "true",
            "routing.queue_parameters": "fair=1,share_passes=1,max_tenants=9,kappa=2.5",
            "routing.tenant_weights": "gold=4,free=0.5",
            "control.receipts": "100",
        },
        {"WARDROP_PREDICTED_SETTLE_S": "0.5"},
    )
    gateway = Gateway(config.gateway_json([]))
    routing = json.loads(config.gateway_json([]))["routing"]
    assert routing["predicted"]["used"] == "beside"
    assert routing["predicted"]["settle_s"] == 0.5
    assert routing["tenant_weights"] == {"gold": 4.0, "free": 0.5}
    assert routing["receipts"] == 100
    queue = json.loads(gateway.routing())["queue"]
    assert (queue["fair"], queue["share_passes"], queue["max_tenants"]) == (True, True, 9)
    gateway.stop()


@pytest.mark.parametrize("text", ["kappa=inf", "kappa=nan", "kappa", "=1,kappa="])
def test_parameter_that_is_no_number_is_refused(text):
    with pytest.raises(ConfigError, match=r"--queue-parameters: got .*expected name=number"):
        load({"routing.queue_parameters": text}, {})


def test_built_directly_it_is_checked_too():
    with pytest.raises(ConfigError, match=r"dynamo\.frontends: got 0"):
        Dynamo(frontends=0)


def test_limits_need_no_shadow_policy():
    shadows = json.loads(load({"shadows.limits": "true"}, {}).gateway_json([]))["shadows"]
    assert (shadows["limits"], shadows["policies"]) == (True, [])


def test_shadows_are_off_by_default_and_read_as_policies_with_and_without_a_queue():
    assert json.loads(Config().gateway_json([]))["shadows"] is None
    text = "dynamo; sticky ;toll(e2e=1,ttft=0.5) + queue(kappa=30, fair=true)"
    shadows = json.loads(load({"shadows.policies": text}, {}).gateway_json([]))["shadows"]
    assert [shadow["name"] for shadow in shadows["policies"]] == [
        "dynamo",
        "sticky",
        "toll(e2e=1,ttft=0.5)+queue(kappa=30,fair=true)",
    ]
    assert shadows["policies"][2] == {
        "name": "toll(e2e=1,ttft=0.5)+queue(kappa=30,fair=true)",
        "policy": {"name": "toll", "e2e": 1, "ttft": 0.5},
        "queue": {"kappa": 30, "fair": True},
    }
    assert "calibrate" not in shadows
