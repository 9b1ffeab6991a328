"""A client of `wardrop select` over gRPC.

    with SelectionClient("127.0.0.1:8093") as client:
        client.upsert_worker(1, model="m", endpoint="http://10.0.0.1:8000", block_size=16)
        with client.reserve("request-1", "m", token_ids) as reservation:
            ...  # send the request to reservation.endpoint
            reservation.first_token()

The messages are those of `proto/wardrop/v1/select.proto`, in `wardrop.client.select_pb2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

import grpc

from wardrop.client import select_pb2 as messages
from wardrop.client.select_pb2_grpc import SelectionStub

_TIMEOUT_S = 5.0


@dataclass
class Choice:
    """A chosen worker.

    Attributes:
        worker_id: Id of the instance.
        dp_rank: Rank of the instance.
        endpoint: Address that was registered with the worker.
        cached_tokens: Leading tokens of the prompt that the worker should hold.
        prefill_tokens: Tokens of the prompt that the worker has to compute.
    """

    worker_id: int
    dp_rank: int
    endpoint: str
    cached_tokens: int
    prefill_tokens: int


@dataclass(frozen=True)
class WorkerLoad:
    """Work in flight on a worker, with a prompt where one was given.

    Attributes:
        worker_id: Id of the instance.
        dp_rank: Rank of the instance.
        prefill_tokens: Uncached prompt tokens of requests without a first token.
        decode_blocks: Distinct blocks in flight.
        active_requests: Requests in flight.
        device_blocks: Leading blocks of the prompt that the worker holds.
    """

    worker_id: int
    dp_rank: int
    prefill_tokens: int
    decode_blocks: int
    active_requests: int
    device_blocks: int


@dataclass
class Reservation(Choice):
    """A booked worker. Leaving the `with` block frees it.

    Attributes:
        selection_id: Name of the reservation.
        output_tokens: Tokens of the answer, set before the end where they are known.
        cached_tokens_seen: Prompt tokens that the engine found in its cache, set where known.
    """

    selection_id: str = ""
    client: SelectionClient = field(kw_only=True, repr=False, compare=False)
    output_tokens: int | None = None
    cached_tokens_seen: int | None = None

    def first_token(self) -> None:
        """Report the first token."""
        self.client.prefill_complete(self.selection_id)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.free(
            self.selection_id,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens_seen,
        )


class SelectionClient:
    """A client of one selection service. Every call may raise `grpc.RpcError`.

    Args:
        address: `host:port` of the service, without TLS.
        channel: A channel to use in place of `address`, for example with TLS.
        timeout_s: Longest time of one call.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        channel: grpc.Channel | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        if (address is None) == (channel is None):
            raise ValueError("got both or none of address and channel, expected one of them")
        self.channel = channel or grpc.insecure_channel(cast(str, address))
        self._stub = cast(Any, SelectionStub(self.channel))
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    def __enter__(self) -> SelectionClient:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def upsert_worker(
        self,
        worker_id: int,
        *,
        model: str,
        endpoint: str,
        block_size: int = 16,
        routing_group: str = "",
        first_rank: int = 0,
        ranks: int = 1,
        kv_blocks: int = 0,
        max_batched_tokens: int = 0,
    ) -> None:
        """Register a worker, or change a registered one; sizes of 0 are unknown."""
        worker = messages.Worker(
            worker_id=worker_id,
            model=model,
            routing_group=routing_group,
            endpoint=endpoint,
            block_size=block_size,
            first_rank=first_rank,
            ranks=ranks,
            kv_blocks=kv_blocks,
            max_batched_tokens=max_batched_tokens,
        )
        self._call("UpsertWorker", messages.UpsertWorkerRequest(worker=worker))

    def delete_worker(self, worker_id: int) -> None:
        """Forget a worker with its reservations."""
        self._call("DeleteWorker", messages.DeleteWorkerRequest(worker_id=worker_id))

    def workers(self) -> list[Any]:
        """Every registered worker, as messages."""
        return list(self._call("ListWorkers", messages.ListWorkersRequest()).workers)

    def select(
        self,
        model: str,
        tokens: Sequence[int],
        *,
        selection_id: str = "",
        routing_group: str = "",
        allowed: Iterable[int] = (),
    ) -> Choice:
        """Choose a worker and book nothing."""
        target = _target(model, tokens, routing_group, allowed)
        request = messages.SelectRequest(selection_id=selection_id, target=target)
        return Choice(*_choice(self._call("Select", request)))

    def reserve(
        self,
        selection_id: str,
        model: str,
        tokens: Sequence[int],
        *,
        routing_group: str = "",
        allowed: Iterable[int] = (),
    ) -> Reservation:
        """Choose a worker and book it. The same call again has the same answer."""
        target = _target(model, tokens, routing_group, allowed)
        request = messages.ReserveRequest(selection_id=selection_id, target=target)
        return self._reservation(selection_id, self._call("Reserve", request))

    def reserve_selected(
        self, selection_id: str, model: str, *, routing_group: str = ""
    ) -> Reservation:
        """Book the choice of an earlier `select` with this id."""
        target = messages.Target(model=model, routing_group=routing_group)
        request = messages.ReserveRequest(
            selection_id=selection_id, target=target, from_select=True
        )
        return self._reservation(selection_id, self._call("Reserve", request))

    def prefill_complete(self, selection_id: str) -> None:
        """Report the first token of a reservation."""
        request = messages.PrefillCompleteRequest(selection_id=selection_id)
        self._call("PrefillComplete", request)

    def renew(self, selection_id: str) -> None:
        """Let a reservation live on."""
        self._call("Renew", messages.RenewRequest(selection_id=selection_id))

    def free(
        self,
        selection_id: str,
        *,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> bool:
        """End a reservation; whether there was one."""
        request = messages.FreeRequest(
            selection_id=selection_id, output_tokens=output_tokens, cached_tokens=cached_tokens
        )
        return bool(self._call("Free", request).was_open)

    def loads(
        self, model: str, tokens: Sequence[int] | None = None, *, routing_group: str = ""
    ) -> list[WorkerLoad]:
        """Work in flight on every worker; with a prompt, what each would have with it."""
        prompt = None if tokens is None else messages.Prompt(token_ids=tokens)
        request = messages.LoadsRequest(model=model, routing_group=routing_group, prompt=prompt)
        return [
            WorkerLoad(
                load.rank.worker_id,
                load.rank.dp_rank,
                load.prefill_tokens,
                load.decode_blocks,
                load.active_requests,
                load.device_blocks,
            )
            for load in self._call("Loads", request).loads
        ]

    def _call(self, name: str, request: Any) -> Any:
        return getattr(self._stub, name)(request, timeout=self._timeout_s)

    def _reservation(self, selection_id: str, response: Any) -> Reservation:
        return Reservation(*_choice(response), selection_id=selection_id, client=self)


def _target(
    model: str, tokens: Sequence[int], routing_group: str, allowed: Iterable[int]
) -> messages.Target:
    return messages.Target(
        model=model,
        routing_group=routing_group,
        prompt=messages.Prompt(token_ids=tokens),
        allowed_worker_ids=list(allowed),
    )


def _choice(response: Any) -> tuple[int, int, str, int, int]:
    choice = response.choice
    rank = choice.rank
    return (
        rank.worker_id,
        rank.dp_rank,
        choice.endpoint,
        choice.cached_tokens,
        choice.prefill_tokens,
    )
