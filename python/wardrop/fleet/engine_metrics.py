"""Reads the figures that the router needs from an engine's metrics page.

vLLM, SGLang and TensorRT-LLM name the same figures differently. Lines with other names cost one
look-up each. Cost: O(bytes of the page).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

MAX_PAGE_BYTES = 8 << 20

_RUNNING = {
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "trtllm_num_requests_running",
}
_WAITING = {
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "trtllm_num_requests_waiting",
}
_USAGE = {
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "trtllm_kv_cache_utilization",
}
_CACHE_INFO = {"vllm:cache_config_info", "sglang:cache_config_info"}
_START = "process_start_time_seconds"
_BLOCK_SIZE = ("block_size", "page_size")
_BLOCKS = ("num_gpu_blocks", "num_pages")
_LINE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_STARTS = ("vllm:", "sglang:", "trtllm_", _START)
_MAX_COUNT = 1 << 40


@dataclass
class RankLoad:
    """Load of one rank.

    Attributes:
        running: Requests that the engine computes.
        waiting: Requests that wait in the engine.
        kv_usage: Share of the KV cache in use, 0 to 1; None when not reported.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float | None = None


@dataclass
class EngineMetrics:
    """What an engine reports of itself.

    Attributes:
        block_size: Tokens per KV block; None when not reported.
        kv_blocks: KV blocks of a rank; None when not reported.
        started_s: Start of the process, seconds since 1970; None when not reported.
        ranks: Load by data-parallel rank; empty when not reported.
    """

    block_size: int | None = None
    kv_blocks: int | None = None
    started_s: float | None = None
    ranks: dict[int, RankLoad] = field(default_factory=dict[int, RankLoad])


def read_metrics(page: str) -> EngineMetrics:
    """The figures of a metrics page. Lines that cannot be read are passed over."""
    metrics = EngineMetrics()
    for line in page.splitlines():
        if not line.startswith(_STARTS):
            continue
        found = _LINE.match(line)
        if found is None:
            continue
        name, labels_text, value_text = found.groups()
        try:
            value = float(value_text)
        except ValueError:
            continue
        if name == _START:
            metrics.started_s = value if math.isfinite(value) else None
        elif name in _CACHE_INFO:
            labels = dict(_LABEL.findall(labels_text or ""))
            metrics.block_size = _count(labels, _BLOCK_SIZE) or metrics.block_size
            metrics.kv_blocks = _count(labels, _BLOCKS) or metrics.kv_blocks
        elif name == "trtllm_kv_cache_tokens_per_block":
            metrics.block_size = _whole(value) or None
        elif name == "trtllm_kv_cache_max_blocks":
            metrics.kv_blocks = _whole(value) or None
        elif name in _RUNNING or name in _WAITING or name in _USAGE:
            labels = dict(_LABEL.findall(labels_text or ""))
            load = metrics.ranks.setdefault(_rank(labels), RankLoad())
            if name in _RUNNING:
                load.running = _whole(value)
            elif name in _WAITING:
                load.waiting = _whole(value)
            else:
                load.kv_usage = min(max(value, 0.0), 1.0) if math.isfinite(value) else None
    return metrics


def _rank(labels: dict[str, str]) -> int:
    text = labels.get("dp_rank") or labels.get("engine") or "0"
    return int(text) if text.isdecimal() and len(text) < 6 else 0


def _count(labels: dict[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        text = labels.get(name, "")
        if text.isdecimal() and 0 < int(text[:16]) <= _MAX_COUNT:
            return int(text)
    return None


def _whole(value: float) -> int:
    return int(value) if math.isfinite(value) and 0 <= value <= _MAX_COUNT else 0
