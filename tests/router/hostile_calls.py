"""Call every function of the native module's stub with hostile arguments, in a process of its own.

The stub names the functions, so that a new one is called without a change here. A call may return
or raise an `Exception`. Anything else is a fault: a panic, an abort, or an exception that passes
`except Exception`. Run as `python hostile_calls.py SEED ROUNDS`. It prints the calls of each
function, and what was raised beside `Exception`.
"""

from __future__ import annotations

import ast
import json
import math
import random
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import wardrop
from wardrop import _core
from wardrop.replay import Fleet

STUB = Path(wardrop.__file__).with_name("_core.pyi")
WORKLOAD = {
    "arrival_ms": np.array([0.0, 5.0]),
    "input_tokens": np.array([64, 64], dtype=np.uint32),
    "output_tokens": np.array([4, 4], dtype=np.uint32),
    "block_start": np.array([0, 4, 8], dtype=np.uint64),
    "blocks": np.arange(8, dtype=np.uint32),
    "block_size": 16,
    "after": np.full(2, 2**32 - 1, dtype=np.uint32),
    "think_ms": np.zeros(2),
}

NUMBERS: list[Any] = [0, 1, -1, 7, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**64, -(2**63), 10**400]
FLOATS: list[Any] = [0.0, -1.0, 0.5, 1e-300, 1e20, 1e127, 1e308, math.inf, -math.inf, math.nan]
NESTED = "[" * 5000 + "]" * 5000
TEXTS: list[Any] = [
    "", "{}", "[]", "null", "1e999", NESTED, '{"a":' * 500 + "1" + "}" * 500, "\x00", "ä-本",
    "toll", "dynamo", "device", "decode", "http://127.0.0.1:1", "x" * 70_000, '{"name":"m"}',
]  # fmt: skip
BYTES: list[Any] = [b"", b"\x00", b"\xdd\xff\xff\xff\xff", b"\x91" * 3000, bytes(range(256)) * 40]
ARRAYS: list[Any] = [
    np.arange(64, dtype=np.uint32), np.arange(64, dtype=">u4"), np.arange(8, dtype=">u8"),
    np.zeros((3, 3)), np.full((3, 2), math.nan), np.zeros((0, 0)), np.zeros((2, 5), dtype=">f8"),
    np.arange(9, dtype=np.uint64)[::-2], np.broadcast_to(np.uint64(1), (2**40,)),
    np.broadcast_to(np.float64(1.0), (2**20, 2**20)), np.array(["a"]), np.array([object()]),
    array("I", [1, 2, 3]), memoryview(b"12345678"), np.zeros(4, dtype=[("a", "u4"), ("b", "f8")]),
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, object(), [], [1, 2, 3], list(range(64)), [-1], [2**70], ["a"], [[1]], (1, 0),
    (2**64 - 1, 2**32 - 1), {}, {"stored": 1}, {"stored": {"blocks": [1]}}, {(1, 0): 5}, set(),
    {"removed": {"block_hashes": [1]}}, "cleared", [(0.0, None, b"{}")], [("a", "b")], [0.5] * 4,
    [math.nan] * 4, [b"", b"", b""],
]  # fmt: skip
ALL = NUMBERS + FLOATS + TEXTS + BYTES + ARRAYS + OTHERS


def makers() -> dict[str, Callable[[], Any]]:
    """One way to make a valid object of every class of the stub."""
    workload = _core.SimWorkload(**WORKLOAD)

    def router() -> _core.Router:
        made = _core.Router(16, "toll")
        made.add_worker(1)
        return made

    def decision() -> _core.Decision:
        return router().route(list(range(64)), explain=True)

    fleet = Fleet(workers=1).to_json(0)
    return {
        "AnarchyMeter": _core.AnarchyMeter,
        "Candidate": lambda: decision().candidates[0],
        "Cleared": _core.Cleared,
        "Decision": decision,
        "Door": lambda: _core.Gateway('{"listen": "127.0.0.1:0"}'),
        "Drive": lambda: _core.Drive(
            "http://127.0.0.1:1", [(0.0, None, b"{}")], duration_s=0.01, timeout_s=0.01
        ),
        "EngineFeed": lambda: _core.EngineFeed(16),
        "Gateway": lambda: _core.Gateway('{"listen": "127.0.0.1:0"}'),
        "Picker": lambda: _core.Picker('{"listen": "127.0.0.1:0"}'),
        "Prefix": lambda: _core.Prefix(16),
        "Removed": lambda: _core.Removed([1]),
        "Router": router,
        "SelectServer": lambda: _core.SelectServer(
            '{"grpc_listen": "127.0.0.1:0", "http_listen": null}'
        ),
        "SimWorkload": lambda: workload,
        "StreamBound": _core.StreamBound,
        "Stored": lambda: _core.Stored([1], local_hashes=[2]),
        "WatchedFleet": lambda: _core.WatchedFleet(workload, fleet, '[{"policy":"toll"}]'),
    }


def parameters(function: ast.FunctionDef) -> tuple[list[str], list[str]]:
    """Names of the positional and of the keyword-only parameters, without `self` and `cls`."""
    arguments = function.args
    positional = [a.arg for a in arguments.posonlyargs + arguments.args]
    if positional[:1] in (["self"], ["cls"]):
        positional = positional[1:]
    return positional, [a.arg for a in arguments.kwonlyargs]


def functions() -> dict[str, tuple[list[str], list[str]]]:
    """Every function and method of the stub, as `Class.name` or `name`, with its parameters."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for item in ast.parse(STUB.read_text()).body:
        if isinstance(item, ast.FunctionDef):
            found[item.name] = parameters(item)
        elif isinstance(item, ast.ClassDef) and hasattr(_core, item.name):
            for method in item.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{item.name}.{method.name}"] = parameters(method)
    return found


class Caller:
    """Draws arguments from a seed and calls functions.

    Attributes:
        calls: calls by function.
        faults: descriptions of what was raised beside `Exception`.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.makers = makers()
        self.calls: Counter[str] = Counter()
        self.faults: list[str] = []

    def value(self, name: str) -> Any:
        """A hostile value. Half of the values have the kind that the parameter's name suggests."""
        kinds = {
            "_s": FLOATS, "json": TEXTS, "tokens": ARRAYS + NUMBERS, "hashes": ARRAYS,
            "payload": BYTES, "data": BYTES, "costs": ARRAYS, "marginals": ARRAYS,
            "policy": TEXTS, "model": TEXTS, "role": TEXTS, "fleet": TEXTS, "routers": TEXTS,
            "worker": [1, (1, 0)], "block_size": [16, *NUMBERS], "url": TEXTS,
            "router": [self.makers["Router"]()], "workload": [self.makers["SimWorkload"]()],
            "path": ["/nonexistent/x"],
        }  # fmt: skip
        likely = next((values for part, values in kinds.items() if name.endswith(part)), None)
        return self.random.choice(likely if likely and self.random.random() < 0.5 else ALL)

    def call(self, name: str, positional: list[str], keywords: list[str]) -> None:
        """Call one function once."""
        self.calls[name] += 1
        given = {key: self.value(key) for key in positional}
        options = {key: self.value(key) for key in keywords if self.random.random() < 0.3}
        # Outside the `try`: a class without a maker must fail the run, not hide its methods.
        target = self.target(name)
        try:
            target(*given.values(), **options)
        except Exception:
            pass
        except BaseException as error:
            shown = {key: repr(value)[:60] for key, value in (given | options).items()}
            self.faults.append(f"{name}({shown}): {type(error).__name__}: {error}")

    def target(self, name: str) -> Callable[..., Any]:
        """What the stub calls `name`, bound to a new object where it is a method."""
        owner, _, method = name.rpartition(".")
        if not owner:
            return getattr(_core, name)
        if method == "__new__":
            return getattr(_core, owner)
        made = self.makers[owner]()

        def use(*given: Any, **options: Any) -> Any:
            # Reading a property calls it.
            found = getattr(made, method)
            return found(*given, **options) if callable(found) else found

        return use


def main() -> None:
    """Run the calls and print their counts and faults."""
    seed, rounds = int(sys.argv[1]), int(sys.argv[2])
    caller = Caller(seed)
    for _ in range(rounds):
        for name, (positional, keywords) in functions().items():
            caller.call(name, positional, keywords)
    print(json.dumps({"calls": caller.calls, "faults": caller.faults}))


if __name__ == "__main__":
    main()
