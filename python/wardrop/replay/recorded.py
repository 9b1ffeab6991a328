"""The live price of anarchy once more, from decision records alone.

A router with `--records` writes the number of its window into each request. For each window it
writes one line with the workers and curves behind the bound. This module computes cost and bound of
every window again, with the same native code, from the lengths, block ids and times of the records.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

from wardrop._core import StreamBound, stream_price
from wardrop.traces import TraceError
from wardrop.traces.read import read_windows
from wardrop.traces.records import Window, WindowCosts, WindowRequest

Costs = tuple[int, float, float]
"""Number of requests, seconds that they paid, and seconds that no routing can go below."""

_Paid = tuple[int, float | None, float]
_Request = tuple[float, int, "array[int]", int, _Paid | None]


@dataclass(frozen=True)
class Price:
    """Paid over lower bound: the price of anarchy is at most `value`.

    Attributes:
        value: sum of the paid seconds over the sum of the bounds.
        interval: 95 % interval over windows; None with fewer than 4 windows.
        requests: finished requests in the sums.
        live: the same figure as the router computed it.
    """

    value: float
    interval: tuple[float, float] | None
    requests: int
    live: float


@dataclass(frozen=True)
class RecordedPrice:
    """The price of anarchy of recorded requests.

    Attributes:
        model: name of the model.
        windows: number of windows.
        left_out: requests in no window with a bound.
        ttft: by the time to the first token; None without a streamed answer.
        e2e: by the time to the last token.
    """

    model: str
    windows: int
    left_out: int
    ttft: Price | None
    e2e: Price | None


@dataclass
class _Recorded:
    requests: dict[int, list[_Request]] = field(default_factory=dict[int, list[_Request]])
    windows: dict[int, Window] = field(default_factory=dict[int, Window])
    outside: int = 0


def price_of_records(path: str | Path, model: str | None = None) -> RecordedPrice:
    """Cost over lower bound of recorded requests, window by window.

    Args:
        path: a folder or a file of decision records.
        model: name of the model; None where the records hold one model.

    Raises:
        TraceError: the records cannot be read, hold several models and none was chosen, or hold no
            window with a bound.
    """
    models: dict[str, _Recorded] = {}
    for line in read_windows(path):
        recorded = models.setdefault(line.model, _Recorded())
        if isinstance(line, Window):
            recorded.windows[line.window] = line
        elif line.window is None:
            recorded.outside += 1
        else:
            recorded.requests.setdefault(line.window, []).append(_request(line))
    if model is None and len(models) > 1:
        raise TraceError(
            f"{path}: got records of the models {', '.join(sorted(models))}; expected one model: "
            "choose it with --model"
        )
    name = next(iter(models), "") if model is None else model
    recorded = models.get(name)
    if recorded is None or not recorded.windows:
        raise TraceError(
            f"{path}: got no window of the price of anarchy for the model {name!r}; expected lines "
            "wardrop.window/1: the router writes them with control.bound_window_s above 0, once "
            "its latency curves have learned"
        )
    return _price(name, recorded)


def _price(model: str, recorded: _Recorded) -> RecordedPrice:
    bound = StreamBound()
    ttft: list[Costs] = []
    e2e: list[Costs] = []
    left_out, last = recorded.outside, None
    priced: list[Window] = []
    for number in sorted(recorded.requests):
        if last is not None and number != last + 1:
            # The router left out requests between the two windows, and began its history again.
            bound.restart()
        last = number
        requests = recorded.requests[number]
        window = recorded.windows.get(number)
        costs = bound.window(requests, None if window is None else bytes(window.fleet).decode())
        if costs is None or window is None:
            left_out += len(requests)
            continue
        ttft.append(costs[0])
        e2e.append(costs[1])
        priced.append(window)
    return RecordedPrice(
        model,
        len(priced),
        left_out,
        _figure(ttft, [window.ttft for window in priced]),
        _figure(e2e, [window.e2e for window in priced]),
    )


def _figure(windows: list[Costs], live: list[WindowCosts]) -> Price | None:
    found = stream_price(windows)
    said = stream_price([(one.requests, one.paid_s, one.lower_s) for one in live])
    if found is None or said is None:
        return None
    return Price(*found, requests=sum(requests for requests, _, _ in windows), live=said[0])


def _request(line: WindowRequest) -> _Request:
    """A request in the form of `StreamBound.window`, as the live router sees it."""
    outcome = line.outcome
    cached = (outcome.cached_tokens or 0) // line.block_size
    found = max((leg.overlap_blocks for leg in line.legs), default=0)
    paid = None
    if (
        outcome.how == "finished"
        and outcome.output_tokens is not None
        and outcome.e2e_s is not None
    ):
        ttft_s = outcome.ttft_s if line.is_streamed else None
        paid = (outcome.output_tokens, ttft_s, outcome.e2e_s)
    blocks = array("Q", line.block_ids)
    return line.arrived_s, line.input_tokens, blocks, min(max(found, cached), 2**32 - 1), paid
