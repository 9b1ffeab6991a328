"""Whether the processes of an embedded fleet are ready, by the discovery store and /proc."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast
from urllib.request import urlopen

from wardrop.dynamo.discovery import file_store
from wardrop.dynamo.discovery.file_store import JsonObject

_TIMEOUT_S = 5.0


def live_instances(store: Path) -> dict[int, str]:
    """Component of each worker instance that the store lists now, by instance id."""
    found: dict[int, str] = {}
    for _, entry in file_store.entries(store, "instances"):
        if entry.get("endpoint") == "generate":
            found[int(str(entry["instance_id"]))] = str(entry["component"])
    return found


def instances_of_process(store: Path, pid: int) -> list[int]:
    """Registered worker instances whose request-plane address is a listening port of a process.

    An instance counts when its model card is in the store too.
    """
    ports = _listening_ports(pid)
    found: list[int] = []
    cards = {key.rpartition("/")[2] for key, _ in file_store.entries(store, "mdc")}
    for key, entry in file_store.entries(store, "instances"):
        transport = entry.get("transport")
        if entry.get("endpoint") != "generate" or not isinstance(transport, dict):
            continue
        address = str(cast(JsonObject, transport).get("tcp", "")).partition("/")[0]
        if address.rpartition(":")[2] in ports and key.rpartition("/")[2] in cards:
            found.append(int(str(entry["instance_id"])))
    return found


def frontend_serves(url: str, model: str, instances: Iterable[int]) -> bool:
    """Whether a frontend lists a model and all given worker instances.

    Without instances the frontend need not list the model.
    """
    alive = set(instances)
    try:
        with urlopen(f"{url}/v1/models", timeout=_TIMEOUT_S) as answer:
            models = {listed["id"] for listed in json.load(answer)["data"]}
        with urlopen(f"{url}/health", timeout=_TIMEOUT_S) as answer:
            listed = {
                instance["instance_id"]
                for instance in json.load(answer)["instances"]
                if instance["endpoint"] == "generate"
            }
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return (model in models or not alive) and alive <= listed


def _listening_ports(pid: int) -> set[str]:
    """TCP ports on which a process listens, as decimal texts, from /proc."""
    inodes: set[str] = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return set()
    # Columns of proc(5): 1 is the local address in hexadecimal, 3 the state (0A: listening), 9 the
    # inode.
    fields = (row.split() for row in rows)
    return {
        str(int(f[1].rpartition(":")[2], 16)) for f in fields if f[3] == "0A" and f[9] in inodes
    }
