"""Models, workers and feeds as JSON texts that `wardrop._core.Gateway` reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from wardrop.dynamo.discovery.fleet_view import Feed, Model, Worker


def model_json(model: Model, folder: Path | None) -> str:
    """A model for `Gateway.upsert_model`.

    Args:
        model: The model.
        folder: Local folder with the model's tokenizer and template; None without one.
    """
    return json.dumps(
        {
            "name": model.name,
            "folder": None if folder is None else str(folder),
            "block_size": model.block_size,
            "context_length": model.context_length,
            "loras": list(model.loras),
            "checksums": list(model.checksums),
            "card": _card(model),
            "left_to_dynamo": model.left_to_dynamo,
            "aliases": list(model.aliases),
        }
    )


def _card(model: Model) -> dict[str, object]:
    """The options that the card has; the gateway takes Dynamo's default for any other."""
    options = asdict(model.prompt_options)
    found = {name: value for name, value in options.items() if value is not None}
    return {"completions_have_special_tokens": model.has_special_tokens, **found}


def worker_json(worker: Worker) -> str:
    """A worker for `Gateway.upsert_worker`."""
    return json.dumps(
        {
            "model": worker.model,
            "role": worker.role,
            "instance": worker.instance,
            "dp_start": worker.dp_start,
            "dp_size": worker.dp_size,
            "total_kv_blocks": worker.total_kv_blocks,
            "max_num_seqs": worker.max_num_seqs,
            "max_num_batched_tokens": worker.max_num_batched_tokens,
        }
    )


def feed_json(feed: Feed) -> str:
    """A feed for `Gateway.subscribe`."""
    return json.dumps(
        {
            "endpoint": feed.address,
            "topic": feed.topic,
            "model": feed.model,
            "role": feed.role,
            "publisher_id": feed.publisher_id,
            "instance": feed.instance,
            "any_publisher": feed.any_publisher,
            "dp_rank": feed.dp_rank,
            "replay": feed.replay,
        }
    )
