"""The live page in a real Chromium, in front of a gateway with traffic."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from tests.browser import Page, open_page
from tests.gateway.conftest import Upstream
from tests.service.wired import wiring_with
from tests.waiting import wait_until

from wardrop._core import Gateway
from wardrop.control import Door
from wardrop.service.admin import Admin
from wardrop.service.live import CONTENT_SECURITY_POLICY, LiveFeed, document

HOSTILE_NAME = "<img src=x onerror=alert(1)>"
WIDTHS = (1280, 900, 400)


@dataclass
class Served:
    """A gateway with its admin API in a thread."""

    gateway: Gateway
    door: Door
    feed: LiveFeed
    url: str
    loop: asyncio.AbstractEventLoop
    control: dict[str, float] = field(default_factory=dict)

    def ask(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, dict]:
        conn = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        conn.request("GET", path, headers=headers or {})
        answer = conn.getresponse()
        out = answer.status, answer.read(), dict(answer.getheaders())
        conn.close()
        return out

    @contextmanager
    def events(self) -> Iterator[http.client.HTTPResponse]:
        conn = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        conn.request("GET", "/v1/live")
        answer = conn.getresponse()
        try:
            yield answer
        finally:
            answer.close()
            conn.close()

    def on_loop(self, call) -> object:
        """Result of a call on the thread of the API."""

        async def run() -> object:
            return call()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)


@contextmanager
def served(gateway: Gateway, max_viewers: int = 16) -> Iterator[Served]:
    loop = asyncio.new_event_loop()
    door = Door(gateway)
    control: dict[str, float] = {"regime": 1, "arrivals_per_second": 12.5, "knee_share": 0.7}
    feed = LiveFeed(gateway, door, lambda: control, max_viewers)
    admin = Admin(gateway, door, 0, feed, wiring_with(receipts=8))
    port = loop.run_until_complete(admin.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Served(gateway, door, feed, f"http://127.0.0.1:{port}", loop, control)
    finally:
        began_s = time.monotonic()
        asyncio.run_coroutine_threadsafe(admin.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        assert time.monotonic() - began_s < 25, "open pages must not hold the router"


@contextmanager
def gateway_of(
    *models: tuple[str, str, tuple[int, ...]], upstream: str = "", **more: object
) -> Iterator[Gateway]:
    """A gateway with workers by model and role. `more` are further keys of its configuration."""
    routing = {"policy": {"name": "toll"}, "queue": {"kappa": 10}, "receipts": 8}
    config = {"listen": "127.0.0.1:0", "routing": routing, **more}
    native = Gateway(json.dumps(config | ({"upstreams": [upstream]} if upstream else {})))
    for name, role, instances in models:
        native.upsert_model(json.dumps({"name": name, "block_size": 4}))
        for instance in instances:
            worker = {"model": name, "role": role, "instance": instance, "total_kv_blocks": 512}
            native.upsert_worker(json.dumps(worker))
    yield native
    native.stop()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    scripted = Upstream()
    yield scripted
    scripted.close()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_page() as opened:
        yield opened


def test_times_are_written_without_an_exponent(page):
    """JavaScript writes 99.6 with two digits as `1.0e+2`."""
    with gateway_of(("m", "aggregated", (1,))) as gateway, served(gateway) as api:
        page.open(api.url + "/")
        page.await_text("#link", "live")
        values = json.dumps([0.0996, 0.9996, 9.996e-4, 9.6e-6, 99.96, 0.0123])
        # The page's scripts share one closed scope, so the tile's function is read as text.
        said = page.evaluate(
            "(() => { const text = [...document.scripts].map((one) => one.textContent).join('');"
            "const start = text.indexOf('const DASH'), end = text.indexOf('function count');"
            f"return new Function(text.slice(start, end) + 'return {values}.map(seconds)')(); }})()"
        )
        assert said == ["100 ms", "1000 ms", "1000 µs", "9.6 µs", "100 s", "12 ms"]


def test_page_shows_fleet_regime_settings_and_changes(page):
    before = len(page.errors)
    instances = (11554574342565143337, 11554574342565143338, 7)
    with gateway_of(("m", "aggregated", instances)) as gateway, served(gateway) as api:
        page.resize(1280)
        page.open(api.url + "/")
        page.await_text("#link", "live")
        page.await_text("#fleet", "3 of 3 available")
        assert page.count(".tile") == 3
        # 64-bit ids must not be rounded: the last two digits differ between two workers.
        names = page.text(".tile .name").split()
        assert names == ["7", "…143337", "…143338"]
        page.await_text("#regime", "regime: transition")
        page.await_text("#figures", "12.5")
        page.await_text("#model-name", "m")
        assert "No change is in force" in page.text("#settings")
        api.on_loop(lambda: api.door.change({"kappa": 20}, "hand", "a reason"))
        page.await_text("#audit", "kappa: 10 → 20")
        page.await_text("#audit", "a reason")
        wait_until(lambda: page.count(".chart [data-mark='1']") == page.count(".chart"), "marks")
        gateway.remove_worker("m", "aggregated", 7)
        page.await_text("#problems", "1 worker left the fleet")
        page.await_text("#fleet", "2 of 2 available")
        assert len(page.errors) == before, page.errors


def test_page_says_what_would_help_and_where_the_figures_are_in_doubt(page):
    before = len(page.errors)
    with (
        gateway_of(("m", "aggregated", (1, 2)), shadows={"limits": True}) as gateway,
        served(gateway) as api,
    ):
        page.resize(900)
        page.open(api.url + "/")
        page.await_text("#shadows", "What would help")
        page.await_text("#shadows", "In doubt: too few complete ticks yet")
        text = page.text("#shadows")
        assert "One more worker" in text
        assert "One queue for all workers" not in text, "a queue is in force"
        assert text.count("too little data") == 8, "two figures of four limits"
        (model,) = json.loads(gateway.shadows() or "[]")
        assert [arm["name"] for arm in model["arms"]] == ["in_force"]
        # The same report, as it is after a whole window.
        figures = [(0.31, 0.24, 0.38), (0.05, -0.02, 0.12), (-0.2, -0.3, -0.1)]
        for found, figure in zip(model["limits"], figures, strict=False):
            estimate = dict(zip(("value", "low", "high"), figure, strict=True))
            found |= {"ttft_saving": estimate, "e2e_saving": estimate}
        model["limits"][1] |= {"completed": 90, "completed_in_force": 80}
        model["limits_without_room"] = ["kv_memory"]
        model["trust"]["trusted"] = True
        page.evaluate(f"feed.close(); showShadows({json.dumps([model])})")
        text = page.text("#shadows")
        for said in (
            "saves 31.0 % (24.0 to 38.0 %)",
            "no clear difference (-2.0 to 12.0 %)",
            "costs 20.0 % (10.0 to 30.0 %)",
            "answers 90 requests, in force 80",
            "16 times the KV memory: left out",
        ):
            assert said in text, said
        assert "In doubt" not in text
        assert len(page.errors) == before, page.errors


def test_change_is_taken_back_from_the_page(page):
    with gateway_of(("m", "aggregated", (1,))) as gateway, served(gateway) as api:
        page.open(api.url + "/")
        api.on_loop(lambda: api.door.change({"kappa": 20}, "hand", "first"))
        page.await_text("#roll-back button", "Take change 1 back")
        page.evaluate("document.querySelector('#roll-back input').value = 'it was worse'")
        page.evaluate("document.querySelector('#roll-back button').click()")
        page.await_text("#settings", "No change is in force")
        assert api.on_loop(api.door.settings)["kappa"] == 10
        record = api.on_loop(lambda: api.door.records(1))[0]
        assert (record.event, record.by, record.reason) == ("rolled_back", "hand", "it was worse")


def test_roll_back_of_an_overtaken_change_is_refused_with_the_reason(page):
    with gateway_of(("m", "aggregated", (1,))) as gateway, served(gateway) as api:
        page.open(api.url + "/")
        api.on_loop(lambda: api.door.change({"kappa": 20}, "hand", "first"))
        page.await_text("#roll-back button", "Take change 1 back")
        # The page still shows change 1 when the younger change arrives.
        page.evaluate("feed.close(); document.querySelector('#roll-back input').value = 'x'")
        api.on_loop(lambda: api.door.change({"kappa": 30}, "hand", "second"))
        page.evaluate("document.querySelector('#roll-back button').click()")
        page.await_text("#roll-back p", "change 2 is the youngest in force")
        assert api.on_loop(api.door.settings)["kappa"] == 30


def test_names_from_outside_are_text_and_never_markup(page):
    before = len(page.errors)
    with gateway_of((HOSTILE_NAME, "aggregated", (1,))) as gateway, served(gateway) as api:
        api.on_loop(lambda: api.door.change({"kappa": 20}, "hand", HOSTILE_NAME))
        page.open(api.url + "/")
        page.await_text("#model-name", HOSTILE_NAME)
        page.await_text("#audit", HOSTILE_NAME)
        assert page.count("img") == 0
        assert len(page.errors) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_its_width_in_both_schemes(page, width, scheme):
    models = (("m", "prefill", (1, 2)), ("m", "decode", (3, 4, 5)))
    with gateway_of(*models) as gateway, served(gateway) as api:
        page.prefer(scheme)
        page.resize(width)
        page.open(api.url + "/")
        page.await_text("#fleet", "3 of 3 available")
        wait_until(lambda: page.count(".chart svg .grid") > 0, "charts")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = "[...document.querySelectorAll('.figure b, .tile .row, h2, .badge')]"
        cut += ".filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.innerText)"
        assert page.evaluate(cut) == []
        style = "getComputedStyle(document.body)"
        contrast = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
        ink, ground = (sum(int(n) for n in c[4:-1].split(",")) for c in contrast)
        assert (ink > ground) == (scheme == "dark")
        assert abs(ink - ground) > 500


def test_search_shows_the_receipt_and_an_unknown_id_says_what_to_do(page, upstream):
    with (
        gateway_of(
            ("m", "aggregated", (11554574342565143337, 2)), upstream=upstream.url
        ) as gateway,
        served(gateway) as api,
    ):
        port = gateway.start()
        conn = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = json.dumps({"model": "m", "prompt": list(range(64)), "max_tokens": 1})
        headers = {"content-type": "application/json", "x-request-id": "ask/me"}
        conn.request("POST", "/v1/completions", body, headers)
        assert conn.getresponse().status == 200
        conn.close()
        page.prefer("light")
        page.resize(1280)
        page.open(api.url + "/")
        page.await_text("#link", "live")

        def search(text: str) -> None:
            page.evaluate(f"document.getElementById('request-id').value = {json.dumps(text)}")
            page.evaluate("document.querySelector('#receipt-search button').click()")

        search("ask/me")
        page.await_text("#receipt", "64 prompt tokens in 16 full blocks")
        page.await_text("#receipt", "finished with status 200")
        assert page.count("#receipt tbody tr") == 2
        assert page.count("#receipt tr.chosen") == 1
        assert "…143337" in page.text("#receipt tbody")
        assert page.count("#receipt .parts i") > 0
        search("nothing")
        page.await_text("#receipt", "expected the x-request-id of one of the last 8 requests")


def test_document_loads_nothing_from_elsewhere_and_allows_no_other_script():
    text = document()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "/*SCRIPT*/" not in text
    assert "innerHTML" not in text
    assert "unsafe-inline" not in CONTENT_SECURITY_POLICY
    with gateway_of() as gateway, served(gateway) as api:
        status, body, headers = api.ask("/")
        assert (status, body.decode()) == (200, text)
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert api.ask("/", {"host": "evil.example"})[0] == 403
        assert api.ask("/v1/live", {"host": "evil.example"})[0] == 403


def read_event(answer: http.client.HTTPResponse, wanted: str) -> dict:
    """Data of the next event with a name."""
    name = ""
    for raw in answer:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: ") and name == wanted:
            return json.loads(line.removeprefix("data: "))
    raise AssertionError(f"no event {wanted}")


def test_one_page_too_many_is_refused_and_a_closed_page_makes_room():
    def viewers(answer: http.client.HTTPResponse) -> dict:
        return read_event(answer, "snapshot")["viewers"]

    with gateway_of(("m", "aggregated", (1,))) as gateway, served(gateway, 2) as api:
        with api.events() as first, api.events() as second:
            assert read_event(first, "snapshot")["schema"] == "wardrop.live.v1"
            wait_until(lambda: viewers(second)["open"] == 2, "two viewers")
            status, body, _ = api.ask("/v1/live")
            assert status == 503
            assert "expected at most 2 open pages" in json.loads(body)["error"]
        wait_until(lambda: api.feed.viewers == 0, "the closed pages to be forgotten")
        with api.events() as third:
            wait_until(lambda: viewers(third) == {"open": 1, "refused": 1}, "room for a page")


class Failing:
    """A gateway without an observation for a while."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.is_broken = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._gateway, name)

    def observation(self) -> str:
        if self.is_broken:
            raise RuntimeError("no observation now")
        return self._gateway.observation()


def test_page_says_that_its_figures_are_old_and_recovers(page):
    with gateway_of(("m", "aggregated", (1,))) as native:
        failing = Failing(native)
        with served(failing) as api:
            page.open(api.url + "/")
            page.await_text("#link", "live")
            failing.is_broken = True
            page.await_text("#link", "no figures for")
            failing.is_broken = False
            page.await_text("#link", "live")
