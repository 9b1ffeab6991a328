"""Measurements of predicted caches."""
