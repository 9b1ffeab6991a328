"""Wardrop: KV-cache-aware request router for disaggregated LLM inference.

The native module is imported when one of its names is first used: the command line prints its help
without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
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
    "__version__",
    "block_hashes",
    "sequence_hashes",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("wardrop")
    elif name in __all__:
        value = getattr(importlib.import_module("wardrop._core"), name)
    else:
        raise AttributeError(f"module 'wardrop' has no attribute {name!r}")
    globals()[name] = value
    return value
