"""The three games, cell by cell: a tutorial that a test runs."""

# %% [markdown]
# # The three games, cell by cell
#
# Run this file, or open it in a notebook editor (percent format). It needs numpy and scipy only,
# and no trace: the workload is generated.

# %%
from wardrop.games.caching import FleetCaches, Topology, game_of, judge_placement, replay_caches
from wardrop.games.coupled import Planner, critical_gain, example_fleet, run_loop
from wardrop.games.resource import Engine, QueueingSource, Slo, builtin_timing, choose_split
from wardrop.games.routing import analyse, best_response, greedy, solve_flow
from wardrop.games.routing.instances import random_endogenous, random_frozen, random_sparse
from wardrop.games.trace import Workload, generate_trace

trace = generate_trace(Workload(rate_rps=12.0, seconds=60.0, input_mean=3_000), seed=7)
print(f"{trace.requests} requests, {trace.input_tokens.mean():.0f} tokens in on average")

# %% [markdown]
# ## 1. How many prefill, how many decode workers?
# Every split of the frontier is an equilibrium; goodput tells them apart.

# %%
source = QueueingSource(trace, Engine(builtin_timing()), Slo(ttft_s=0.5, itl_s=0.02))
choice = choose_split(source, workers=6)
print(f"split {choice.prefill_workers}:{choice.decode_workers}")
for prefill, attained in choice.neighbours.items():
    print(f"  {prefill}:{6 - prefill} {attained.both:.3f} within both limits")

# %% [markdown]
# ## 2. Where should the hottest blocks live?

# %%
fleet = FleetCaches(Topology.grid(1, 2, 2), g1_blocks=150, g2_blocks=75)
replay = replay_caches(trace, fleet, objects=24, routing="affinity")
verdict = judge_placement(game_of(replay, fleet, trace), replay)
print(f"today's placement costs {verdict.price_of_today:.3f} x the optimum")

# %% [markdown]
# ## 3. How much does routing lose?
# Exactly on a small instance, and against a certified optimum on a larger one. When overlap depends
# on who else is there, best response may never rest.

# %%
report = analyse(random_frozen(seed=1, requests=8, workers=3))
print(
    f"price of anarchy {report.price_of_anarchy:.4f}, of stability {report.price_of_stability:.4f}"
)

large = random_sparse(seed=1, requests=400, workers=120)
flow = solve_flow(large)
selfish = large.social_cost(solve_flow(large, "potential").profile)
print(f"400 requests: equilibrium {selfish / flow.objective:.4f} x optimum")

game = random_frozen(seed=2, requests=30, workers=4)
rest = best_response(game, greedy(game))
print(f"greedy routing needs {rest.moves} more moves to come to rest")

without = [s for s in range(300) if not analyse(random_endogenous(s, 4, 2)).equilibria]
print(f"{len(without)} of 300 games with moving overlap have no pure equilibrium")

# %% [markdown]
# ## 4. Does the planner oscillate?

# %%
for delay_s in (0.0, 120.0):
    planner = Planner(gain=2.0, delay_s=delay_s)
    history = run_loop(example_fleet(), planner, prefill=4, seconds=900.0)
    limit = critical_gain(0.5, planner.dead_intervals)
    print(f"delay {delay_s:.0f} s: swing {history.swing} workers (linear limit {limit:.2f})")
