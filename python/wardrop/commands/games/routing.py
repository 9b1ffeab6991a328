"""`wardrop games routing`: the loss of selfish routing on one instance."""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import typer

from wardrop.commands.games.report import Report, exits_cleanly
from wardrop.games.errors import GameError
from wardrop.games.routing.anarchy import analyse, analyse_large
from wardrop.games.routing.bounds import atomic_affine
from wardrop.games.routing.equilibria import ENUMERATION_LIMIT
from wardrop.games.routing.flow import SparseGame, solve_flow
from wardrop.games.routing.game import EndogenousOverlapGame, FrozenOverlapGame
from wardrop.games.routing.instances import random_endogenous, random_frozen, random_sparse
from wardrop.games.routing.potential import four_cycle_residual

_DENSE_LIMIT = 4_000_000  # requests × slots the dense assignment takes without strain


@exits_cleanly
def routing(
    requests: Annotated[int, typer.Option(envvar="WARDROP_REQUESTS", help="Requests.")] = 8,
    workers: Annotated[int, typer.Option(envvar="WARDROP_WORKERS", help="Workers.")] = 3,
    seed: Annotated[int, typer.Option(envvar="WARDROP_SEED", help="Of the instance.")] = 1,
    overlap: Annotated[
        str,
        typer.Option(
            envvar="WARDROP_OVERLAP", help="frozen, or shared with who is there: max, earlier, sum."
        ),
    ] = "frozen",
    json: Annotated[
        bool, typer.Option("--json", envvar="WARDROP_JSON", help="Print one JSON object.")
    ] = False,
) -> None:
    """How much selfish routing loses on a random instance, and whether a potential exists.

    Small instances are enumerated (exact price of anarchy and of stability, Monderer-Shapley test).
    Up to a few hundred requests the optimum is exact and equilibria are sampled. Above that the
    optimum is a certified min-cost flow, beside the equilibrium that minimises Rosenthal's
    potential.

    Examples: `wardrop games routing --requests 8 --workers 3`, and
    `wardrop games routing --requests 10000 --workers 4096`
    """
    if requests < 1 or workers < 1:
        raise GameError(f"got {requests} requests, {workers} workers; expected at least 1 of each")
    if overlap in ("max", "earlier", "sum"):
        shared = random_endogenous(seed, requests, workers, overlap)
        _small(shared, f"endogenous overlap ({overlap})").show(json)
    elif overlap != "frozen":
        raise GameError(f"got --overlap {overlap}; expected frozen, max, earlier or sum")
    elif workers**requests <= ENUMERATION_LIMIT // 20:
        _small(random_frozen(seed, requests, workers), "frozen overlap").show(json)
    elif requests * requests * workers <= _DENSE_LIMIT:
        _medium(random_frozen(seed, requests, workers), seed).show(json)
    else:
        _large(random_sparse(seed, requests, workers)).show(json)


def _small(game: FrozenOverlapGame | EndogenousOverlapGame, name: str) -> Report:
    found, residual = analyse(game), four_cycle_residual(game)
    values: dict[str, object] = {
        "optimum_cost_s": found.optimum_cost,
        "equilibria": found.equilibria,
        "price_of_anarchy": found.price_of_anarchy,
        "price_of_stability": found.price_of_stability,
        "exact": True,
        "four_cycle_residual_s": residual,
    }
    report = Report(f"routing: {game.players} requests on {game.workers} workers, {name}", values)
    exists = "an exact potential" if residual < 1e-9 else f"no potential (4-cycle {residual:.3g} s)"
    report.lines += [f"  optimum {found.optimum_cost:.6f} s; {exists}"]
    bound = f"; no worse than {atomic_affine():g}" if isinstance(game, FrozenOverlapGame) else ""
    if found.equilibria:
        report.lines.append(
            f"  {found.equilibria} pure equilibria: price of anarchy {found.price_of_anarchy:.4f}, "
            f"of stability {found.price_of_stability:.4f} (all enumerated{bound})"
        )
    else:
        report.lines.append("  no pure equilibrium: selfish routing never comes to rest here")
    report.assumptions = ("affine delays; constants are uncached prefill seconds",)
    return report


def _medium(game: FrozenOverlapGame, seed: int) -> Report:
    found = analyse_large(game, seed)
    values: dict[str, object] = {
        "optimum_cost_s": found.optimum_cost,
        "equilibria_found": found.equilibria,
        "price_of_anarchy_at_least": found.price_of_anarchy,
        "price_of_stability_at_most": found.price_of_stability,
        "exact": False,
    }
    report = Report(f"routing: {game.players} requests on {game.workers} workers", values)
    report.lines += [
        f"  optimum {found.optimum_cost:.6f} s (exact)",
        f"  {found.equilibria} equilibria found: price of anarchy at least "
        f"{found.price_of_anarchy:.4f}, of stability at most {found.price_of_stability:.4f}",
    ]
    report.assumptions = ("affine delays, frozen overlap", "equilibria by best response: a sample")
    return report


def _large(game: SparseGame) -> Report:
    start, processor = time.perf_counter(), time.process_time()
    best = solve_flow(game)
    seconds, busy = time.perf_counter() - start, time.process_time() - processor
    selfish = game.social_cost(solve_flow(game, "potential").profile)
    loads = np.bincount(best.profile, minlength=game.workers)
    values: dict[str, object] = {
        "optimum_cost_s": best.objective,
        "certified_gap_s": best.gap_seconds,
        "equilibrium_cost_s": selfish,
        "equilibrium_over_optimum": selfish / best.objective,
        "solve_s": seconds,
        "solve_processor_s": busy,
        "greatest_load": int(loads.max()),
        "exact": True,
    }
    report = Report(f"routing: {game.players} requests on {game.workers} workers", values)
    report.lines += [
        f"  optimum {best.objective:.6f} s, certified to {abs(best.gap_seconds):.1e} s, "
        f"found in {seconds:.1f} s ({busy:.1f} s of processor)",
        f"  the equilibrium of least potential costs {selfish / best.objective:.6f} × that",
        f"  tolls from {best.prices.min():.4f} to {best.prices.max():.4f} s a request",
    ]
    report.assumptions = ("affine delays, frozen overlap on 8 workers a request",)
    return report
