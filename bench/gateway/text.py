"""The result as a Markdown table, and each aim as met or missed."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "round_robin": "Dynamo, round robin",
    "dynamo_kv": "Dynamo, KV router",
    "wardrop": "Wardrop before a `kv` frontend",
    "wardrop_direct": "Wardrop before a `direct` frontend",
    "wardrop_frontend": "Wardrop in the frontend",
}
_ONE, _MANY = "c = 1", "c = 32, 1 token"
_GROUPS = (
    ("Prompts as token ids", (_ONE, "ids_c1"), (_MANY, "ids_c32_t1"), "ids_c32_t128"),
    (
        "Prompts as chat text, tokenised on the way",
        (_ONE, "text_c1"),
        (_MANY, "text_c32_t1"),
        None,
    ),
    (
        "Streams of 8 tokens, and conversations of 8 turns",
        ("streams, c = 1", "streams_c1"),
        ("conversations, c = 8", "talk_c8"),
        None,
    ),
)


def table(result: dict[str, Any]) -> str:
    """Markdown, one table per kind of prompt; extra CPU over round robin: of medians (of best)."""
    parts: list[str] = []
    for title, (one_name, single), (many_name, many), long in _GROUPS:
        parts += [f"\n{title}\n", _head(one_name, many_name, long is not None)]
        for arm, figures in result["median"].items():
            one, busy = figures[single], figures[many]
            row = [
                _NAMES[arm],
                f"{one['latency_p50_ms']:.2f} / {one['latency_p99_ms']:.2f}",
                f"{busy['requests_per_s']:,.0f}",
                _extra(result, arm, many),
            ]
            if long is not None:
                row += [f"{figures[long]['requests_per_s']:,.0f}", _extra(result, arm, long)]
            parts.append("| " + " | ".join(row) + " |")
    return "\n".join(parts)


def aims(result: dict[str, Any]) -> str:
    """The three aims, each met or missed, of medians and of best rounds; empty without the arms."""
    if not {"dynamo_kv", "wardrop", "round_robin"} <= set(result["median"]):
        return ""
    return _aims("medians", result["over_round_robin"], result["median"]) + _aims(
        "best rounds", result["best_over_round_robin"], result["best"]
    )


def _aims(of: str, over: dict[str, Any], medians: dict[str, Any]) -> str:
    lines: list[str] = [f"\n{of}:"]
    for phase, name in (("ids_c32_t1", "1 token"), ("ids_c32_t128", "128 tokens")):
        ours, theirs = (over[arm][phase]["router_cpu_us"] for arm in ("wardrop", "dynamo_kv"))
        lines.append(
            _verdict(
                ours <= theirs / 2,
                f"extra CPU per request, {name}: {ours:,.0f} µs, Dynamo's KV router {theirs:,.0f} "
                "µs (aim: at most half)",
            )
        )
    added_us = 1e3 * over["wardrop"]["ids_c1"]["latency_p50_ms"]
    lines.append(
        _verdict(added_us <= 60, f"p50 added at concurrency 1: {added_us:,.0f} µs (aim: ≤ 60)")
    )
    for phase, name in (("ids_c32_t1", "1 token"), ("ids_c32_t128", "128 tokens")):
        ours, theirs = (medians[arm][phase]["requests_per_s"] for arm in ("wardrop", "dynamo_kv"))
        lines.append(
            _verdict(
                ours >= theirs,
                f"requests/s at concurrency 32, {name}: {ours:,.0f}, Dynamo's KV router "
                f"{theirs:,.0f} (aim: no less)",
            )
        )
    return "\n".join(lines) + "\n"


def _head(one: str, many: str, with_long: bool) -> str:
    names = ["", f"{one}: p50 / p99, ms", f"{many}: req/s", "extra CPU, µs: median (best)"]
    if with_long:
        names += ["c = 32, 128 tokens: req/s", "extra CPU, µs: median (best)"]
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


def _extra(result: dict[str, Any], arm: str, phase: str) -> str:
    over = result["over_round_robin"].get(arm)
    if over is None:
        return "–"
    best = result["best_over_round_robin"][arm][phase]["router_cpu_us"]
    return f"{over[phase]['router_cpu_us']:+,.0f} ({best:+,.0f})"


def _verdict(met: bool, what: str) -> str:
    return f"{'met   ' if met else 'MISSED'}  {what}"
