"""The view of a fleet of engines: models, workers and feeds, from what its members reported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from wardrop.dynamo.discovery.fleet_view import Feed, FleetView, Model, Worker
from wardrop.fleet.member import Member, stable_id
from wardrop.fleet.probe import Probe, Served
from wardrop.fleet.spec import ModelSpec, address, authority

ENGINE_EVENTS = "engine-events"
DEFAULT_BLOCK_SIZE = 16
"""Tokens per block where no engine reports them; the default of vLLM."""


@dataclass
class ProbedMember:
    """A member with the probe that follows it.

    Attributes:
        member: The server.
        probe: What the server last reported.
        task: The task that runs the probe.
    """

    member: Member
    probe: Probe
    task: asyncio.Task[None]

    def model_name(self) -> str | None:
        """Name of the model that the member serves; None before it answered."""
        if self.probe.served is None:
            return None
        return self.member.spec.model or self.probe.served.names[0]


def fleet_view(
    members: Iterable[ProbedMember],
    specs: Iterable[ModelSpec],
    tokenizer: str | None,
    problems: Iterable[str],
) -> FleetView:
    """The view of the members that answered, with one model for each name they serve.

    Args:
        members: The members, in the order in which the first of a model sets its block size.
        specs: What the user wrote about models.
        tokenizer: Folder of the models that name none.
        problems: Problems that are known already; the view adds its own.
    """
    found = list(problems)
    models: dict[str, Model] = {}
    workers: dict[Any, Worker] = {}
    feeds: dict[int, Feed] = {}
    by_name = {spec.name: spec for spec in specs}
    for each in members:
        served, name = each.probe.served, each.model_name()
        if served is None or name is None:
            if each.probe.error:
                found.append(f"{each.member.url} does not serve: {each.probe.error}")
            continue
        model = _model(each, served, name, by_name.get(name), tokenizer)
        known = models.setdefault(name, model)
        if known.block_size != model.block_size:
            found.append(
                f"{each.member.url} is left out: its blocks have {model.block_size} tokens, "
                f"those of {name} on other workers {known.block_size}"
            )
            continue
        models[name] = _joined(known, model)
        worker = _worker(each, name)
        workers[name, worker.role, worker.instance] = worker
        feeds.update({feed.publisher_id: feed for feed in _feeds(each.member, name)})
    found += [f"{name}: no worker serves this model" for name in by_name.keys() - models]
    return FleetView(models, workers, feeds, tuple(found))


def _model(
    each: ProbedMember,
    served: Served,
    name: str,
    spec: ModelSpec | None,
    tokenizer: str | None,
) -> Model:
    reported = each.probe.metrics.block_size
    own = each.member.spec.block_size or (spec.block_size if spec else None)
    length = (spec.context_length if spec else None) or served.context_length
    folder = (spec.folder if spec else None) or tokenizer
    aliases = tuple(alias for alias in served.names if alias != name)
    return Model(
        name=name,
        block_size=own or reported or DEFAULT_BLOCK_SIZE,
        context_length=length,
        loras=served.loras,
        source_path=folder,
        aliases=aliases,
        has_special_tokens=True,
    )


def _joined(known: Model, other: Model) -> Model:
    """A model on several workers: the adapters that all have, and the shortest context."""
    lengths = [m.context_length for m in (known, other) if m.context_length is not None]
    return replace(
        known,
        loras=tuple(lora for lora in known.loras if lora in other.loras),
        aliases=tuple(alias for alias in known.aliases if alias in other.aliases),
        context_length=min(lengths, default=None),
    )


def _worker(each: ProbedMember, model: str) -> Worker:
    spec, metrics = each.member.spec, each.probe.metrics
    # Without a replay nothing else shows a restart, so a new start makes a new incarnation.
    started_s = None if spec.replay else metrics.started_s
    return Worker(
        model=model,
        role=spec.role,
        instance=each.member.instance,
        endpoint=each.member.url,
        address=f"{each.member.url} {each.member.incarnation} {started_s}",
        dp_size=spec.ranks,
        total_kv_blocks=spec.kv_blocks or metrics.kv_blocks,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
    )


def _feeds(member: Member, model: str) -> list[Feed]:
    spec = member.spec
    if spec.events is None:
        return []
    return [
        Feed(
            publisher_id=stable_id(f"{member.url} events {rank}"),
            topic=ENGINE_EVENTS,
            address=_of_rank(spec.events, rank),
            endpoint=member.url,
            model=model,
            role=spec.role,
            instance=member.instance,
            dp_rank=rank,
            replay=_of_rank(spec.replay, rank) if spec.replay else None,
        )
        for rank in range(spec.ranks)
    ]


def _of_rank(endpoint: str, rank: int) -> str:
    place = address(endpoint, "tcp", "endpoint")
    return f"tcp://{authority(place.host, place.port + rank)}"
