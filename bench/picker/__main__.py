"""CPU of a request through Envoy with the picker, beside Envoy with round robin.

    python -m bench.picker [--requests 400] [--rounds 4]

Scripted engines answer streams of 1 and 128 tokens. The CPU of Envoy and of the picker is read from
/proc before and after each arm. Both arms go through one Envoy each, with one thread.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from tests.picker.processes import EngineProcess, EnvoyProcess, PickerProcess, Process

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LANES = 8


def cpu_s(process: Process) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{process.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def drive(envoy: EnvoyProcess, requests: int, tokens: int, seed: int) -> list[float]:
    """Send requests over a few connections; milliseconds of each."""

    def lane(number: int) -> list[float]:
        client = http.client.HTTPConnection("127.0.0.1", envoy.port, timeout=60)
        times = []
        for n in range(requests // _LANES):
            first = (seed * 131 + number * 17 + n % 4) * 512
            body = {
                "model": "m",
                "prompt": list(range(first, first + 512)),
                "stream": True,
                "max_tokens": tokens,
            }
            started_s = time.perf_counter()
            client.request("POST", "/v1/completions", json.dumps(body))
            response = client.getresponse()
            response.read()
            assert response.status == 200
            times.append((time.perf_counter() - started_s) * 1e3)
        client.close()
        return times

    with ThreadPoolExecutor(_LANES) as pool:
        return [each for times in pool.map(lane, range(_LANES)) for each in times]


def main() -> None:
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    processes: list[Process] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            engines = [EngineProcess(folder, f"engine{number}") for number in range(2)]
            processes += engines
            addresses = [engine.address for engine in engines]
            file = {
                "listen": "127.0.0.1:0",
                "models": [{"name": "m", "block_size": 16}],
                "workers": [{"url": f"http://{address}"} for address in addresses],
            }
            picker = PickerProcess(folder, file)
            processes.append(picker)
            picked = EnvoyProcess(folder, picker.port, addresses, name="picked")
            processes.append(picked)
            plain = EnvoyProcess(folder, None, addresses, name="plain")
            processes.append(plain)
            print(json.dumps(measure(picker, picked, plain, options.requests, options.rounds)))
        finally:
            for process in reversed(processes):
                process.kill()


def measure(
    picker: PickerProcess, picked: EnvoyProcess, plain: EnvoyProcess, requests: int, rounds: int
) -> dict[str, object]:
    """CPU in microseconds and latency in milliseconds for each request, for 1 and 128 tokens."""
    arms: dict[str, dict[str, list[float]]] = {}
    for seed in range(rounds + 1):
        for tokens in (1, 128):
            for arm, envoy in (("round robin", plain), ("picker", picked)):
                before = [cpu_s(picked), cpu_s(plain), cpu_s(picker)]
                times = drive(envoy, requests, tokens, seed)
                after = [cpu_s(picked), cpu_s(plain), cpu_s(picker)]
                used = [(b - a) / len(times) * 1e6 for a, b in zip(before, after, strict=True)]
                if seed == 0:
                    continue  # warms connections, caches and the engines' prefixes
                figures = arms.setdefault(f"{arm}, {tokens} tokens", {})
                figures.setdefault("envoy_cpu_us", []).append(used[0] + used[1])
                figures.setdefault("picker_cpu_us", []).append(used[2])
                figures.setdefault("latency_ms_p50", []).append(median(times))
    return {
        arm: {name: round(median(values), 1) for name, values in figures.items()}
        for arm, figures in arms.items()
    }


if __name__ == "__main__":
    main()
