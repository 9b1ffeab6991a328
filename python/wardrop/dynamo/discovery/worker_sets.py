"""Which workers of a model a frontend serves with, by the rules of Dynamo 1.6.

A *worker set* is all workers of one model at one endpoint with one model type and role. Two rules
decide what a pin may name:

* Workers of a set must have equal cards. The set serves with the configuration that it saw first,
  and refuses the workers of any other until no worker of the first is left. This is how a rolling
  upgrade at one endpoint goes.
* A model may have several sets, in several namespaces. For each request Dynamo draws one of the
  sets that serve, at random and by their number of workers. A pin cannot choose the set, and a pin
  outside the drawn set is refused. Such a model is therefore left to Dynamo, unpinned, until one
  serving set remains. Its workers and feeds stay known, so that the index is warm afterwards.

A namespace serves when each worker type that its cards need has a worker, and no worker type but
the aggregated one has two sets. Sources: `ModelDiscoveryController`, `evaluate_readiness` and
`Model::select_worker_set_with` of the crate `dynamo-llm` 1.6.1. Cost: O(workers).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from wardrop.dynamo.discovery.entries import Card
from wardrop.dynamo.discovery.fleet_view import Worker

_SERVING_TYPES = ("chat", "completions")


@dataclass(frozen=True)
class SetKey:
    """The identity of a worker set."""

    model: str
    namespace: str
    endpoint: str
    model_type: str
    role: str


@dataclass(frozen=True)
class Member:
    """A worker with the card by which it serves."""

    key: SetKey
    worker: Worker
    card: Card
    checksum: str

    @property
    def serves(self) -> bool:
        """Whether requests enter at the worker's set, and not at a set that it helps."""
        kind = self.key.model_type.lower()
        text = not kind or any(name in kind for name in _SERVING_TYPES)
        return text and self.key.role != "prefill"


@dataclass(frozen=True)
class Choice:
    """The workers that may be pinned, and the models that are left to Dynamo.

    Attributes:
        members: Workers that a frontend serves with.
        left_to_dynamo: Models for which Dynamo draws one of several sets.
        problems: One text per set or model that is not served as a whole.
    """

    members: list[Member]
    left_to_dynamo: frozenset[str]
    problems: list[str]


class WorkerSets:
    """Remembers in which order the configurations of a set appeared."""

    def __init__(self) -> None:
        self._order: dict[SetKey, dict[str, int]] = {}
        self._reading = 0

    def forget_order(self) -> None:
        """Forget the order of appearance, because a frontend started again.

        A frontend that starts finds all configurations at once, in an order of its own.
        """
        self._order.clear()

    def choose(self, members: Iterable[Member]) -> Choice:
        """The workers that a frontend serves with now."""
        self._reading += 1
        sets: defaultdict[SetKey, list[Member]] = defaultdict(list)
        for member in members:
            sets[member.key].append(member)
        problems: list[str] = []
        unsure: set[str] = set()
        for key in self._order.keys() - sets.keys():
            del self._order[key]
        for key, found in sets.items():
            served = self._configuration(key, {member.checksum for member in found})
            if served is None:
                unsure.add(key.model)
                problems.append(
                    f"{key.endpoint} has several configurations of model {key.model!r}, and no "
                    "frontend says which it serves; Dynamo routes the model until one remains"
                )
                continue
            refused = [member for member in found if member.checksum != served]
            if refused:
                problems.append(
                    f"{key.endpoint}: {len(refused)} of {len(found)} workers of model "
                    f"{key.model!r} have another configuration; Dynamo serves with them when the "
                    "others have left"
                )
                sets[key] = [member for member in found if member.checksum == served]
        drawn = self._keep_serving(sets, problems)
        kept = [member for found in sets.values() for member in found]
        return Choice(kept, frozenset(unsure | drawn), problems)

    def _configuration(self, key: SetKey, present: Collection[str]) -> str | None:
        """The configuration that a set serves with; None when nothing says which."""
        order = self._order.setdefault(key, {})
        for checksum in order.keys() - present:
            del order[checksum]
        for checksum in present:
            order.setdefault(checksum, self._reading)
        first = min(order.values())
        earliest = [checksum for checksum, reading in order.items() if reading == first]
        return earliest[0] if len(earliest) == 1 else None

    def _keep_serving(
        self, sets: dict[SetKey, list[Member]], problems: list[str]
    ) -> frozenset[str]:
        """Drop the sets in namespaces that do not serve; the models with several serving sets."""
        by_model: defaultdict[str, list[SetKey]] = defaultdict(list)
        for key in sets:
            by_model[key.model].append(key)
        drawn: set[str] = set()
        for model, keys in by_model.items():
            ready = {
                namespace
                for namespace in {key.namespace for key in keys}
                if _is_complete([sets[key] for key in keys if key.namespace == namespace])
            }
            serving = [key for key in keys if key.namespace in ready and sets[key][0].serves]
            if not serving:
                continue  # nothing serves yet: the workers join when they are complete
            if len(serving) > 1:
                drawn.add(model)
                places = ", ".join(sorted({key.endpoint for key in serving})[:4])
                problems.append(
                    f"Dynamo draws one of {len(serving)} worker sets of model {model!r} for each "
                    f"request ({places}); it routes the model until one set remains"
                )
            namespaces = {key.namespace for key in serving}
            for key in keys:
                if key.namespace not in namespaces:
                    del sets[key]
                    problems.append(
                        f"{key.endpoint}: the workers of model {model!r} serve no request, because "
                        f"namespace {key.namespace!r} has no complete set"
                    )
        return frozenset(drawn)


def _is_complete(sets: list[list[Member]]) -> bool:
    """Whether a namespace with these sets serves requests."""
    roles = Counter(found[0].card.worker_type for found in sets)
    if None in roles:
        return True  # cards of older workers: Dynamo does not judge their namespace
    if any(count > 1 for role, count in roles.items() if role != "aggregated"):
        return False
    return all(
        any(all(need in roles for need in needs) for needs in found[0].card.needs)
        for found in sets
        if found[0].card.needs
    )
