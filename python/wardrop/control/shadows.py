"""The shadow reports of a running gateway as text, for `wardrop shadows`."""

from __future__ import annotations

from typing import Any, cast

Figures = dict[str, Any]

_COLUMNS = (
    ("ttft", "ttft_s", 1e3, " ms"),
    ("p99", "ttft_p99_s", 1e3, " ms"),
    ("itl", "itl_s", 1e3, " ms"),
    ("e2e", "e2e_s", 1.0, " s"),
    ("reuse", "cached_share", 100.0, " %"),
    ("goodput", "goodput", 100.0, " %"),
)
_LIMITS = {
    "shared_cache": "a cache that all workers share",
    "kv_memory": "16 times the KV memory",
    "pooled_queue": "one queue for all workers",
    "shortest_first": "one queue, short prompts first",
    "one_more_worker": "one more worker",
    "one_more_prefill_worker": "one more prefill worker",
    "one_more_decode_worker": "one more decode worker",
}
_AGAINST = (("ttft", "ttft_ratio"), ("p99", "ttft_p99_ratio"), ("e2e", "e2e_ratio"))


def table(models: list[Figures]) -> str:
    """Per model two lines on trust and cost, then a row per policy.

    Differences from the policy in force are paired, in percent, with their 95 % interval. A star
    marks a difference whose interval excludes 0, if the simulated clock is trusted.
    """
    return "\n\n".join(_model(model) for model in models) or "no model yet"


def _model(model: Figures) -> str:
    title = f"{model['model']} ({' and '.join(model['roles']) or 'no workers'})"
    if "arms" not in model:
        return f"{title}: no shadows: {model['note']}"
    trust = model["trust"]
    clock = f"{trust['clock_ratio']:.2f}" if trust["clock_ratio"] is not None else "unknown"
    counts = model["counts"]
    lines = [
        f"{title}, {model['workers']} workers: "
        + ("trusted" if trust["trusted"] else f"in doubt: {trust['reason']}"),
        f"simulated over measured time to first token {clock} ({trust['measured']} requests); "
        f"{model['ticks']} of {model['window_ticks']} ticks, {model['age_s'] or 0:.0f} s old; "
        f"{100 * model['busy_share']:.2f} % of a core, at most {100 * model['cpu_share']:g} %; "
        f"{counts['simulated']} requests fed, {counts['dropped']} dropped, "
        f"{counts['passed_over']} passed over",
    ]
    if model["assumed_capacities"]:
        lines.append(
            f"{model['assumed_capacities']} workers did not report their KV capacity; the "
            "simulation assumes 16,384 blocks"
        )
    heads = "".join(f"{name:>10}" for name, *_ in _COLUMNS)
    against = "".join(f"{'Δ ' + name + ' %':>24}" for name, _ in _AGAINST)
    width = max(12, *(len(arm["name"]) for arm in model["arms"])) + 2
    lines.append(f"{'policy':<{width}}{heads}{against}")
    for arm in model["arms"]:
        cells = "".join(_figure(arm, model, *column) for column in _COLUMNS)
        ratios = "".join(f"{_ratio(arm[key], trust['trusted']):>24}" for _, key in _AGAINST)
        lines.append(f"{arm['name']:<{width}}{cells}{ratios}".rstrip())
    return "\n".join(lines + _limits(model))


def _limits(model: Figures) -> list[str]:
    """What relaxing each limit saves of the mean times in force; empty without such arms."""
    trusted = model["trust"]["trusted"]
    lines: list[str] = []
    if model["limits"]:
        lines = ["", f"{'what would help':<34}{'TTFT saved %':>24}{'E2E saved %':>24}"]
    for found in model["limits"]:
        cells = "".join(
            f"{_saving(found[key], trusted):>24}" for key in ("ttft_saving", "e2e_saving")
        )
        served = found["completed"], found["completed_in_force"]
        note = "" if served[0] == served[1] else f"  {served[0]} requests, {served[1]} in force"
        lines.append(f"{_LIMITS[found['limit']]:<34}{cells}{note}".rstrip())
    for limit in model["limits_without_room"]:
        lines.append(f"{_LIMITS[limit]}: left out; it needs a higher --shadows-max-blocks")
    return lines


def _saving(saving: Figures | None, trusted: bool) -> str:
    if saving is None:
        return "–"
    value, low, high = (100 * saving[end] for end in ("value", "low", "high"))
    star = "*" if trusted and (low > 0 or high < 0) else " "
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}){star}"


def _figure(arm: Figures, model: Figures, name: str, key: str, scale: float, unit: str) -> str:
    figure = cast(Figures | None, arm[key])
    if figure is None or (name == "goodput" and not model["has_goodput"]):
        return f"{'–':>10}"
    value = scale * figure["value"]
    return f"{f'{value:.0f}' if value >= 100 else f'{value:.3g}'}{unit}".rjust(10)


def _ratio(ratio: Figures | None, trusted: bool) -> str:
    if ratio is None:
        return "–"
    value, low, high = (100 * (ratio[end] - 1) for end in ("value", "low", "high"))
    star = "*" if trusted and (low > 0 or high < 0) else " "
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}){star}"
