"""`python -m bench.paper poa|regimes|guard|adaptive|sweep|winnable|live`: run and draw one.

Needs `WARDROP_SHARED` (timing tables and traces). Figures go to bench/results/paper/*.json,
pictures to docs/reports/paper/img/*.png; `--draw` draws the figures of an earlier run.
"""

from __future__ import annotations

import argparse

from bench.paper import adaptive, guard, poa, regimes, sweep, winnable
from bench.paper.settings import read


def main() -> None:
    """Run and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("poa", "regimes", "guard", "adaptive", "sweep", "winnable", "live")
    parser.add_argument("experiment", choices=names)
    parser.add_argument(
        "--seeds", type=int, help="repetitions; by default as in docs/reports/paper"
    )
    parser.add_argument("--requests", type=int, default=2000, help="per point of a closed loop")
    parser.add_argument("--seconds", type=float, default=12.0, help="per point of `live`")
    parser.add_argument("--draw", action="store_true", help="only draw the last figures")
    options = parser.parse_args()
    if options.experiment == "live":
        # `live` moves into a private network namespace, which must happen before threads start.
        from bench.paper import live

        found = read("live") if options.draw else live.run(options.seconds)
        live.draw(found)
        return
    seeds = options.seeds
    runs = {
        "poa": lambda: poa.run(seeds or 2, options.requests),
        "regimes": lambda: regimes.run(seeds or 5),
        "guard": lambda: guard.run(seeds or 8),
        "adaptive": lambda: adaptive.run(seeds or 5),
        "sweep": lambda: sweep.run(seeds or 3, options.requests),
        "winnable": lambda: winnable.run(seeds or 3),
    }
    module = {
        "poa": poa,
        "regimes": regimes,
        "guard": guard,
        "adaptive": adaptive,
        "sweep": sweep,
        "winnable": winnable,
    }[options.experiment]
    module.draw(read(options.experiment) if options.draw else runs[options.experiment]())


if __name__ == "__main__":
    main()
