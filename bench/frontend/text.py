"""The result as Markdown tables, and each goal as met or missed."""

from __future__ import annotations

from typing import Any

from bench.frontend.arms import ARMS, KV, ROUND_ROBIN, WARDROP

_PHASES = {
    "ids_c32_t1": "ids, c = 32, 1 token",
    "ids_c32_t128": "ids, c = 32, 128 tokens",
    "text_c32_t1": "text, c = 32, 1 token",
    "talk_c8": "talks of 8 turns, c = 8",
}


def table(result: dict[str, Any]) -> str:
    """CPU and rate of each arm, then latency and memory, then faults."""
    figures, extra = result["median"], result["extra_cpu_us"]
    rows = ["CPU of the frontend in µs per request (extra over round robin); requests/s", ""]
    rows += ["| | " + " | ".join(_PHASES.values()) + " |", "|---" * (len(_PHASES) + 1) + "|"]
    for key, phases in figures.items():
        cells = [
            f"{phases[phase]['router_cpu_us']:,.0f}"
            + (f" ({extra[key][phase]:+,.0f})" if key in extra else "")
            + f"; {phases[phase]['requests_per_s']:,.0f}"
            for phase in _PHASES
        ]
        rows.append(f"| {ARMS[key].label} | " + " | ".join(cells) + " |")
    rows += ["", "| | p50, c = 1, ms | streams of 8 tokens, c = 1, ms | memory, MiB |"]
    rows.append("|---|---|---|---|")
    for key, phases in figures.items():
        rows.append(
            f"| {ARMS[key].label} | {phases['ids_c1']['latency_p50_ms']:.2f} | "
            f"{phases['streams_c1']['latency_p50_ms']:.1f} | {phases['memory']['rss_mib']:.0f} |"
        )
    if result["faults"]:
        rows += ["", "| | fault | streams hit | lost | sent later | failed | longest silence, s |"]
        rows.append("|---|---|---|---|---|---|---|")
    for key, faults in result["faults"].items():
        for name, seen in faults.items():
            rows.append(
                f"| {ARMS[key].label} | {name} | {seen['hit']} | {seen['lost']} | "
                f"{seen['sent_later']} | {seen['failed_later']} | "
                f"{seen['longest_silence_s']:.2f} |"
            )
    return "\n".join(rows)


def goals(result: dict[str, Any]) -> str:
    """Each goal as met or missed; empty without the arms that the goals compare."""
    figures, extra = result["median"], result["extra_cpu_us"]
    if not {ROUND_ROBIN.key, KV.key, WARDROP.key} <= set(figures):
        return ""
    base, ours, of_ours = figures[ROUND_ROBIN.key], figures[WARDROP.key], extra[WARDROP.key]
    over_off = result["extra_over_off_us"].get(WARDROP.key, {})
    p50 = ours["ids_c1"]["latency_p50_ms"] - base["ids_c1"]["latency_p50_ms"]
    rate = {
        phase: ours[phase]["requests_per_s"] / base[phase]["requests_per_s"]
        for phase in ("ids_c32_t1", "ids_c32_t128")
    }
    stream_ms = ours["streams_c1"]["latency_p50_ms"]
    memory, base_memory = ours["memory"]["rss_mib"], base["memory"]["rss_mib"]
    lines = [
        ("extra CPU, 1 token, µs", of_ours["ids_c32_t1"], "≤ 50", of_ours["ids_c32_t1"] <= 50),
        (
            "extra CPU, 128 tokens, µs",
            of_ours["ids_c32_t128"],
            "≤ 100",
            of_ours["ids_c32_t128"] <= 100,
        ),
        *(
            (
                f"over our own binary, {_PHASES[phase]}, µs",
                over_off[phase],
                f"≤ {most}",
                over_off[phase] <= most,
            )
            for phase, most in (("ids_c32_t1", 50), ("ids_c32_t128", 100))
            if over_off
        ),
        (
            "extra CPU, text, µs",
            of_ours["text_c32_t1"],
            f"≤ {extra[KV.key]['text_c32_t1']:.0f}, Dynamo's KV router",
            of_ours["text_c32_t1"] <= extra[KV.key]["text_c32_t1"],
        ),
        ("extra CPU, 8 turns, µs", of_ours["talk_c8"], "< 0", of_ours["talk_c8"] < 0),
        ("p50 added at c = 1, ms", p50, "≤ 0.02", p50 <= 0.02),
        ("streams at c = 1, ms", stream_ms, "≤ 10", stream_ms <= 10),
        *(
            (f"requests/s over round robin, {phase}", share, "≥ 0.98", share >= 0.98)
            for phase, share in rate.items()
        ),
        ("memory, MiB", memory, f"< {base_memory:.0f}", memory < base_memory),
    ]
    for name, seen in result["faults"].get(WARDROP.key, {}).items():
        failed = seen["lost"] + seen["failed_later"]
        lines.append((f"{name}: lost and failed", failed, "0", failed == 0))
        silence_s = seen["longest_silence_s"]
        lines.append((f"{name}: longest silence, s", silence_s, "≤ 2.5", silence_s <= 2.5))
    shown = [
        f"{'met   ' if is_met else 'MISSED'}  {name}: {value:,.2f} (goal: {goal})"
        for name, value, goal, is_met in lines
    ]
    if len(result["rounds"]) < len(figures):
        shown.insert(
            0, "UNBALANCED: fewer rounds than arms, so an arm's turn is part of its figures"
        )
    return "\n".join(shown)
