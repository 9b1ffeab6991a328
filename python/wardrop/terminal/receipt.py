"""The receipt of one request as text: candidates, parts of each price, wait and outcome."""

from __future__ import annotations

import time
from typing import Any, cast

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wardrop.service.live.problems import MISFITS, short_name
from wardrop.terminal.numbers import count, seconds

Receipt = dict[str, Any]

PART_NAMES = {
    "own_first_token_s": "own first token",
    "own_decode_s": "own decode",
    "stall_s": "delay of requests in flight",
    "busy_period_s": "delay of arriving requests",
    "memory_s": "KV blocks in use",
    "eviction_s": "blocks evicted",
}
"""Words for the parts of the price `toll`; the parts of other policies keep their names."""

CAUSES = {
    "at_once": "it was placed at once",
    "room": "until a worker had room",
    "overflow": "until the window of the queue was full",
    "age": "until it had waited long enough",
}


def render_receipt(receipt: Receipt) -> RenderableType:
    """The story of the request, and one table of candidates per placement."""
    lines = [Text(f"• {line}") for line in story(receipt)]
    tables = [_candidates(leg) for leg in receipt["legs"]]
    return Group(*lines, *tables)


def story(receipt: Receipt) -> list[str]:
    """Sentences on the request, its placements and its outcome."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(receipt["at_s"]))
    lines = [
        f"{at}, model {receipt['model']}: {count(receipt['input_tokens'])} prompt tokens in "
        f"{count(receipt['blocks'])} full blocks",
        f"regime {receipt['regime'] or 'unknown'}, policy {receipt['routing']['policy']['name']}",
    ]
    if receipt["abstained"]:
        lines.append(f"the router left the choice to Dynamo: {receipt['abstained']}")
    for leg in receipt["legs"]:
        lines += _placement(leg)
    outcome = cast(dict[str, Any] | None, receipt["outcome"])
    lines.append("the answer is still on its way" if outcome is None else _outcome(outcome))
    return lines


def _placement(leg: dict[str, Any]) -> list[str]:
    cost = _cost_text(leg)
    worker = short_name(str(leg["worker"]["instance"]), leg["worker"]["dp_rank"])
    text = f"{leg['role']}: worker {worker} at cost {cost(leg['cost'])}"
    if leg["margin"] is not None:
        side = "below the next worker" if leg["margin"] >= 0 else "above the cheapest worker"
        text += f", {cost(abs(leg['margin']))} {side}"
    misfit = cast(str | None, leg.get("misfit"))
    blocks = leg["overlap_blocks"]
    lines = [f"{text}; {count(blocks)} blocks of the prompt are in its cache"]
    if misfit is not None:
        lines.append(f"a static rule decided: {MISFITS.get(misfit, misfit)}")
    if leg["waited_s"] > 0:
        lines.append(f"it waited {seconds(leg['waited_s'])} in the router's queue, {_cause(leg)}")
        if leg.get("at_once") is not None:
            lines.append(_gain(leg))
    else:
        lines.append(CAUSES["at_once"])
    return lines


def _gain(leg: dict[str, Any]) -> str:
    """The placement that the wait replaced, and what the wait gained or lost."""
    at_once = cast(dict[str, Any], leg["at_once"])
    worker = short_name(str(at_once["worker"]["instance"]), at_once["worker"]["dp_rank"])
    cost = at_once["cost"]
    if cost is None:
        return "at its arrival no worker had a finite cost"
    text = f"placed at its arrival, it would have gone to worker {worker} at cost "
    gained_s = cast(float | None, at_once["gained_s"])
    if gained_s is None:
        return text + _plain(cost)
    change = "gained" if gained_s >= 0 else "lost"
    return (
        f"{text}{seconds(cost)}; with its wait the request cost "
        f"{seconds(leg['cost'] + leg['waited_s'])}, so waiting {change} {seconds(abs(gained_s))}"
    )


def _cause(leg: dict[str, Any]) -> str:
    return CAUSES.get(leg["cause"], f"until: {leg['cause']}")


def _outcome(outcome: dict[str, Any]) -> str:
    how = outcome["how"].replace("_", " ")
    # A client that left before the answer got no status.
    parts = [f"{how} with status {outcome['status']}" if outcome["status"] else how]
    if outcome["ttft_s"] is not None:
        parts.append(f"first token after {seconds(outcome['ttft_s'])}")
    if outcome["e2e_s"] is not None:
        parts.append(f"end after {seconds(outcome['e2e_s'])}")
    if outcome["output_tokens"] is not None:
        parts.append(f"{count(outcome['output_tokens'])} tokens")
    if outcome["cached_tokens"] is not None:
        parts.append(
            f"{count(outcome['cached_tokens'])} cached tokens reported, "
            f"{count(outcome['predicted_cached_tokens'])} predicted"
        )
    return "outcome: " + ", ".join(parts)


def _candidates(leg: dict[str, Any]) -> Table:
    candidates = cast(list[dict[str, Any]], leg["candidates"])
    cost = _cost_text(leg)
    names = [
        name
        for name in dict.fromkeys(name for one in candidates for name in one["parts"])
        if any(one["parts"].get(name) for one in candidates)
    ]
    rest = leg["candidates_in_all"] - len(candidates)
    table = Table(
        title=f"candidates ({leg['role']})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption=f"{rest} more expensive workers are left out" if rest > 0 else None,
    )
    table.add_column("worker", no_wrap=True)
    parts = [PART_NAMES.get(name) or name for name in names]
    shows_trust = any(one["trust"] != "exact" for one in candidates)
    trust = ("listed blocks", "trust") if shows_trust else ()
    for name in ("cost", "cached blocks", *trust, "requests", *parts):
        table.add_column(name, justify="right")
    for one in candidates:
        chosen = one["worker"] == leg["worker"]
        blocks = one["device_blocks"] + one["host_blocks"] + one["disk_blocks"]
        table.add_row(
            short_name(str(one["worker"]["instance"]), one["worker"]["dp_rank"])
            + (" ✓" if chosen else ""),
            cost(one["cost"]),
            count(blocks),
            *((count(one["listed_blocks"]), _mode(one)) if shows_trust else ()),
            count(one["active_requests"]),
            *(_part_text(name, one["parts"].get(name, 0.0)) for name in names),
            style="bold" if chosen else "",
        )
    return table


def _mode(candidate: dict[str, Any]) -> str:
    return str(candidate["trust"]).replace("_", " ")


def _cost_text(leg: dict[str, Any]) -> Any:
    """Format of costs: seconds where the policy prices time, else plain numbers."""
    parts = {name for one in leg["candidates"] for name in one["parts"]}
    return seconds if any(name.endswith("_s") for name in parts) else _plain


def _part_text(name: str, value: float) -> str:
    return seconds(value) if name.endswith("_s") else _plain(value)


def _plain(value: float) -> str:
    return f"{value:.4g}"
