"""A real Dynamo with two mock workers, Wardrop in front of it, and a conversation of two turns.

Run it with the interpreter of `.venv`. It needs no GPU and takes about twenty seconds.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.namespace import enter_or_reexec

URL = "http://127.0.0.1:8000"
SPEC = FleetSpec(workers=2, speedup_ratio=100)


def await_total(metric: str, total: float) -> None:
    """Return when the series of a metric of the router add up to `total`."""
    for _ in range(600):
        try:
            page = urlopen(f"{URL}/metrics", timeout=5).read().decode()
            rows = [row for row in page.splitlines() if row.startswith(metric + "{")]
            if sum(float(row.rpartition(" ")[2]) for row in rows) >= total:
                return
        except URLError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{metric}: expected {total:g}, not within 60 s")


def ask(turn: str, tokens: list[int]) -> None:
    """Send one completion and print how the router placed it."""
    body = {"model": SPEC.model_name, "prompt": tokens, "max_tokens": 4}
    request = Request(
        f"{URL}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urlopen(request, timeout=30) as answer:
        seen = json.load(answer)["usage"]
        print(
            f"{turn}: {len(tokens)} prompt tokens, router expects "
            f"{answer.headers['x-wardrop-overlap-blocks']} cached blocks, engine found "
            f"{(seen.get('prompt_tokens_details') or {}).get('cached_tokens') or 0} cached tokens"
        )


if __name__ == "__main__":
    enter_or_reexec()  # a private network where the kernel allows one
    with Fleet(SPEC) as fleet:
        command = [sys.executable, "-m", "wardrop", "dynamo"]
        environment = dict(os.environ) | fleet.dynamo_environment
        environment["WARDROP_ROUTING_EXPLAIN_HEADERS"] = "true"
        with Path("router.log").open("w") as log:
            router = subprocess.Popen(command, env=environment, stderr=log)
        try:
            await_total("wardrop_worker_available", 2)
            first = list(range(1000, 1512))  # 512 tokens: 32 blocks of 16
            ask("first turn", first)
            await_total("wardrop_worker_held_blocks", 32)  # the worker published its KV events
            ask("second turn", first + list(range(2000, 2128)))
        finally:
            router.terminate()
            router.wait()
