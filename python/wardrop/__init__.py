"""Wardrop: KV-cache-aware request router for disaggregated LLM inference."""
