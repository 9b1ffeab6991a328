"""Wardrop's own decision records: JSON lines that a router writes with `--records DIR`.

A line is a request (`wardrop.record/1`), the settings that a version number names
(`wardrop.settings/1`), or a window of the price of anarchy (`wardrop.window/1`). A router writes a
request when it ends, so the rows are sorted by arrival here. A last line without a line end was
being written when its router died, and is left out when it cannot be read. The reference page on
records explains each field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Annotated, Literal

import msgspec

from wardrop.traces.fields import Line
from wardrop.traces.rows import TraceError, TraceFile, TraceRow

RECORD = "wardrop.record/1"
SETTINGS = "wardrop.settings/1"
WINDOW = "wardrop.window/1"
FILES = "requests-*.jsonl*"
"""Names of the files in a folder of records; a packed file has a further suffix."""


class Worker(msgspec.Struct):
    """A worker: an engine instance and its data-parallel rank."""

    instance: int
    dp_rank: int


class AtOnce(msgspec.Struct):
    """The placement that a request which waited would have had at its arrival.

    Attributes:
        worker: the cheapest worker at the arrival.
        cost: its cost, in the unit of the policy; None where the cost was no finite number.
        gained_s: this cost minus the cost of the late placement minus the wait, in seconds; None
            for a policy whose costs are no seconds.
    """

    worker: Worker
    cost: float | None
    gained_s: float | None


class Leg(msgspec.Struct):
    """One placement: one in a pool of aggregated workers, two in a split, more after a failure.

    Attributes:
        role: part of the request that the pool serves.
        worker: the chosen worker.
        cost: its cost, in the unit of the policy.
        margin: cost of the next worker minus `cost`; None with one candidate.
        parts: terms of the cost; names that end in `_s` are seconds.
        candidates: workers that could be chosen.
        overlap_blocks: leading blocks of the prompt that the router expects in the worker's cache.
        waited_s: seconds in the router's queue.
        cause: what ended the wait.
        at_once: what the wait replaced; None for a request that did not wait.
        misfit: why a static rule decided in place of the policy; None where the policy decided.
    """

    role: Literal["aggregated", "prefill", "decode"]
    worker: Worker
    cost: float | None
    margin: float | None
    parts: dict[str, float | None]
    candidates: int
    overlap_blocks: int
    waited_s: float
    cause: str
    at_once: AtOnce | None
    misfit: str | None = None


class Outcome(msgspec.Struct):
    """What came of a request.

    Attributes:
        how: finished, broken, client_left, error (the upstream's) or refused (the router's).
        status: status of the answer; 0 when the client left before the answer.
        ttft_s: seconds to the first byte of the answer.
        e2e_s: seconds to the last byte of the answer.
        input_tokens: prompt tokens as the engine reported them.
        output_tokens: tokens of the answer, or of the part of a stream that arrived.
        cached_tokens: cached prompt tokens as the engine reported them.
        predicted_cached_tokens: cached prompt tokens as the router predicted them.
    """

    how: str
    status: int
    ttft_s: float | None
    e2e_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    predicted_cached_tokens: int


class Record(msgspec.Struct):
    """One request.

    Attributes:
        schema: `wardrop.record/1`.
        request_id: the x-request-id.
        arrived_s: Unix time at which the whole request had arrived, in seconds.
        model: name of the model.
        block_size: tokens of a block.
        input_tokens: prompt tokens as the router counted them.
        is_estimated: the prompt was not known, and `input_tokens` is a guess.
        expected_output_tokens: answer length of the hint `nvext.agent_hints.osl`.
        is_streamed: the client asked for a stream.
        block_ids: names of the full blocks of the prompt, each for the block and all before it.
        tenant_id: name of the tenant under the key of the records.
        priority: priority that the client named.
        deadline_ms: deadline that the client named.
        regime: state of the fleet.
        window: window of the price of anarchy; None for a request that no window took.
        policy: name of the policy in force.
        settings_version: number of the settings in force, as `Settings.version`.
        queued_s: seconds in the router's queue, over all legs.
        abstained: reason for which Dynamo chose the worker.
        legs: the placements.
        outcome: what came of the request.
    """

    schema: Literal["wardrop.record/1"]
    request_id: str | None
    arrived_s: float
    model: str
    block_size: int
    input_tokens: int
    is_estimated: bool
    expected_output_tokens: int | None
    is_streamed: bool
    block_ids: list[int]
    tenant_id: int | None
    priority: int
    deadline_ms: int | None
    regime: str | None
    window: int | None
    policy: str
    settings_version: int
    queued_s: float
    abstained: str | None
    legs: list[Leg]
    outcome: Outcome


class Settings(msgspec.Struct):
    """Settings of the decisions.

    Attributes:
        schema: `wardrop.settings/1`.
        version: 1 when the router starts, and one more after each change.
        router_id: name of the router.
        policy: name and parameters of the policy.
        queue: parameters of the queue; None without a queue.
    """

    schema: Literal["wardrop.settings/1"]
    version: int
    router_id: str
    policy: dict[str, object]
    queue: dict[str, object] | None


class WindowCosts(msgspec.Struct):
    """Costs of the requests of a window.

    Attributes:
        requests: finished requests in the sums.
        paid_s: seconds that they paid.
        lower_s: seconds that no routing can go below.
    """

    requests: int
    paid_s: float
    lower_s: float


class Window(msgspec.Struct):
    """A window of the price of anarchy, as the router computed it.

    Attributes:
        schema: `wardrop.window/1`.
        model: name of the model.
        window: number of the window, as in `Record.window`.
        fleet: workers and learned curves behind the bound, as `StreamBound.window` takes them.
        ttft: costs by the time to the first token.
        e2e: costs by the time to the last token.
    """

    schema: Literal["wardrop.window/1"]
    model: str
    window: int
    fleet: msgspec.Raw
    ttft: WindowCosts
    e2e: WindowCosts


class WindowRequest(msgspec.Struct):
    """What a window needs of a record. Every other field is skipped.

    Attributes:
        arrived_s: Unix time of the arrival, seconds.
        model: name of the model.
        block_size: tokens of a block.
        input_tokens: prompt tokens as the router counted them.
        is_estimated: the prompt was not known.
        is_streamed: the client asked for a stream.
        block_ids: names of the full blocks of the prompt.
        legs: the placements.
        outcome: what came of the request.
        window: the window that took the request; None in the records of a router without windows.
    """

    arrived_s: float
    model: str
    block_size: Annotated[int, msgspec.Meta(ge=1)]
    input_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    is_estimated: bool
    is_streamed: bool
    block_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=2**53)]]
    legs: list[_Overlap]
    outcome: _Times
    window: int | None = None


class _Overlap(msgspec.Struct):
    overlap_blocks: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class _Times(msgspec.Struct):
    how: str
    ttft_s: float | None
    e2e_s: float | None
    output_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None
    cached_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None


class _AnyLine(msgspec.Struct):
    schema: str


class _Request(msgspec.Struct):
    """What a replay reads of a record. It skips every other field."""

    arrived_s: float
    model: str
    block_size: Annotated[int, msgspec.Meta(ge=1)]
    input_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    is_estimated: bool
    block_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=2**53)]]
    outcome: _End


class _End(msgspec.Struct):
    input_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None
    output_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None


_LINE = msgspec.json.Decoder(_AnyLine)
_REQUEST = msgspec.json.Decoder(_Request)
_WINDOW = msgspec.json.Decoder(Window)
_WINDOW_REQUEST = msgspec.json.Decoder(WindowRequest)


def is_record(keys: dict[str, msgspec.Raw]) -> bool:
    """Whether a first row with these keys belongs to a file of decision records."""
    return bytes(keys.get("schema", b"")).startswith(b'"wardrop.')


def parse_records(
    name: str, lines: Iterable[Line], limit: int | None, model: str | None
) -> TraceFile:
    """The requests of decision records, by arrival; at most `limit` of them, in file order.

    The number of output tokens is unknown for a request that was refused or that ended in an error.
    Such a request gets the median of the known numbers, because its client asked for an answer.

    Args:
        name: name of the file or folder, for errors.
        lines: the lines of all files.
        limit: read at most this many requests; all by default.
        model: read this model only; None where the records hold one model.

    Raises:
        TraceError: a field is missing or not as expected, the records hold several models and none
            was chosen, or they differ in block size.
    """
    models: dict[str, int] = {}
    requests: list[_Request] = []
    for line in lines:
        request = _request(line)
        if request is None:
            continue
        models[request.model] = models.get(request.model, 0) + 1
        if model is None or request.model == model:
            requests.append(request)
        if limit is not None and len(requests) >= limit:
            break
    if model is None and len(models) > 1:
        raise TraceError(
            f"{name}: got records of the models {_counted(models)}; expected one model: choose it "
            "with --model"
        )
    if not requests:
        found = f"of the models {_counted(models)}" if models else "no record"
        raise TraceError(f"{name}: got {found}; expected a record of {model or 'a request'}")
    sizes = {request.block_size for request in requests}
    if len(sizes) != 1:
        raise TraceError(
            f"{name}: got the block sizes {sorted(map(str, sizes))}; expected one for all records "
            "of a model"
        )
    requests.sort(key=lambda request: request.arrived_s)
    known = [request.outcome.output_tokens for request in requests]
    usual = int(median([tokens for tokens in known if tokens] or [1]))
    rows = tuple(
        TraceRow(
            request.arrived_s * 1e3,
            _input_tokens(request),
            request.outcome.output_tokens or usual,
            tuple(request.block_ids),
        )
        for request in requests
    )
    return TraceFile(name, rows, sizes.pop())


def _request(line: Line) -> _Request | None:
    """The request of a line; None for settings and for a last line that was cut off."""
    try:
        schema = line.decode(_LINE).schema
        if schema in (SETTINGS, WINDOW):
            return None
        if schema != RECORD:
            raise line.error("schema", schema, f"{RECORD}, {SETTINGS} or {WINDOW}")
        return line.decode(_REQUEST)
    except TraceError:
        if line.text.endswith(b"\n"):
            raise
        return None


def parse_windows(lines: Iterable[Line]) -> Iterator[WindowRequest | Window]:
    """The requests and the windows of decision records, in file order.

    Raises:
        TraceError: a field is missing or not as expected.
    """
    for line in lines:
        try:
            schema = line.decode(_LINE).schema
            if schema == RECORD:
                yield line.decode(_WINDOW_REQUEST)
            elif schema == WINDOW:
                yield line.decode(_WINDOW)
            elif schema != SETTINGS:
                raise line.error("schema", schema, f"{RECORD}, {SETTINGS} or {WINDOW}")
        except TraceError:
            if line.text.endswith(b"\n"):
                raise


def _input_tokens(request: _Request) -> int:
    reported = request.outcome.input_tokens if request.is_estimated else None
    return max(reported or request.input_tokens, 1)


def _counted(models: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(models.items()))
