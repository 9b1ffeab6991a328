"""`wardrop games caching`: where the hottest blocks should live."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wardrop.commands.games.report import Report, exits_cleanly
from wardrop.commands.games.split import trace_or_generated
from wardrop.games.caching.demand import FleetCaches, game_of, judge_placement, replay_caches
from wardrop.games.caching.topology import Topology
from wardrop.games.errors import GameError

_ASSUMPTIONS = (
    "only the hottest blocks are priced, one object each, in the room that they have today",
    "today = LRU in G1 and G2 with KVBM's rule: count 1, doubled when seen, kept in G2 from 2",
    "a block may be fetched from any worker that holds it, over the topology's links",
)


@exits_cleanly
def caching(
    trace: Annotated[
        Path | None, typer.Option(envvar="WARDROP_TRACE", help="Mooncake JSONL; else generated.")
    ] = None,
    nodes: Annotated[int, typer.Option(envvar="WARDROP_NODES", help="Nodes of the fleet.")] = 2,
    workers_per_node: Annotated[
        int, typer.Option(envvar="WARDROP_WORKERS_PER_NODE", help="Workers in a node.")
    ] = 4,
    g1_blocks: Annotated[
        int, typer.Option(envvar="WARDROP_G1_BLOCKS", help="Blocks in a worker's HBM.")
    ] = 2_000,
    g2_blocks: Annotated[
        int, typer.Option(envvar="WARDROP_G2_BLOCKS", help="Blocks in its host memory.")
    ] = 4_000,
    objects: Annotated[
        int, typer.Option(envvar="WARDROP_OBJECTS", help="How many of the hottest blocks.")
    ] = 48,
    routing: Annotated[
        str, typer.Option(envvar="WARDROP_ROUTING", help="round_robin or affinity.")
    ] = "affinity",
    requests: Annotated[
        int | None, typer.Option(envvar="WARDROP_REQUESTS", help="Only the first so many.")
    ] = None,
    seed: Annotated[int, typer.Option(envvar="WARDROP_SEED", help="Of a generated trace.")] = 1,
    json: Annotated[
        bool, typer.Option("--json", envvar="WARDROP_JSON", help="Print one JSON object.")
    ] = False,
) -> None:
    """Where the hottest blocks should live, and what today's placement loses.

    The trace is replayed over caches as they work today; then the placement game of its hottest
    blocks is solved: today's placement, the equilibrium that selfish workers reach from it, and the
    exact optimum, all in the same room. Costs are seconds of fetching per second of service.

    Example: `wardrop games caching --trace T.jsonl.gz --nodes 2 --workers-per-node 4`
    """
    if routing not in ("round_robin", "affinity"):
        raise GameError(f"got --routing {routing}; expected round_robin or affinity")
    load = trace_or_generated(trace, seed, 1.0, requests)
    fleet = FleetCaches(Topology.grid(1, nodes, workers_per_node), g1_blocks, g2_blocks)
    replay = replay_caches(
        load, fleet, objects, "affinity" if routing == "affinity" else "round_robin"
    )
    verdict = judge_placement(game_of(replay, fleet, load), replay)
    values: dict[str, object] = {
        **asdict(verdict),
        "price_of_today": verdict.price_of_today,
        "price_of_selfishness": verdict.price_of_selfishness,
        "hit_share": replay.hit_share,
        "requests": load.requests,
        "objects": len(replay.objects),
    }
    report = Report(
        f"caching: today's placement costs {verdict.price_of_today:.3f} × the optimum",
        values,
        assumptions=_ASSUMPTIONS,
    )
    report.lines += [
        f"workload {load.name}: {load.requests} requests on {fleet.topology.workers} workers, "
        f"{routing} routing, {100 * replay.hit_share:.1f} % of blocks found on the chosen worker",
    ]
    base = max(verdict.optimum_cost, 1e-300)
    rows = [
        ("nothing kept", verdict.nothing_cost),
        ("today", verdict.today_cost),
        ("selfish equilibrium", verdict.equilibrium_cost),
        ("optimum", verdict.optimum_cost),
    ]
    rows += [(f"hottest eighth × {copies}", cost) for copies, cost in verdict.replication]
    report.table(
        ("placement", "ms/s", "× optimum"),
        [
            (name, f"{1e3 * cost:.4f}", f"{cost / base:.3f}" if verdict.optimum_cost > 0 else "-")
            for name, cost in rows
        ],
    )
    if not verdict.converged:
        report.lines.append(
            "best response did not rest: the equilibrium row is where it was stopped"
        )
    report.show(json)
