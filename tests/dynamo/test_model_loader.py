"""Models on their way into the gateway: nothing waits for the files of another model."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.waiting import wait_until_async

from wardrop.dynamo import model_loader
from wardrop.dynamo.discovery.fleet_view import Model
from wardrop.dynamo.model_loader import ModelLoader


class Bench:
    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.refuses: Callable[[dict], bool] = lambda _model: False
        self.block: threading.Event | None = None
        self.folders: dict[str, object] = {}
        self.warnings: list[str] = []
        self.threads: set[str] = set()
        self.loader = ModelLoader(self, self.folder, lambda: None, self.warnings.append)

    def upsert_model(self, model_json: str, /) -> None:
        model = json.loads(model_json)
        self.threads.add(threading.current_thread().name)
        if self.block is not None:
            self.block.wait(60)
        if self.refuses(model):
            raise ValueError("the template has an error")
        self.calls.append((model["name"], model["folder"]))

    def remove_model(self, name: str, /) -> None:
        self.calls.append((name, "removed"))

    async def folder(self, model: Model) -> Path:
        answer = self.folders.get(model.name, Path("/f"))
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return Path("/late")
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Path)
        return answer


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(model_loader, "_FOLDER_GRACE_S", 0.01)
    monkeypatch.setattr(model_loader, "_FOLDER_RETRY_S", 0.01)


def test_server_that_hangs_delays_its_own_model_only():
    async def run() -> None:
        bench = Bench()
        released = bench.folders["slow"] = asyncio.Event()
        bench.loader.want(Model("slow", 16))
        bench.loader.want(Model("fast", 16))
        await wait_until_async(lambda: ("fast", "/f") in bench.calls)
        await wait_until_async(lambda: ("slow", None) in bench.calls, "the model by load")
        assert set(bench.loader.registered) == {"slow", "fast"}
        released.set()
        await wait_until_async(lambda: ("slow", "/late") in bench.calls, "the model with its files")
        await bench.loader.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [OSError(36, "File name too long"), RecursionError(), KeyError("x"), ValueError("bad")]
)
def test_folder_that_cannot_be_found_costs_the_prompts_and_not_the_model(error):
    async def run() -> None:
        bench = Bench()
        bench.folders["m"] = error
        bench.loader.want(Model("m", 16))
        await wait_until_async(lambda: ("m", None) in bench.calls)
        bench.folders["m"] = Path("/found")
        await wait_until_async(lambda: ("m", "/found") in bench.calls, "another search")
        assert bench.warnings
        await bench.loader.stop()

    asyncio.run(run())


def test_files_that_cannot_be_read_cost_the_prompts_and_are_not_parsed_again_at_once(monkeypatch):
    monkeypatch.setattr(model_loader, "_FOLDER_RETRY_S", 1e6)
    monkeypatch.setattr(model_loader, "_MAX_FOLDER_RETRY_S", 1e6)

    async def run() -> None:
        bench = Bench()
        parsed: list[object] = []

        def refuses(model: dict) -> bool:
            parsed.append(model["folder"])
            return model["folder"] is not None

        bench.refuses = refuses
        bench.loader.want(Model("m", 16))
        await wait_until_async(lambda: ("m", None) in bench.calls)
        for _ in range(20):
            bench.loader.want(Model("m", 16))
            await asyncio.sleep(0)
        assert parsed == ["/f", None]
        assert threading.main_thread().name not in bench.threads, "files are read beside the loop"
        await bench.loader.stop()

    asyncio.run(run())


def test_model_that_leaves_while_the_gateway_reads_its_files_is_removed_afterwards():
    async def run() -> None:
        bench = Bench()
        bench.block = threading.Event()
        bench.loader.want(Model("m", 16))
        await wait_until_async(lambda: bench.threads)
        bench.loader.drop("m")
        bench.loader.want(Model("m", 32))
        assert bench.calls == []
        bench.block.set()
        await wait_until_async(lambda: "m" in bench.loader.registered)
        assert [call[1] for call in bench.calls] == ["/f", "removed", "/f"]
        assert bench.loader.registered["m"].block_size == 32
        await bench.loader.stop()

    asyncio.run(run())


def test_model_that_leaves_before_it_is_registered_is_given_up():
    async def run() -> None:
        bench = Bench()
        bench.folders["m"] = asyncio.Event()
        bench.loader.want(Model("m", 16))
        bench.loader.keep({"m"})
        assert bench.calls == []
        bench.loader.keep(set())
        assert bench.calls == [("m", "removed")]
        await bench.loader.stop()

    asyncio.run(run())


def test_equal_files_are_looked_for_once():
    async def run() -> None:
        bench = Bench()
        bench.loader.want(Model("m", 16, checksums=("1",)))
        await wait_until_async(lambda: len(bench.calls) == 1)
        bench.folders["m"] = AssertionError("the files are known")
        bench.loader.want(Model("m", 16, loras=("a",), checksums=("1",)))
        await wait_until_async(lambda: len(bench.calls) == 2)
        assert bench.calls[1] == ("m", "/f")
        bench.folders["m"] = Path("/new")
        bench.loader.want(Model("m", 16, checksums=("2",)))
        await wait_until_async(lambda: ("m", "/new") in bench.calls, "the files of another card")
        await bench.loader.stop()

    asyncio.run(run())


def test_few_of_many_models_are_inside_the_gateway_at_one_time():
    async def run() -> None:
        bench = Bench()
        inside, most = 0, 0
        lock = threading.Lock()

        def refuses(_model: dict) -> bool:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.001)  # the time of a reading, in which another call may enter
            with lock:
                inside -= 1
            return False

        bench.refuses = refuses
        for number in range(60):
            bench.loader.want(Model(f"m{number}", 16))
        await wait_until_async(lambda: len(bench.loader.registered) == 60)
        assert 1 <= most <= model_loader._CALLS_AT_ONCE
        await bench.loader.stop()

    asyncio.run(run())


def test_a_model_beyond_the_limit_is_refused_and_the_others_stay(monkeypatch):
    monkeypatch.setattr(model_loader, "MAX_MODELS", 2)

    async def run() -> None:
        bench = Bench()
        bench.loader.want(Model("a", 16))
        bench.loader.want(Model("b", 16))
        with pytest.raises(ValueError, match="one more model than the 2"):
            bench.loader.want(Model("c", 16))
        bench.loader.want(Model("a", 32))  # a change of a known model needs no room
        await wait_until_async(lambda: set(bench.loader.registered) == {"a", "b"})
        bench.loader.drop("b")
        bench.loader.want(Model("c", 16))
        await wait_until_async(lambda: "c" in bench.loader.registered)
        await bench.loader.stop()

    asyncio.run(run())
