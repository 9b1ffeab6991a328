"""Charts as inline SVG: lines with bands, distributions, heat maps.

The charts need no script, no font and no other file.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_HEAT_LEFT = 34

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#7f4fc9", "#8c6d31", "#4d4d4d", "#b5121b"),
)
"""The colours of Okabe and Ito, which most colour-blind readers tell apart, and four more."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: label of the curve.
        points: (x, mean, smallest, largest) of each point.
        colour: CSS colour.
    """

    name: str
    points: Sequence[tuple[float, float, float, float]]
    colour: str


@dataclass(frozen=True)
class Axis:
    """A scale with its ticks.

    Attributes:
        label: quantity and unit.
        log: whether the scale is logarithmic; values must then be above 0.
        zero: whether a linear scale includes 0.
    """

    label: str
    log: bool = False
    zero: bool = True


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    log: bool
    start: float
    length: float
    ticks: list[float] = field(default_factory=list[float])

    def at(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + self.length * min(max(share, -0.02), 1.02)


def _nice_step(span: float, count: int) -> float:
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)


def _marks(ratio: float) -> tuple[float, ...]:
    """Ticks per decade: fewer ticks for more decades."""
    if ratio > 500:
        return (1,)
    return (1, 2, 5) if ratio > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)


def _scale(values: Sequence[float], axis: Axis, start: float, length: float) -> _Scale:
    kept = [value for value in values if math.isfinite(value) and (value > 0 or not axis.log)]
    if not kept:
        kept = [1.0]
    low, high = min(kept), max(kept)
    if axis.log:
        low, high = low / 1.1, high * 1.1
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [mark * 10.0**decade for decade in decades for mark in _marks(high / low)]
        return _Scale(low, high, True, start, length, [t for t in ticks if low <= t <= high])
    if axis.zero:
        low = min(low, 0.0)
    if high <= low:
        high = low + 1.0
    step = _nice_step(high - low, 5)
    high = math.ceil(high / step - 1e-9) * step
    low = math.floor(low / step + 1e-9) * step
    count = round((high - low) / step)
    return _Scale(low, high, False, start, length, [low + step * i for i in range(count + 1)])


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _text(x: float, y: float, text: str, *, anchor: str = "middle", kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _rule(x1: float, x2: float, y: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _path(points: Sequence[tuple[float, float]], colour: str, name: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"'
    return f'<polyline points="{joined}" {style}><title>{escape(name)}</title></polyline>'


def _frame(x: _Scale, y: _Scale, x_axis: Axis, y_axis: Axis, x_ticks: Sequence[float]) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    out: list[str] = []
    for tick in y.ticks:
        out.append(_rule(_LEFT, WIDTH - _RIGHT, y.at(tick), "grid"))
        out.append(_text(_LEFT - 6, y.at(tick) + 3.5, _number(tick), anchor="end"))
    last = -math.inf
    for tick in x_ticks:
        at = x.at(tick)
        if at - last >= 30:
            out.append(_text(at, bottom + 15, _number(tick)))
            last = at
    out.append(_rule(_LEFT, WIDTH - _RIGHT, bottom, "axis"))
    out.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_axis.label, kind="label"))
    turn = f'transform="translate(13 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle"'
    out.append(f'<text class="label" {turn}>{escape(y_axis.label)}</text>')
    return out


def _svg(parts: Sequence[str], title: str, height: float = HEIGHT) -> str:
    box = f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def lines(title: str, curves: Sequence[Line], x_axis: Axis, y_axis: Axis) -> str:
    """Curves over load as SVG.

    A band spans smallest to largest, a line joins the means, and each dot shows its figures on
    hover.
    """
    xs = sorted({point[0] for curve in curves for point in curve.points})
    ys = [value for curve in curves for point in curve.points for value in point[1:]]
    flat = Axis(x_axis.label, x_axis.log, zero=False)
    x = _scale(xs, flat, _LEFT + 10, WIDTH - _LEFT - _RIGHT - 20)
    y = _scale(ys, y_axis, HEIGHT - _BOTTOM, -(HEIGHT - _TOP - _BOTTOM))
    out = _frame(x, y, x_axis, y_axis, xs)
    for curve in curves:
        kept = [point for point in curve.points if math.isfinite(point[1])]
        if len(kept) > 1:
            upper = [f"{x.at(a):.1f},{y.at(high):.1f}" for a, _, _, high in kept]
            lower = [f"{x.at(a):.1f},{y.at(low):.1f}" for a, _, low, _ in reversed(kept)]
            band = " ".join(upper + lower)
            out.append(f'<polygon points="{band}" fill="{curve.colour}" opacity=".16"/>')
            middle = [(x.at(a), y.at(mid)) for a, mid, _, _ in kept]
            out.append(_path(middle, curve.colour, curve.name))
        for a, mid, low, high in kept:
            spread = f"({_number(low)} to {_number(high)})"
            tip = escape(f"{curve.name} at {_number(a)}: {_number(mid)} {spread}")
            place = f'cx="{x.at(a):.1f}" cy="{y.at(mid):.1f}" r="3.2" fill="{curve.colour}"'
            out.append(f"<circle {place}><title>{tip}</title></circle>")
    return _svg(out, title)


def distribution(title: str, curves: Sequence[Line], x_axis: Axis) -> str:
    """Cumulative distributions as SVG; a point is (x, percent of requests at or below x, –, –)."""
    xs = [point[0] for curve in curves for point in curve.points]
    x = _scale(xs, x_axis, _LEFT, WIDTH - _LEFT - _RIGHT)
    y_axis = Axis("% of requests")
    y = _scale([0.0, 100.0], y_axis, HEIGHT - _BOTTOM, -(HEIGHT - _TOP - _BOTTOM))
    out = _frame(x, y, x_axis, y_axis, x.ticks)
    for curve in curves:
        points = [(x.at(a), y.at(share)) for a, share, _, _ in curve.points]
        out.append(_path(points, curve.colour, curve.name))
    return _svg(out, title)


def heat_ramp(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(…, 3) colours from pale to dark blue, in even steps; shares outside 0 to 1 are clipped."""
    pale, dark = np.asarray([240, 245, 250.0]), np.asarray([8, 48, 107.0])
    clipped = np.clip(shares, 0.0, 1.0)[..., None]
    return np.rint(pale + (dark - pale) * clipped).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(height, width, 3) pixels as a PNG file (W3C, RFC 2083): one filter-less IDAT."""
    height, width, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(raw, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def heat(title: str, rows: NDArray[np.float64], top: float, end_s: float) -> str:
    """A heat map as SVG: workers downwards, time to the right.

    Args:
        title: label of the picture.
        rows: (times, workers) values.
        top: value of the darkest colour; the colour scale is a square root.
        end_s: time at the right edge.
    """
    workers = rows.shape[1]
    cell = max(min(18.0, 240 / max(workers, 1)), 1.5)
    height = cell * workers + 22
    shares = np.sqrt(rows.T / top) if top > 0 else np.zeros_like(rows.T)
    image = base64.b64encode(png(heat_ramp(shares))).decode()
    place = f'x="{_HEAT_LEFT}" y="0" width="{WIDTH - _HEAT_LEFT - 6}" height="{cell * workers:g}"'
    style = 'preserveAspectRatio="none" style="image-rendering:pixelated"'
    out = [f'<image {place} {style} href="data:image/png;base64,{image}"/>']
    out.extend(
        _text(_HEAT_LEFT - 6, (worker + 0.5) * cell + 3.5, f"w{worker}", anchor="end")
        for worker in range(0, workers, max(1, workers // 8))
    )
    out.append(_text(_HEAT_LEFT, height - 6, "0 s", anchor="start"))
    out.append(_text(WIDTH - 6, height - 6, f"{_number(end_s)} s", anchor="end"))
    return _svg(out, title, height)


_STANDALONE = (
    "text{font:11px system-ui,sans-serif;fill:#5b6675}.label{font-size:12px}"
    ".grid{stroke:#e3e7ec}.axis{stroke:#5b6675}"
)


def standalone(svg: str, curves: Sequence[Line]) -> str:
    """A chart as a separate SVG file: with style, white background and a legend below."""
    rows = -(-len(curves) // 4)
    height = HEIGHT + 18 * rows + 6
    legend: list[str] = []
    for i, curve in enumerate(curves):
        x, y = 20 + (i % 4) * 125, HEIGHT + 14 + (i // 4) * 18
        legend.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{curve.colour}"/>')
        legend.append(_text(x + 15, y, curve.name, anchor="start"))
    body = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">'
        f"<style>{_STANDALONE}</style><rect width='100%' height='100%' fill='#fff'/>"
        f"{body}{''.join(legend)}</svg>\n"
    )
