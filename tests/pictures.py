"""Makes the pictures of the live page and of `wardrop top` for the documentation.

    python -m tests.pictures [--seconds 60] [--folder docs/how-to/img]

`wardrop serve` runs in front of scripted engines with real prefix caches and KV events. One engine
drops its cache and says nothing, so that the trust row shows a degraded worker. Another one ends.
Chromium opens the page at three widths, and the text of `wardrop top` at the same widths.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from tests.browser import Page, open_page
from tests.fleet.engine import BLOCK_TOKENS, Engine
from tests.picker.processes import Process
from tests.waiting import wait_until

from wardrop.service.live.snapshot import Snapshot
from wardrop.terminal.live_reader import snapshots
from wardrop.terminal.top import render_top

WIDTHS = (1280, 900, 400)
COLUMNS = {1280: 138, 900: 96, 400: 41}
"""Columns of a terminal that fills the width with legible letters."""
REQUEST_ID = "request-7c1e"
CLIENTS, TENANTS, PREFIX_BLOCKS = 6, 12, 24


def drive(port: int, stop: threading.Event, seed: int) -> None:
    """Streamed completions with shared prefixes, one after the other."""
    draw = random.Random(seed)
    while not stop.is_set():
        first = 1000 * draw.randrange(TENANTS)
        own = [draw.randrange(100_000, 200_000) for _ in range(4 * BLOCK_TOKENS)]
        prompt = [*range(first, first + PREFIX_BLOCKS * BLOCK_TOKENS), *own]
        body = {"model": "llama", "prompt": prompt, "max_tokens": 20, "stream": True}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            headers = {"content-type": "application/json", "x-request-id": REQUEST_ID}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            connection.getresponse().read()
        except OSError:
            pass  # The engine that ends cuts its answers.
        finally:
            connection.close()
        stop.wait(draw.random() * 0.05)


def forget(engine: Engine, stop: threading.Event) -> None:
    """Drop the cache of an engine again and again, without an event."""
    while not stop.wait(0.3):
        engine.reset_cache(is_silent=True)


def page_pictures(page: Page, admin: str, folder: Path) -> None:
    """The live page at three widths: light, and dark on a telephone."""
    for width in WIDTHS:
        scheme = "dark" if width == min(WIDTHS) else "light"
        page.prefer(scheme)
        page.resize(width)
        page.open(admin + "/")
        page.await_text("#link", "live")
        page.evaluate(f"document.querySelector('#request-id').value = {json.dumps(REQUEST_ID)}")
        page.evaluate("document.querySelector('#receipt-search').requestSubmit()")
        wait_until(lambda: page.count("#receipt *") > 0, "the receipt")
        wait_until(lambda: "degraded" in modes(admin), "a worker whose index misleads")
        wait_until(lambda: page.count(".tile") > 0 and "degraded" in page.text(".tile"), "its tile")
        page.picture(folder / f"page-{width}-{scheme}.png")


def top_pictures(page: Page, admin: str, folder: Path, home: Path) -> None:
    """The screen of `wardrop top` at three widths."""
    with snapshots(admin) as arriving:
        snapshot = next(one for one in arriving if "degraded" in modes_of(one))
    page.prefer("dark")
    for width in WIDTHS:
        console = Console(
            width=COLUMNS[width], record=True, file=io.StringIO(), force_terminal=True
        )
        console.print(render_top(snapshot, 40))
        file = home / f"top-{width}.html"
        file.write_text(console.export_html(theme=MONOKAI, code_format=_HTML))
        page.resize(width, height=100)
        page.open(file.as_uri())
        page.await_text("pre", "Wardrop")
        page.picture(folder / f"top-{width}.png")


_HTML = """<!doctype html><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><style>{stylesheet}
body {{ background: {background}; color: {foreground}; margin: 12px; }}
pre {{ font: 15px/1.3 "DejaVu Sans Mono", monospace; margin: 0; }}
</style><pre>{code}</pre>"""


def main() -> None:
    """Run the fleet and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--folder", type=Path, default=Path("docs/how-to/img"))
    options = parser.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = [Engine(model="llama", prefill_s_per_token=4e-5, token_s=0.008) for _ in range(5)]
        for engine in engines[:-1]:
            stack.callback(engine.close)
        command = [sys.executable, "-m", "wardrop", "serve", "--http-port", "0", "--queue"]
        command += ["--admin-port", "0", "--receipts", "1000"]
        for engine in engines:
            command += ["--worker", engine.worker]
        router = Process(command, home / "router.log")
        stack.callback(router.kill)
        port = int(router.find(r"listening on http://127\.0\.0\.1:(\d+)"))
        admin = router.find(r"live page on (http://127\.0\.0\.1:\d+)/")
        stop = threading.Event()
        clients = [threading.Thread(target=drive, args=(port, stop, n)) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        stack.callback(lambda: [client.join() for client in clients])
        stack.callback(stop.set)
        time.sleep(options.seconds)
        liar = threading.Thread(target=forget, args=(engines[0], stop))
        liar.start()
        stack.callback(liar.join)
        stack.callback(stop.set)
        engines[-1].close()
        wait_until(lambda: "unavailable" in problems(admin), "the engine that ended")
        wait_until(lambda: "degraded" in modes(admin), "a worker whose index misleads")
        with open_page() as page:
            page_pictures(page, admin, options.folder)
            top_pictures(page, admin, options.folder, home)


def modes(admin: str) -> set[str]:
    """Trust modes of the workers."""
    with snapshots(admin) as arriving:
        return modes_of(next(arriving))


def modes_of(snapshot: Snapshot) -> set[str]:
    """Trust modes of the workers in a snapshot."""
    pools = [pool for model in snapshot.models for pool in model.pools]
    return {worker.trust_mode for pool in pools for worker in pool.workers}


def problems(admin: str) -> str:
    """Texts of the problems on the page."""
    with snapshots(admin) as arriving:
        models = next(arriving).models
    return " ".join(problem.text for model in models for problem in model.problems)


if __name__ == "__main__":
    main()
