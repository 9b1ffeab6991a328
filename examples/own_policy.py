"""Choose workers by a rule of your own.

The router matches and prices; `explain=True` returns every candidate with its load and its cached
blocks. A rule in Python chooses one of them, and `Router.book` books the choice. The rule here
fills spot workers first, until more than 2,000 prompt tokens wait on each.

Pricing and booking are two calls here. Threads need a lock around both, or two requests may see
the same idle worker. A policy inside the Rust core prices and books in one step
(docs/how-to/add-a-policy.md).

Run:
    python examples/own_policy.py

Expected output:
    request 0 -> spot-a
    request 1 -> spot-b
    request 2 -> spot-a
    request 3 -> spot-b
    request 4 -> reserved
"""

from collections.abc import Callable, Sequence

import wardrop

NAMES = {1: "spot-a", 2: "spot-b", 3: "reserved"}
SPOT = {1, 2}
MAX_WAITING_TOKENS = 2_000

Rule = Callable[[Sequence[wardrop.Candidate]], wardrop.Candidate]


def spot_first(candidates: Sequence[wardrop.Candidate]) -> wardrop.Candidate:
    """The cheapest spot worker with a short prefill queue, else the cheapest worker."""
    spot = [
        each
        for each in candidates
        if each.worker[0] in SPOT and each.prefill_tokens < MAX_WAITING_TOKENS
    ]
    return min(spot or candidates, key=lambda each: (each.cost, each.worker))


def route(router: wardrop.Router, rule: Rule, prompt: list[int], request_id: str) -> int:
    """Price the prompt on every worker, choose by `rule`, and book the chosen instance."""
    chosen = rule(router.route(prompt, explain=True).candidates)
    router.book(chosen.worker, request_id, prompt)
    return chosen.worker[0]


def main() -> None:
    router = wardrop.Router(block_size=16, policy="dynamo")
    for instance in NAMES:
        router.add_worker(instance)
    for number in range(5):
        prompt = list(range(number * 1_000, (number + 1) * 1_000))
        instance = route(router, spot_first, prompt, f"request-{number}")
        print(f"request {number} -> {NAMES[instance]}")


if __name__ == "__main__":
    main()
