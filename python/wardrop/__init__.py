"""Wardrop: KV-cache-aware request router for disaggregated LLM inference."""

from wardrop._core import (
    Candidate,
    Cleared,
    Decision,
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
    "Removed",
    "Router",
    "Stored",
    "block_hashes",
    "sequence_hashes",
]
