"""Settings of the spans that a router exports, and the variables of OpenTelemetry behind them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from wardrop.config.fields import ConfigError, require_address, require_within, setting

Sampler = Literal[
    "",
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]

_TRACES_PATH = "/v1/traces"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracing:
    """OpenTelemetry spans of requests, exported over OTLP."""

    endpoint: str = setting(
        "",
        "collector for OTLP over HTTP, http://HOST:4318; by default OTEL_EXPORTER_OTLP_ENDPOINT",
        "tracing",
    )
    sampler: Sampler = setting(  # noqa: RUF009  (a field, as the others)
        "", "requests with spans; by default OTEL_TRACES_SAMPLER, else parentbased_traceidratio"
    )
    ratio: float = setting(1.0, "share of requests with spans, for a sampler with ratio")
    service_name: str = setting(
        "", "service.name of the spans; by default OTEL_SERVICE_NAME, else wardrop"
    )

    def __post_init__(self) -> None:
        require_within("tracing.ratio", self.ratio, 0, 1)
        if self.endpoint:
            require_address("tracing.endpoint", self.endpoint)
            if not self.endpoint.startswith("http://"):
                raise ConfigError(
                    f"tracing.endpoint: got {self.endpoint!r}, expected http://HOST:PORT; for TLS, "
                    "run a collector on this machine that forwards"
                )

    def native(self, environment: Mapping[str, str]) -> dict[str, Any] | None:
        """The stage as the native doors read it; None without spans.

        Args:
            environment: variables of the process.

        Raises:
            ConfigError: a variable of OpenTelemetry has a value that cannot be used.
        """
        if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None
        endpoint = self.endpoint or _endpoint(environment)
        if not endpoint:
            return None
        sampler, ratio = self.sampler, self.ratio
        if not sampler and (named := environment.get("OTEL_TRACES_SAMPLER", "")):
            sampler, ratio = _sampler(named, environment)
        if not urlsplit(endpoint).path.strip("/"):
            endpoint = endpoint.rstrip("/") + _TRACES_PATH
        return {
            "endpoint": endpoint,
            "sampler": sampler or "parentbased_traceidratio",
            "ratio": ratio,
            "service_name": self.service_name or environment.get("OTEL_SERVICE_NAME") or "wardrop",
        }


def _endpoint(environment: Mapping[str, str]) -> str:
    """The collector that the variables name; empty when they name none that this router can use."""
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return ""
    endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    if not endpoint and (base := environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")):
        endpoint = base.rstrip("/") + _TRACES_PATH
    if not endpoint:
        return ""
    general = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general)
    if protocol != "http/protobuf" or not endpoint.startswith("http://"):
        # The variables may be meant for another program of this environment.
        _log.warning(
            "no spans: OTEL_EXPORTER_OTLP_* name %s over %s; expected http://HOST:PORT over "
            "http/protobuf, or --tracing http://HOST:PORT",
            endpoint,
            protocol,
        )
        return ""
    return endpoint


def _sampler(name: str, environment: Mapping[str, str]) -> tuple[Any, float]:
    """Sampler and share of the variables.

    Raises:
        ConfigError: the name is unknown, or the argument is no share.
    """
    known = [each for each in get_args(Sampler) if each]
    if name not in known:
        raise ConfigError(f"OTEL_TRACES_SAMPLER: got {name!r}, expected one of {', '.join(known)}")
    text = environment.get("OTEL_TRACES_SAMPLER_ARG") or "1"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if "ratio" in name and not 0 <= ratio <= 1:
        raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG: got {text!r}, expected 0 to 1")
    return name, ratio if "ratio" in name else 1.0
