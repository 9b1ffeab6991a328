"""The tables of `docs/reports/reliability.md`, made from the result file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


def tables(result: dict[str, Any]) -> Iterator[str]:
    """Markdown lines: one table per kind of figure, a column for each door."""
    faults = result["faults"]
    yield from _table(
        faults,
        {
            "kill_worker": "SIGKILL of a worker",
            "stop_worker": "SIGSTOP of a worker, 20 s",
            "kill_frontend": "SIGKILL of a frontend",
            "stop_frontend": "SIGSTOP of a frontend, 20 s",
        },
        {
            "running streams lost": lambda r: f"{r['lost']} of {r['hit']}",
            "later requests failed": lambda r: f"{r['failed_later']} of {r['sent_later']}",
            "longest silence, s": lambda r: f"{r['longest_silence_s']:.2f}",
            "p99 to the first token, s": lambda r: f"{r['ttft_p99_s']:.2f}",
        },
    )
    yield from _table(
        faults,
        {"same_id_restart": "restart under the same id: 40 blocks, then 5"},
        {
            "blocks believed": lambda r: f"{r['blocks_after_restart']}",
            "right after, s": lambda r: _optional(r["right_after_s"]),
        },
    )
    yield from _table(
        faults,
        {"silent_feed": "half-open feed while the worker forgets 40 blocks"},
        {
            "blocks believed after 30 s": lambda r: f"{r['blocks_believed_after_30_s']}",
            "noticed after, s": lambda r: _optional(r["noticed_after_s"]),
        },
    )
    yield from _table(
        faults,
        {"many_workers": "1,000 workers in the store, each with a feed"},
        {
            "threads": _from_to("threads"),
            "descriptors": _from_to("descriptors"),
            "resident memory, MB": _from_to("resident_mb"),
            "of it the router's process": lambda r: _alone(r.get("router_alone")),
        },
    )
    yield from _table(
        faults,
        {
            "large_prompts": "two prompts of 44 MB",
            "slow_clients": "4,096 slow clients",
        },
        {
            "small requests failed": lambda r: f"{r['small_failed']} of {r['small_requests']}",
            "small requests: p99, ms": lambda r: _ms(r["small_p99_s"]),
            "longest, ms": lambda r: _ms(r["small_longest_s"]),
            "p99 before, ms": lambda r: _ms(r["small_p99_before_s"]),
            "descriptors": _from_to("descriptors"),
            "answers to the large prompts": lambda r: ", ".join(r.get("answers", ["–"])),
        },
    )
    yield from _table(
        faults,
        {"invented_ranks": "20,000 invented ranks"},
        {
            "small requests: p99 before, ms": lambda r: _ms(r["small_p99_before_s"]),
            "p99 after, ms": lambda r: _ms(r["small_p99_after_s"]),
            "failed": lambda r: f"{r['small_failed']}",
            "resident memory, MB": _from_to("resident_mb"),
        },
    )


def _table(
    faults: dict[str, Any], names: dict[str, str], figures: dict[str, Callable[[Row], str]]
) -> Iterator[str]:
    names = {key: text for key, text in names.items() if key in faults}
    if not names:
        return
    yield "| fault | figure | Dynamo's KV router | Wardrop |"
    yield "|---|---|---|---|"
    for key, text in names.items():
        for figure, show in figures.items():
            cells = [_cell(faults[key].get(door, []), show) for door in ("dynamo", "wardrop")]
            if any(cell != "–" for cell in cells):
                yield f"| {text} | {figure} | {cells[0]} | {cells[1]} |"
                text = ""
    yield ""


def _cell(rows: list[Row], show: Callable[[Row], str]) -> str:
    """One text per round, of the rounds that have the figure."""
    shown: list[str] = []
    for row in rows:
        try:
            shown.append(show(row))
        except KeyError:
            shown.append("–")
    return "; ".join(shown) or "–"


def _from_to(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name][0]:,} → {row[name][1]:,}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def _optional(seconds: float | None) -> str:
    return "not in time" if seconds is None else f"{seconds:.1f}"


def _alone(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{row['threads']} threads, {row['descriptors']:,} descriptors"
