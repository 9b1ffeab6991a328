"""`wardrop games`: one command per question about the three games of disaggregated inference.

Each command prints a short report, or one JSON object with `--json`. A `GameError` becomes one line
on stderr and exit code 2.
"""

from __future__ import annotations

import typer

from wardrop.commands.games.caching import caching
from wardrop.commands.games.coupled import coupled
from wardrop.commands.games.plots import plots
from wardrop.commands.games.poa import poa
from wardrop.commands.games.routing import routing
from wardrop.commands.games.split import split

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Answer deployment questions with the three games of disaggregated inference.

**Which question, which command**

* How many prefill and how many decode workers? → `split`
* Where should a block live, and what does today's placement lose? → `caching`
* How much does routing lose, and could any routing do better? → `routing`, `poa`
* Will the planner oscillate, and what stops it? → `coupled`

**What a number means.** Times are seconds. A *price of anarchy* is the cost of the worst
equilibrium divided by the least possible cost: 1 means that selfish choices lose nothing. Every
report ends with the assumptions it stands on; `--json` prints the same as one JSON object.

**Traces** are Mooncake JSONL (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`):
`{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [ids]}`. Without a trace a
seeded workload is generated. **Timing tables** are planner profiles (`.npz`); without one a coarse
built-in table of Llama-3.1-70B, TP 4, on B200 is used.

**Environment.** Each flag reads a variable, named in its help; a flag wins over its variable.

**Exit codes.** 0: answered. 2: bad input; stderr names received, expected and what to
do.

**Examples**

    wardrop games split --trace T.jsonl.gz --gpus 24 --ttft 0.5 --itl 0.03
    wardrop games caching --trace T.jsonl.gz --nodes 2 --workers-per-node 4
    wardrop games routing --requests 8 --workers 3 --seed 1
    wardrop games poa --family mm1 --points 9
    wardrop games coupled --delay 90 --json > planner.json
""",
)

app.command()(split)
app.command()(caching)
app.command()(routing)
app.command()(poa)
app.command()(coupled)
app.command()(plots)
