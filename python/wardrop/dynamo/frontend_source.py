"""Discovery by asking a frontend: `/v1/models` and `/health`. The road when no store can be read.

It knows which instances exist and which models are served, and nothing else: no block size, no
capacities, no event channels. Without events routing is by load only, unless event endpoints are
given. With more than one model it can not be told which instance serves which: none is routed, and
Dynamo routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import aiohttp

from wardrop.dynamo.store import JsonObject
from wardrop.dynamo.view import TOPICS, Feed, Model, Role, View, Worker

_REQUEST_TIMEOUT_S = 5.0
_FIRST_SYNTHETIC_PUBLISHER = 1 << 63
"""Publishers that we number ourselves; Dynamo's own ids are below 2**53."""


class FrontendSource:
    """Polls the frontends in turn; a frontend that does not answer keeps the last view.

    Args:
        upstreams: base addresses.
        block_size: tokens per block; `/health` does not say it.
        event_endpoints: `TOPIC@tcp://HOST:PORT` each.
        poll_interval_s: time between two questions.
    """

    def __init__(
        self,
        upstreams: Sequence[str],
        block_size: int,
        event_endpoints: Sequence[str],
        poll_interval_s: float,
    ) -> None:
        self._upstreams = [upstream.rstrip("/") for upstream in upstreams]
        self._block_size = block_size
        self._channels = [parse_event_endpoint(text) for text in event_endpoints]
        self._poll_interval_s = poll_interval_s
        self.trouble: str | None = None

    @property
    def name(self) -> str:
        """The frontends."""
        return f"frontends {', '.join(self._upstreams)}"

    async def views(self) -> AsyncIterator[View]:
        """A view at once (empty when no frontend answers), then one after each question."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
        at, last = 0, View()
        yielded = False
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                upstream = self._upstreams[at % len(self._upstreams)]
                try:
                    models = await _get(session, f"{upstream}/v1/models")
                    health = await _get(session, f"{upstream}/health")
                    view = self.read(models, health)
                    self.trouble = None
                    if view != last or not yielded:
                        last, yielded = view, True
                        yield view
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                    self.trouble = f"{upstream}: {type(error).__name__}: {error}"
                    at += 1
                    if not yielded:
                        yielded = True
                        yield last
                await asyncio.sleep(self._poll_interval_s)

    def read(self, models: JsonObject, health: JsonObject) -> View:
        """The view that one pair of answers gives; pure."""
        listed = cast(list[JsonObject], models.get("data") or [])
        names = [str(model["id"]) for model in listed]
        found = [
            instance
            for instance in cast(list[JsonObject], health.get("instances") or [])
            if instance.get("endpoint") == "generate"
        ]
        if len(names) > 1 and found:
            return View(
                models={
                    str(model["id"]): Model(str(model["id"]), self._block_size) for model in listed
                },
                problems=(
                    f"{len(names)} models and no discovery store: /health does not say which "
                    "instance serves which, so Dynamo routes them; give --discovery file or etcd",
                ),
            )
        if not names:
            return View()
        context = listed[0].get("context_window")
        model = Model(names[0], self._block_size, context if isinstance(context, int) else None)
        components = {str(instance["component"]) for instance in found}
        split = any("prefill" in component for component in components)
        workers: dict[tuple[str, Role, int], Worker] = {}
        for instance in found:
            component = str(instance["component"])
            role: Role = (
                "prefill" if "prefill" in component else "decode" if split else "aggregated"
            )
            number = int(str(instance["instance_id"]))
            workers[model.name, role, number] = Worker(
                model.name,
                role,
                number,
                f"{instance['namespace']}.{component}.generate",
                address=str(instance.get("transport") or ""),
            )
        role = "prefill" if split else "aggregated"
        feeds = {
            publisher: Feed(publisher, topic, address, "", model.name, role)
            for publisher, (topic, address) in enumerate(
                self._channels, start=_FIRST_SYNTHETIC_PUBLISHER
            )
        }
        return View({model.name: model}, workers, feeds if workers else {})


def parse_event_endpoint(text: str) -> tuple[str, str]:
    """`"kv-events@tcp://host:port"` → topic and address.

    Raises:
        ValueError: another form, or a topic that is not read.
    """
    topic, at, address = text.partition("@")
    if not at or topic not in TOPICS or not address.startswith("tcp://"):
        raise ValueError(
            f"got event endpoint {text!r}, expected TOPIC@tcp://HOST:PORT with a topic of "
            f"{', '.join(TOPICS)}"
        )
    return topic, address


async def _get(session: aiohttp.ClientSession, url: str) -> JsonObject:
    async with session.get(url) as answer:
        answer.raise_for_status()
        return cast(JsonObject, await answer.json(content_type=None))
