"""Numbers as a person reads them, in the same form as on the live page."""

from __future__ import annotations

DASH = "–"


def seconds(value: float | None) -> str:
    """A time with a unit that fits its size."""
    if value is None:
        return DASH
    size = abs(value)
    if size >= 1:
        return f"{_rounded(value, 3)} s"
    if size >= 1e-3:
        return f"{_rounded(value * 1e3, 3 if size >= 0.1 else 2)} ms"
    return f"{_rounded(value * 1e6, 2)} µs" if size else "0 s"


def _rounded(value: float, digits: int) -> str:
    """A number rounded to some digits, without an exponent: 99.6 with two digits is 100."""
    size = abs(value)
    if size >= 10**digits:
        return f"{value:.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return DASH if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return DASH if value is None else f"{100 * value:.3g} %"


def ratio(value: float | None) -> str:
    """A ratio with two decimals."""
    return DASH if value is None else f"{value:.2f}"
