"""Entries as Dynamo 1.6.1 writes them, with everything that is not read left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wardrop.dynamo.discovery.entries import Entry, decode_entry


class Entries:
    """Builds a store's content: `snapshot` as JSON values, `content` as the router decodes them."""

    def __init__(self) -> None:
        self.snapshot: dict[str, dict[str, dict[str, Any]]] = {
            bucket: {} for bucket in ("instances", "mdc", "event_channels", "event_sources")
        }

    @property
    def content(self) -> dict[str, dict[str, Entry]]:
        """The entries, decoded."""
        return {
            bucket: {
                key: decode_entry(bucket, key, json.dumps(entry).encode())
                for key, entry in items.items()
            }
            for bucket, items in self.snapshot.items()
        }

    def worker(self, instance: int, *, component: str = "backend", **changes: Any) -> Entries:
        """Instance and card; `changes` replace card fields, `address` the transport's."""
        address = changes.pop("address", f"127.0.0.1:4000/{instance:x}")
        namespace = changes.pop("namespace", "dynamo")
        place = {"namespace": namespace, "component": component, "endpoint": "generate"}
        key = f"{namespace}/{component}/generate/{instance:x}"
        self.snapshot["instances"][key] = {
            "type": "Endpoint",
            "instance_id": instance,
            "transport": {"tcp": address},
            **place,
        }
        card: dict[str, Any] = {
            "display_name": "tiny",
            "source_path": "/models/tiny",
            "tokenizer": {"hf_tokenizer_json": {"path": "http://h/tokenizer.json"}},
            "context_length": 32768,
            "model_type": "Chat | Completions",
            "kv_cache_block_size": 16,
            "worker_type": "prefill" if component == "prefill" else "aggregated",
            "runtime_config": {
                "total_kv_blocks": 2048,
                "max_num_seqs": 256,
                "max_num_batched_tokens": 8192,
                "data_parallel_start_rank": 0,
                "data_parallel_size": 1,
            },
        }
        card.update(changes)
        self.snapshot["mdc"][key] = {
            "type": "Model",
            "instance_id": instance,
            "card_json": card,
            **place,
        }
        return self

    def feed(
        self,
        publisher: int,
        topic: str = "kv-events",
        component: str = "backend",
        address: str = "tcp://127.0.0.1:5000",
        kind: str = "Zmq",
    ) -> Entries:
        """An event channel."""
        endpoint = {"namespace": "dynamo", "component": component, "name": "generate"}
        self.snapshot["event_channels"][f"{topic}/{publisher:x}"] = {
            "type": "EventChannel",
            "scope": {"kind": "endpoint", "endpoint": endpoint},
            "topic": topic,
            "instance_id": publisher,
            "transport": {"kind": kind, "config": {"endpoint": address}},
        }
        return self

    def source(self, publisher: int, worker: int) -> Entries:
        """Which worker a publisher speaks for."""
        self.snapshot["event_sources"][f"kv-events/{publisher:x}"] = {
            "type": "EventSource",
            "publisher_id": publisher,
            "metadata": {"worker": {"worker_id": worker, "dp_rank": 0}},
        }
        return self


@pytest.fixture
def entries() -> Entries:
    return Entries()
