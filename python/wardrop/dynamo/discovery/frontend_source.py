"""Discovery by asking a frontend, for deployments whose store cannot be read.

`/v1/models` and `/health` of a frontend name the models and the instances, and nothing else: no
block size, no capacities, no event channels. Without events routing is by load only, unless event
endpoints are configured. With more than one model, no answer says which instance serves which
model: Dynamo then routes all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

import aiohttp
import msgspec

from wardrop.decoding import decode_json
from wardrop.dynamo.backoff import Backoff
from wardrop.dynamo.discovery.fleet_view import TOPICS, Feed, FleetView, Model, Role, Worker
from wardrop.dynamo.discovery.scope import Scope

T = TypeVar("T")

_REQUEST_TIMEOUT_S = 5.0
_FIRST_SYNTHETIC_PUBLISHER = 1 << 63
"""First id of the feeds that this module numbers. An address tells no id of a publisher."""
_MAX_ANSWER_BYTES = 16 << 20
"""A longer answer of a frontend is refused; 10,000 instances are about 2 MB."""
_MAX_BACKOFF_S = 5.0


class ListedModel(msgspec.Struct):
    """A model in the answer of `/v1/models`."""

    id: str
    context_window: int | None = None


class ListedModels(msgspec.Struct):
    """Answer of `/v1/models`."""

    data: list[ListedModel] | None = None


class ListedInstance(msgspec.Struct):
    """An instance in the answer of `/health`."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int | str
    transport: object = None


class ListedInstances(msgspec.Struct):
    """Answer of `/health`."""

    instances: list[ListedInstance] | None = None


_MODELS = msgspec.json.Decoder(ListedModels)
_INSTANCES = msgspec.json.Decoder(ListedInstances)


class FrontendSource:
    """Polls the frontends in turn. While no frontend answers, the last view stays in force.

    Args:
        upstreams: Base addresses of the frontends.
        block_size: Tokens per block, which `/health` does not report.
        event_endpoints: `TOPIC@tcp://HOST:PORT` each.
        poll_interval_s: Time between two polls.
        scope: Namespaces that the frontends see.
    """

    def __init__(
        self,
        upstreams: Sequence[str],
        block_size: int,
        event_endpoints: Sequence[str],
        poll_interval_s: float,
        scope: Scope | None = None,
    ) -> None:
        self.last_error: str | None = None
        self.answered_unix_s: float | None = None
        self._upstreams = [upstream.rstrip("/") for upstream in upstreams]
        self._block_size = block_size
        self._channels = [parse_event_endpoint(text) for text in event_endpoints]
        self._poll_interval_s = poll_interval_s
        self._scope = scope or Scope()

    @property
    def name(self) -> str:
        """The frontends."""
        return f"frontends {', '.join(self._upstreams)}"

    def frontends_restarted(self) -> None:
        """Nothing to forget: the frontend is asked itself."""

    async def views(self) -> AsyncIterator[FleetView]:
        """A view at once (empty when no frontend answers), then a view after each change."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
        backoff = Backoff(self._poll_interval_s, _MAX_BACKOFF_S)
        attempt, last = 0, FleetView()
        yielded = False
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                upstream = self._upstreams[attempt % len(self._upstreams)]
                pause_s = self._poll_interval_s
                try:
                    models = await _get(session, f"{upstream}/v1/models", _MODELS)
                    health = await _get(session, f"{upstream}/health", _INSTANCES)
                    view = self.read(models, health)
                    self.last_error = None
                    self.answered_unix_s = time.time()
                    backoff.reset()
                    if view != last or not yielded:
                        last, yielded = view, True
                        yield view
                except Exception as error:
                    # Regardless of the answers of a frontend, the last view stays in force.
                    self.last_error = f"{upstream}: {type(error).__name__}: {error}"
                    attempt += 1
                    pause_s = backoff.next_s()
                    if not yielded:
                        yielded = True
                        yield last
                await asyncio.sleep(pause_s)

    def read(self, models: ListedModels, health: ListedInstances) -> FleetView:
        """The view that the answers of one frontend give. Pure.

        Args:
            models: Answer of `/v1/models`.
            health: Answer of `/health`.
        """
        listed = models.data or []
        names = [model.id for model in listed]
        instances = [
            instance
            for instance in health.instances or []
            if instance.endpoint == "generate" and self._scope.has(instance.namespace)
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
        context = listed[0].context_window
        sets = {(instance.namespace, _is_prefill(instance)) for instance in instances}
        serving = sorted(namespace for namespace, prefill in sets if not prefill)
        model = Model(names[0], self._block_size, context or None, left_to_dynamo=len(serving) > 1)
        problems = (
            (
                f"Dynamo draws one of the namespaces {', '.join(serving[:4])} for each request; it "
                "routes the model until one namespace remains",
            )
            if model.left_to_dynamo
            else ()
        )
        split = any(prefill for _, prefill in sets)
        workers = [_worker(model.name, instance, split) for instance in instances]
        role: Role = "prefill" if split else "aggregated"
        feeds = {
            publisher: Feed(publisher, topic, address, "", model.name, role, any_publisher=True)
            for publisher, (topic, address) in enumerate(
                self._channels, start=_FIRST_SYNTHETIC_PUBLISHER
            )
        }
        return FleetView(
            {model.name: model},
            {(worker.model, worker.role, worker.instance): worker for worker in workers},
            feeds if workers else {},
            problems,
        )


def _is_prefill(instance: ListedInstance) -> bool:
    return "prefill" in instance.component


def _worker(model: str, instance: ListedInstance, split: bool) -> Worker:
    role: Role = "prefill" if _is_prefill(instance) else "decode" if split else "aggregated"
    return Worker(
        model,
        role,
        int(instance.instance_id),
        f"{instance.namespace}.{instance.component}.generate",
        address=str(instance.transport or ""),
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


async def _get(session: aiohttp.ClientSession, url: str, decoder: msgspec.json.Decoder[T]) -> T:
    async with session.get(url) as answer:
        answer.raise_for_status()
        text = await answer.content.read(_MAX_ANSWER_BYTES + 1)
        while len(text) <= _MAX_ANSWER_BYTES and (more := await answer.content.read(1 << 20)):
            text += more
        return decode_json(decoder, text, url, _MAX_ANSWER_BYTES)
