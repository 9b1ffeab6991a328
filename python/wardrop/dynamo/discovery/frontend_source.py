"""Discovery by asking a frontend, for deployments whose store cannot be read.

`/v1/models` and `/health` of a frontend name the models and the instances, and nothing else: no
block size, no capacities, no event channels. Without events routing is by load only, unless event
endpoints are configured. With more than one model, no answer says which instance serves which
model: Dynamo then routes all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import aiohttp

from wardrop.dynamo.discovery.fleet_view import TOPICS, Feed, FleetView, Model, Role, Worker
from wardrop.dynamo.discovery.store_reader import JsonObject

_REQUEST_TIMEOUT_S = 5.0
_FIRST_SYNTHETIC_PUBLISHER = 1 << 63
"""First id of publishers that this module numbers; Dynamo's own ids are below 2**53."""


class FrontendSource:
    """Polls the frontends in turn. While no frontend answers, the last view stays in force.

    Args:
        upstreams: Base addresses of the frontends.
        block_size: Tokens per block, which `/health` does not report.
        event_endpoints: `TOPIC@tcp://HOST:PORT` each.
        poll_interval_s: Time between two polls.
    """

    def __init__(
        self,
        upstreams: Sequence[str],
        block_size: int,
        event_endpoints: Sequence[str],
        poll_interval_s: float,
    ) -> None:
        self.last_error: str | None = None
        self._upstreams = [upstream.rstrip("/") for upstream in upstreams]
        self._block_size = block_size
        self._channels = [parse_event_endpoint(text) for text in event_endpoints]
        self._poll_interval_s = poll_interval_s

    @property
    def name(self) -> str:
        """The frontends."""
        return f"frontends {', '.join(self._upstreams)}"

    async def views(self) -> AsyncIterator[FleetView]:
        """A view at once (empty when no frontend answers), then a view after each change."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
        attempt, last = 0, FleetView()
        yielded = False
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                upstream = self._upstreams[attempt % len(self._upstreams)]
                try:
                    models = await _get(session, f"{upstream}/v1/models")
                    health = await _get(session, f"{upstream}/health")
                    view = self.read(models, health)
                    self.last_error = None
                    if view != last or not yielded:
                        last, yielded = view, True
                        yield view
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                    self.last_error = f"{upstream}: {type(error).__name__}: {error}"
                    attempt += 1
                    if not yielded:
                        yielded = True
                        yield last
                await asyncio.sleep(self._poll_interval_s)

    def read(self, models: JsonObject, health: JsonObject) -> FleetView:
        """The view that the answers of one frontend give. Pure.

        Args:
            models: Answer of `/v1/models`.
            health: Answer of `/health`.
        """
        listed = cast(list[JsonObject], models.get("data") or [])
        names = [str(model["id"]) for model in listed]
        instances = [
            instance
            for instance in cast(list[JsonObject], health.get("instances") or [])
            if instance.get("endpoint") == "generate"
        ]
        if len(names) > 1 and instances:
            return FleetView(
                models={name: Model(name, self._block_size) for name in names},
                problems=(
                    f"{len(names)} models and no discovery store: /health does not say which "
                    "instance serves which model, so Dynamo routes them; give --discovery file or "
                    "etcd",
                ),
            )
        if not names:
            return FleetView()
        context = listed[0].get("context_window")
        model = Model(names[0], self._block_size, context if isinstance(context, int) else None)
        split = any("prefill" in str(instance["component"]) for instance in instances)
        workers = [_worker(model.name, instance, split) for instance in instances]
        role: Role = "prefill" if split else "aggregated"
        feeds = {
            publisher: Feed(publisher, topic, address, "", model.name, role)
            for publisher, (topic, address) in enumerate(
                self._channels, start=_FIRST_SYNTHETIC_PUBLISHER
            )
        }
        return FleetView(
            {model.name: model},
            {(worker.model, worker.role, worker.instance): worker for worker in workers},
            feeds if workers else {},
        )


def _worker(model: str, instance: JsonObject, split: bool) -> Worker:
    component = str(instance["component"])
    role: Role = "prefill" if "prefill" in component else "decode" if split else "aggregated"
    return Worker(
        model,
        role,
        int(str(instance["instance_id"])),
        f"{instance['namespace']}.{component}.generate",
        address=str(instance.get("transport") or ""),
    )


def parse_event_endpoint(text: str) -> tuple[str, str]:
    """Topic and address of `"kv-events@tcp://host:port"`.

    Raises:
        ValueError: The text has another form, or the topic is not read.
    """
    topic, separator, address = text.partition("@")
    if not separator or topic not in TOPICS or not address.startswith("tcp://"):
        raise ValueError(
            f"got event endpoint {text!r}, expected TOPIC@tcp://HOST:PORT with a topic of "
            f"{', '.join(TOPICS)}"
        )
    return topic, address


async def _get(session: aiohttp.ClientSession, url: str) -> JsonObject:
    async with session.get(url) as answer:
        answer.raise_for_status()
        return cast(JsonObject, await answer.json(content_type=None))
