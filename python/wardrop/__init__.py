"""Wardrop: KV-cache-aware request router for disaggregated LLM inference.

The names below come from the native module when they are first used, so that the command line can
print its help without loading it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wardrop._core import (
        Candidate,
        Cleared,
        Decision,
        Prefix,
        Removed,
        Router,
        Stored,
        block_hashes,
        sequence_hashes,
    )

__all__ = [
    "Candidate",
    "Cleared",
    "Decision",
    "Prefix",
    "Removed",
    "Router",
    "Stored",
    "block_hashes",
    "sequence_hashes",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        value = getattr(importlib.import_module("wardrop._core"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'wardrop' has no attribute {name!r}")
