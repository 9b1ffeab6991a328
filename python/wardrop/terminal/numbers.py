"""Numbers as a person reads them, in the same form as on the live page."""

from __future__ import annotations

DASH = "–"


def seconds(value: float | None) -> str:
    """A time with a unit that fits its size."""
    if value is None:
        return DASH
    size = abs(value)
    if size >= 1:
        return f"{value:.0f} s" if size >= 100 else f"{value:.3g} s"
    if size >= 1e-3:
        return f"{value * 1e3:.3g} ms" if size >= 0.1 else f"{value * 1e3:.2g} ms"
    return f"{value * 1e6:.2g} µs" if size else "0 s"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return DASH if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return DASH if value is None else f"{100 * value:.3g} %"


def ratio(value: float | None) -> str:
    """A ratio with two decimals."""
    return DASH if value is None else f"{value:.2f}"
