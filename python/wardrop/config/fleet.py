"""Settings of a fleet of engines without Dynamo: `wardrop serve`."""

from __future__ import annotations

from dataclasses import dataclass

from wardrop.config.fields import require_within, setting


@dataclass(frozen=True)
class Fleet:
    """The engines behind the router, without Dynamo."""

    workers: tuple[str, ...] = setting(
        (),
        "http://HOST:PORT,events=tcp://HOST:PORT,… of an OpenAI server; once per server",
        "worker",
    )
    file: str = setting("", "YAML file with workers and models, read again after changes", "fleet")
    inference_pools: tuple[str, ...] = setting(
        (),
        "[NAMESPACE/]NAME,events_port=PORT,… of an InferencePool, whose ready pods are followed",
        "inference-pool",
    )
    services: tuple[str, ...] = setting(
        (),
        "[NAMESPACE/]NAME,port=PORT,events_port=PORT,… of a Kubernetes service of servers",
        "service",
    )
    tokenizer: str = setting(
        "", "folder with tokenizer.json and the chat template of the models", "tokenizer"
    )
    poll_interval_ms: int = setting(500, "time between two readings of an engine's metrics")
    drain_timeout_s: float = setting(30.0, "time for requests in flight to end at stop")

    def __post_init__(self) -> None:
        require_within("fleet.poll_interval_ms", self.poll_interval_ms, 50, 60_000)
        require_within("fleet.drain_timeout_s", self.drain_timeout_s, 0, 86_400)

    @property
    def worker_texts(self) -> list[str]:
        """One text per worker."""
        return _texts(self.workers)

    @property
    def selector_texts(self) -> list[tuple[str, str]]:
        """Kind and text of each selector of a cluster."""
        return [
            *(("inference_pool", text) for text in _texts(self.inference_pools)),
            *(("service", text) for text in _texts(self.services)),
        ]


def _texts(items: tuple[str, ...]) -> list[str]:
    """One text per worker or selector.

    A list has commas between its items, and so has the text of an item. A part without `=` starts
    an item, and each `key=value` after it belongs to that item.
    """
    texts: list[str] = []
    for part in ",".join(items).split(","):
        if "=" in part and texts:
            texts[-1] += f",{part}"
        elif part:
            texts.append(part)
    return texts
