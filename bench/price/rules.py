"""The policies that are judged, and the static rules that they are compared with."""

from __future__ import annotations

DEFAULTS = [
    "round_robin",
    "least_loaded",
    "power_of_two",
    "lmetric",
    "dynamo",
    "two_tier",
    "sticky",
    "chwbl",
]
"""Every static rule as it comes."""

KNOWN = ["dynamo", "sticky", "lmetric"]
"""Shown in every table, tuned or not."""

GRID = [
    *(f"dynamo(prefill_load_scale={scale})" for scale in (0.5, 2, 4, 8)),
    *(f"dynamo(router_temperature={tau})" for tau in (0.2, 0.5)),
    *(f"dynamo(decode_active_request_weight={weight})" for weight in (4, 16)),
    "dynamo(overlap_score_credit=0.5)",
    "dynamo(prefill_load_scale=4,decode_active_request_weight=4)",
    "dynamo(prefill_load_scale=8,decode_active_request_weight=16)",
    *(f"two_tier(match_share={share})" for share in (0.1, 0.3, 0.7, 0.9)),
    *(
        f"sticky(keep_share={keep},min_share={least})"
        for keep in (0.5, 0.7, 0.8, 0.9)
        for least in (0.1, 0.3, 0.5)
    ),
    *(f"chwbl(load_factor={factor})" for factor in (1.1, 1.5, 2.0)),
]
"""What the static rules are tuned over, for every cell and metric."""

COARSE = [
    *(f"dynamo(prefill_load_scale={scale})" for scale in (2, 4, 8)),
    "dynamo(prefill_load_scale=8,decode_active_request_weight=16)",
    *(f"two_tier(match_share={share})" for share in (0.3, 0.7)),
    *(f"sticky(keep_share={k},min_share={m})" for k, m in ((0.5, 0.1), (0.7, 0.3), (0.9, 0.5))),
    "chwbl(load_factor=1.5)",
]
"""A coarser grid, for kinds of traffic."""

OURS = [
    "toll",
    "toll(ttft=0,e2e=1)",
    "toll(ttft=0,goodput=1)",
    "toll(ttft=0,itl=1)",
    "toll+queue(kappa=0)",
    "toll+queue(kappa=10)",
    "toll+queue(kappa=10,patience=0)",
    "toll+queue(kappa=30)",
    "paper",
]
"""The price under each objective, the queue in front of it, and the paper's controller."""

KIND_OURS = ["toll", "toll+queue(kappa=10)", "toll+queue(kappa=10,patience=0)"]
"""The price and the queue on kinds of traffic."""


def static_rules(is_kind: bool) -> list[str]:
    """Every static rule that is tried on recorded traces, or on a kind of traffic."""
    return [*DEFAULTS, *(COARSE if is_kind else GRID)]
