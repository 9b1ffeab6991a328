"""Route requests with `wardrop.Router` in a host of your own.

The router learns caches from KV events, prices every worker for a prompt, and books the request on
the cheapest one. The host reports the first token and the end of each request.

Run:
    python examples/library.py

Expected output:
    worker (2, 0) holds 3 of 4 blocks
    cost per worker: {(1, 0): 8.0, (2, 0): 5.0}
    in flight: 1, waiting for prefill: 16 tokens
    in flight: 0, waiting for prefill: 0 tokens
    next turn: worker (2, 0) holds 4 blocks
"""

import wardrop

BLOCK_SIZE = 16


def main() -> None:
    router = wardrop.Router(BLOCK_SIZE, policy="dynamo")
    router.add_worker(1)
    router.add_worker(2)

    # A KV event: the engine of worker 2 stored the first three blocks of this prompt. The engine
    # names each block by a hash of its own; the sequence hash serves as that name here.
    prompt = list(range(64))
    names = wardrop.sequence_hashes(wardrop.block_hashes(prompt, BLOCK_SIZE))
    router.apply(2, wardrop.Stored(names[:3], tokens=prompt[:48], block_size=BLOCK_SIZE))

    # `request_id` books the request on the chosen worker; without it the call only asks.
    decision = router.route(prompt, request_id="request-1", explain=True)
    print(f"worker {decision.worker} holds {decision.overlap_blocks} of 4 blocks")
    print("cost per worker:", {each.worker: each.cost for each in decision.candidates})

    show_load(router, worker=1)
    router.prefill_done("request-1")  # the first token arrived
    router.release("request-1")  # the last token arrived, or the request failed
    show_load(router, worker=1)

    # The engine stored the fourth block too. The next turn begins with the whole prompt.
    router.apply(
        2, wardrop.Stored(names[3:], tokens=prompt[48:], block_size=BLOCK_SIZE, parent=names[2])
    )
    decision = router.route([*prompt, *range(500, 520)])
    print(f"next turn: worker {decision.worker} holds {decision.overlap_blocks} blocks")


def show_load(router: wardrop.Router, worker: int) -> None:
    load = router.snapshot()["workers"][worker]
    active, waiting = load["active_requests"], load["prefill_tokens"]
    print(f"in flight: {active}, waiting for prefill: {waiting} tokens")


if __name__ == "__main__":
    main()
