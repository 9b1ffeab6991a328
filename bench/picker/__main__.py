"""CPU of a request and TTFT of conversations through every door, beside what users run today.

    python -m bench.picker [--requests 240] [--rounds 3] [--turns 6] [--others FOLDER] [--out FILE]

Scripted engines with prefix caches answer streams of 1 and 128 tokens. The arms take turns in each
round: Envoy with round robin, Envoy with the picker, `wardrop serve`, and the routers of `FOLDER`
(`smg`, `vllm-router`, `sglang-router`) that start. A router that does not start is named with its
reason. CPU is read from /proc before and after each arm, over the router's own processes.

Conversations go to engines whose prefill takes time. Each turn appends to the prompt of the turn
before. So a router that keeps a conversation on its engine saves the prefill of the earlier turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.machine import machine
from bench.rounds import rotated
from tests.fleet.letters import model_folder
from tests.picker.processes import ROOT, EngineProcess, EnvoyProcess, PickerProcess, Process

from wardrop.dynamo.ports import free_port

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LANES = 8
_ENGINES = 4
_PREFILL_US_PER_TOKEN = 60.0
_START_S = 40.0
_WARM_TOKENS = 16


@dataclass
class Door:
    """One way to the engines.

    Attributes:
        name: Name in the report.
        port: Port for clients.
        processes: The processes whose CPU counts.
    """

    name: str
    port: int
    processes: list[Process]


@dataclass
class Turn:
    """One answer.

    Attributes:
        ttft_ms: Time to the first byte of the body.
        latency_ms: Time to the last byte.
        cached_share: Share of the prompt that the engine found in its cache.
    """

    ttft_ms: float
    latency_ms: float
    cached_share: float


def cpu_s(processes: list[Process]) -> float:
    """CPU seconds of processes and their children so far."""
    total = 0
    for process in processes:
        for pid in (process.child.pid, *children(process.child.pid)):
            try:
                text = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                continue
            fields = text.rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total * _TICK_S


def children(pid: int) -> list[int]:
    """Child processes of a process, and theirs."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *children(child)]
    return found


def text(seed: int, tokens: int) -> str:
    """A prompt of so many tokens: one letter each. Not every router takes token ids."""
    return "".join(random.Random(seed).choices(string.ascii_letters, k=tokens))


def ask(client: http.client.HTTPConnection, prompt: str, tokens: int) -> Turn:
    """One request; its times."""
    body = {"model": "m", "prompt": prompt, "stream": True, "max_tokens": tokens}
    started_s = time.perf_counter()
    client.request(
        "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
    )
    response = client.getresponse()
    first = response.read1(65_536)
    ttft_ms = (time.perf_counter() - started_s) * 1e3
    content = first + response.read()
    latency_ms = (time.perf_counter() - started_s) * 1e3
    if response.status != 200:
        raise RuntimeError(f"got status {response.status}: {content[:200]!r}")
    events = [line[6:] for line in content.split(b"\n") if line.startswith(b"data: {")]
    usage = json.loads(events[-1])["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Turn(ttft_ms, latency_ms, cached / usage["prompt_tokens"])


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def drive(port: int, requests: int, tokens: int, seed: int) -> list[Turn]:
    """Requests of 512 tokens over a few connections."""

    def lane(number: int) -> list[Turn]:
        client = connect(port)
        prompts = [text(seed * 131 + number * 17 + at, 512) for at in range(4)]
        turns = [ask(client, prompts[at % 4], tokens) for at in range(requests // _LANES)]
        client.close()
        return turns

    with ThreadPoolExecutor(_LANES) as pool:
        return [turn for turns in pool.map(lane, range(_LANES)) for turn in turns]


def converse(port: int, turns: int, seed: int) -> list[Turn]:
    """Conversations of several turns, one on each connection; the turns after the first."""

    def lane(number: int) -> list[Turn]:
        rng = random.Random(seed * 1009 + number)
        client = connect(port)
        prompt = text(rng.getrandbits(32), 1_024)
        found: list[Turn] = []
        for _ in range(turns):
            found.append(ask(client, prompt, 4))
            prompt += text(rng.getrandbits(32), 128)
            time.sleep(rng.random() * 0.05)
        client.close()
        return found[1:]

    lanes = 2 * _LANES
    with ThreadPoolExecutor(lanes) as pool:
        return [turn for found in pool.map(lane, range(lanes)) for turn in found]


class Command(Process):
    """A router that listens on a port of its own."""

    def __init__(self, folder: Path, name: str, command: list[str], port: int) -> None:
        super().__init__(command, folder / f"{name}.log")
        self.port = port
        deadline_s = time.monotonic() + _START_S
        while (fault := self._fault()) is not None:
            if self.child.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"no answer within {_START_S:.0f} s: {fault}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End the router, and the processes that its launcher started."""
        for pid in children(self.child.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().kill()

    def _fault(self) -> str | None:
        """Why the router does not answer; None when it does, and so knows its engines."""
        client = connect(self.port)
        try:
            ask(client, text(0, _WARM_TOKENS), 1)
        except (OSError, RuntimeError, http.client.HTTPException, ValueError) as error:
            return f"{error} {self.text()[-200:]}"
        finally:
            client.close()
        return None


def serve_door(folder: Path, engines: list[str]) -> Door:
    """`wardrop serve`."""
    port = free_port()
    command = [sys.executable, "-m", "wardrop", "serve", "--http-port", str(port)]
    command += ["--admin-port", "-1", "--http-worker-threads", "1"]
    command += ["--tokenizer", str(model_folder(folder))]
    for engine in engines:
        command += ["--worker", f"http://{engine}"]
    return Door("wardrop serve", port, [Command(folder, f"serve{port}", command, port)])


def picker_door(folder: Path, engines: list[str]) -> Door:
    """Envoy with the picker."""
    file = {
        "listen": "127.0.0.1:0",
        "models": [{"name": "m", "block_size": 16, "folder": str(model_folder(folder))}],
        "workers": [{"url": f"http://{address}"} for address in engines],
    }
    stem = f"picker{free_port()}"
    picker = PickerProcess(folder, file, stem)
    envoy = EnvoyProcess(folder, picker.port, engines, name=f"{stem}-envoy")
    return Door("Envoy, wardrop picker", envoy.port, [envoy, picker])


def envoy_door(folder: Path, engines: list[str]) -> Door:
    """Envoy with round robin."""
    envoy = EnvoyProcess(folder, None, engines, name=f"plain{free_port()}")
    return Door("Envoy, round robin", envoy.port, [envoy])


def other_door(folder: Path, engines: list[str], program: str, others: Path) -> Door:
    """Another router, cache-aware as its users run it.

    Raises:
        RuntimeError: It does not start; the text says why.
    """
    path = others / program
    if not path.exists():
        raise RuntimeError(f"{path} does not exist")
    port, metrics_port = free_port(), free_port()
    urls = [f"http://{engine}" for engine in engines]
    command = [str(path), *([] if program == "vllm-router" else ["launch"])]
    command += ["--host", "127.0.0.1", "--port", str(port), "--policy", "cache_aware"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
    command += ["--worker-urls", *urls]
    return Door(program, port, [Command(folder, f"{program}{port}", command, port)])


def doors(
    folder: Path, engines: list[str], others: Path | None
) -> tuple[list[Door], dict[str, str]]:
    """The doors that start, and why others did not."""
    makers: dict[str, Callable[[], Door]] = {
        "Envoy, round robin": lambda: envoy_door(folder, engines),
        "Envoy, wardrop picker": lambda: picker_door(folder, engines),
        "wardrop serve": lambda: serve_door(folder, engines),
    }
    if others is not None:
        for program in ("smg", "vllm-router", "sglang-router"):
            makers[program] = lambda p=program: other_door(folder, engines, p, others)
    found: list[Door] = []
    absent: dict[str, str] = {}
    with ThreadPoolExecutor(len(makers)) as pool:
        started = {name: pool.submit(make) for name, make in makers.items()}
    for name, door in started.items():
        try:
            found.append(door.result())
        except (RuntimeError, AssertionError, OSError) as error:
            absent[name] = " ".join(str(error).split())[-300:]
    return found, absent


def close(found: list[Door]) -> None:
    """End the processes of doors."""
    for door in found:
        for process in door.processes:
            process.kill()


def measure_cpu(found: list[Door], requests: int, rounds: int) -> dict[str, Any]:
    """CPU in microseconds for each request, and latency, at 1 and 128 tokens."""
    figures: dict[str, dict[str, list[float]]] = {}
    for seed in range(rounds + 1):
        for tokens in (1, 128):
            for door in rotated(found, seed):
                before_s = cpu_s(door.processes)
                turns = drive(door.port, requests, tokens, seed)
                used_us = (cpu_s(door.processes) - before_s) / len(turns) * 1e6
                if seed == 0:
                    continue  # warms connections, caches and the engines' prefixes
                of_arm = figures.setdefault(f"{door.name}, {tokens} tokens", {})
                of_arm.setdefault("cpu_us", []).append(used_us)
                latency = median(turn.latency_ms for turn in turns)
                of_arm.setdefault("latency_ms_p50", []).append(latency)
    return medians(figures)


def measure_ttft(
    folder: Path, others: Path | None, turns: int, rounds: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """TTFT of conversations, and the share of their prompts that engines found cached."""
    figures: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        engines = [
            EngineProcess(folder, f"slow{at}", "--prefill-us-per-token", str(_PREFILL_US_PER_TOKEN))
            for at in range(_ENGINES)
        ]
        for engine in engines:
            stack.callback(engine.kill)
        found, absent = doors(folder, [engine.address for engine in engines], others)
        stack.callback(close, found)
        for seed in range(rounds):
            for number, door in rotated(list(enumerate(found)), seed):
                # Each arm has prompts of its own, so that no arm finds the caches of another.
                spoken = converse(door.port, turns, seed * 64 + number)
                of_arm = figures.setdefault(door.name, {})
                times = sorted(turn.ttft_ms for turn in spoken)
                of_arm.setdefault("ttft_ms_p50", []).append(median(times))
                of_arm.setdefault("ttft_ms_p95", []).append(times[int(len(times) * 0.95)])
                of_arm.setdefault("ttft_ms_mean", []).append(fmean(times))
                cached = fmean(turn.cached_share for turn in spoken)
                of_arm.setdefault("cached_percent", []).append(cached * 100)
    return medians(figures), absent


def medians(figures: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    return {
        arm: {name: round(median(values), 1) for name, values in each.items()}
        for arm, each in figures.items()
    }


def over(figures: dict[str, Any], base: str, name: str) -> dict[str, float]:
    """A figure of each arm over that of the arm `base`; empty where that arm did not run."""
    if base not in figures or not figures[base][name]:
        return {}
    return {arm: round(each[name] / figures[base][name], 2) for arm, each in figures.items()}


def ratios(cpu: dict[str, Any], conversations: dict[str, Any]) -> dict[str, dict[str, float]]:
    """CPU over Envoy with round robin, and TTFT over `smg`, as the report gives them."""
    found: dict[str, dict[str, float]] = {}
    for tokens in (1, 128):
        tail = f", {tokens} tokens"
        arms = {arm.removesuffix(tail): each for arm, each in cpu.items() if arm.endswith(tail)}
        found[f"CPU{tail}"] = over(arms, "Envoy, round robin", "cpu_us")
    for name in ("ttft_ms_mean", "ttft_ms_p95"):
        found[name] = over(conversations, "smg", name)
    return found


def versions(others: Path | None) -> dict[str, str]:
    """Versions of the other routers, as their environment lists them."""
    if others is None:
        return {}
    listed = subprocess.run(
        [str(others / "python"), "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    names = {"smg", "vllm-router", "sglang-router"}
    return {
        each["name"]: each["version"]
        for each in json.loads(listed or "[]")
        if each["name"] in names
    }


def main() -> None:
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--others", type=Path, help="bin folder of an environment with them")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.chdir(ROOT)
    started = machine()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        engines = [EngineProcess(folder, f"engine{at}") for at in range(2)]
        for engine in engines:
            stack.callback(engine.kill)
        found, absent = doors(folder, [engine.address for engine in engines], options.others)
        stack.callback(close, found)
        cpu = measure_cpu(found, options.requests, options.rounds)
        close(found)
        ttft, absent_too = measure_ttft(folder, options.others, options.turns, options.rounds)
    result = {
        "machine": started | {"load_at_end": os.getloadavg()[0]},
        "versions": versions(options.others),
        "cpu": cpu,
        "conversations": ttft,
        "ratios": ratios(cpu, ttft),
        "did_not_start": absent | absent_too,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
