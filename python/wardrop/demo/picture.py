"""The curves of all arms in one picture: as PNG, and as SVG in a light and a dark theme.

Needs matplotlib (`pip install 'wardrop[plot]'`). The colours are Okabe and Ito's, which readers
with any kind of colour blindness can distinguish. Each arm also has its own line style.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wardrop.charts import new_figure, styled
from wardrop.demo.figures import Curves, common_time_s


@dataclass(frozen=True)
class Theme:
    """The colours of a picture.

    Attributes:
        ground: Background of the page.
        panel: Background of a diagram.
        text: Titles and labels.
        faint: Notes and axes.
        grid: Grid lines.
        arms: Lines of the arms, in the order of the arms.
        load: Load from none over medium to the highest.
    """

    ground: str
    panel: str
    text: str
    faint: str
    grid: str
    arms: tuple[str, ...]
    load: tuple[str, str, str]


LIGHT = Theme(
    ground="#ffffff",
    panel="#ffffff",
    text="#1c2330",
    faint="#5b6474",
    grid="#e3e6eb",
    arms=("#7d8592", "#0072B2", "#D55E00", "#009E73"),
    load=("#f1f4f8", "#7fb2d9", "#0b3c66"),
)
DARK = Theme(
    ground="#12161d",
    panel="#12161d",
    text="#e6e9ef",
    faint="#9aa4b5",
    grid="#2a313d",
    arms=("#9aa4b5", "#56B4E9", "#F08A3C", "#3CC79B"),
    load=("#1b212b", "#2f6f9f", "#d6ecff"),
)
STYLES: tuple[Any, ...] = ((0, (1.5, 1.5)), (0, (5, 2)), "solid", (0, (5, 1.5, 1, 1.5)))


def draw_png(
    path: Path, labels: Sequence[str], curves: Sequence[Curves], title: str, note: str
) -> None:
    """Write the picture in the light theme, at 160 dots per inch.

    Args:
        path: The PNG file to write.
        labels: Names of the arms.
        curves: Curves of the arms.
        title: Title above the picture.
        note: Text below the picture.

    Raises:
        PlotMissingError: matplotlib is not installed.
    """
    figure = _figure(labels, curves, LIGHT, title, note)
    figure.savefig(path, dpi=160, facecolor=LIGHT.ground)


def draw_svg(labels: Sequence[str], curves: Sequence[Curves], theme: Theme) -> str:
    """The picture without title and note, as an `<svg>` element.

    Raises:
        PlotMissingError: matplotlib is not installed.
    """
    figure = _figure(labels, curves, theme, None, None)
    text = io.StringIO()
    figure.savefig(text, format="svg", facecolor=theme.ground)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _figure(
    labels: Sequence[str],
    curves: Sequence[Curves],
    theme: Theme,
    title: str | None,
    note: str | None,
) -> Any:
    # The style gives each theme its own ids in the SVG: one page contains both pictures.
    with styled(_style(theme)):
        figure: Any = new_figure(12.5, 10.6 if title else 9.7)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, hspace=0.03, wspace=0.03)
        top, bottom = figure.subfigures(2, 1, height_ratios=(2.25, 1))
        for part in (top, bottom):
            part.set_facecolor(theme.ground)
        if title:
            figure.suptitle(title, fontsize=16, fontweight="bold", color=theme.text)
        axes: Any = top.subplots(2, 2)
        _draw_cdf(axes[0, 0], labels, curves, theme)
        _draw_over_time(axes[0, 1], labels, curves, theme)
        _draw_cached(axes[1, 0], labels, curves, theme)
        _draw_tail(axes[1, 1], labels, curves, theme)
        handles, names = axes[0, 0].get_legend_handles_labels()
        top.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=12)
        _draw_load(bottom, labels, curves, theme)
        if note:
            figure.supxlabel(textwrap.fill(note, 170), fontsize=9, color=theme.faint)
        figure.canvas.draw()
    return figure


def _style(theme: Theme) -> dict[str, Any]:
    return {
        "font.size": 11,
        "font.family": "sans-serif",
        "text.color": theme.text,
        "axes.facecolor": theme.panel,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.text,
        "axes.titlesize": 12.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text,
        "legend.frameon": False,
        "lines.linewidth": 2.2,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "path",
        "svg.hashsalt": theme.ground,
    }


def _line(theme: Theme, arm: int) -> dict[str, Any]:
    return {"color": theme.arms[arm % len(theme.arms)], "linestyle": STYLES[arm % len(STYLES)]}


def _draw_cdf(axis: Any, labels: Sequence[str], curves: Sequence[Curves], theme: Theme) -> None:
    axis.set_title("Time to first token: share of requests that were faster")
    for arm, (label, curve) in enumerate(zip(labels, curves, strict=True)):
        count = len(curve.ttft_ms)
        share = 100 * np.arange(1, count + 1) / max(1, count)
        axis.plot(curve.ttft_ms, share, label=label, **_line(theme, arm))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(_plain)
    axis.xaxis.set_minor_formatter(_plain_sparse)
    axis.set_xlabel("time to first token, ms (log)")
    axis.set_ylabel("requests, %")
    axis.set_ylim(0, 101)


def _draw_over_time(
    axis: Any, labels: Sequence[str], curves: Sequence[Curves], theme: Theme
) -> None:
    axis.set_title("Median time to first token over the run")
    for arm, (label, curve) in enumerate(zip(labels, curves, strict=True)):
        axis.plot(curve.time_s, curve.ttft_p50_ms, label=label, **_line(theme, arm))
    _time_axis(axis, curves)
    axis.set_ylabel("median of 2 s, ms")
    axis.set_ylim(bottom=0)


def _draw_tail(axis: Any, labels: Sequence[str], curves: Sequence[Curves], theme: Theme) -> None:
    axis.set_title("95th percentile of the time to first token")
    for arm, (label, curve) in enumerate(zip(labels, curves, strict=True)):
        axis.plot(curve.time_s, curve.ttft_p95_ms, label=label, **_line(theme, arm))
    _time_axis(axis, curves)
    axis.set_ylabel("p95 of 2 s, ms")
    axis.set_ylim(bottom=0)


def _draw_cached(axis: Any, labels: Sequence[str], curves: Sequence[Curves], theme: Theme) -> None:
    axis.set_title("Prompt tokens found in the worker's cache")
    for arm, (label, curve) in enumerate(zip(labels, curves, strict=True)):
        axis.plot(curve.time_s, 100 * curve.cached_share, label=label, **_line(theme, arm))
    _time_axis(axis, curves)
    axis.set_ylabel("cached, % of prompt tokens")
    if all(np.isnan(curve.cached_share).all() for curve in curves):
        style = {"ha": "center", "va": "center", "color": theme.faint}
        axis.text(0.5, 0.5, "not reported by this fleet", transform=axis.transAxes, **style)
    axis.set_ylim(0, 100)


def _draw_load(part: Any, labels: Sequence[str], curves: Sequence[Curves], theme: Theme) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    part.suptitle(
        "Requests in flight on each worker",
        x=0.01,
        ha="left",
        fontsize=12.5,
        fontweight="bold",
        color=theme.text,
    )
    shades = LinearSegmentedColormap.from_list("load", theme.load)
    axes: Any = part.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    most = max((float(curve.load.max()) for curve in curves if curve.load.size), default=1.0)
    image: Any = None
    for axis, label, curve in zip(axes, labels, curves, strict=True):
        rows = np.arange(len(curve.pools) + 1) - 0.5
        image = axis.pcolormesh(
            curve.load_time_s,
            rows,
            curve.load,
            vmin=0,
            vmax=max(1.0, most),
            cmap=shades,
            rasterized=True,
        )
        axis.set_title(label, fontsize=11.5, fontweight="normal")
        axis.grid(visible=False)
        axis.set_xlim(0, common_time_s(curves))
        axis.set_xlabel("time, s")
        axis.set_yticks(range(len(curve.pools)), _worker_names(curve.pools))
    axes[0].invert_yaxis()  # the panels share the axis: worker 0 is on top in all of them
    if image is not None:
        bar: Any = part.colorbar(image, ax=list(axes), pad=0.01, fraction=0.03)
        bar.set_label("requests in flight")
        bar.outline.set_visible(False)
    axes[0].set_ylabel("worker")


def _worker_names(pools: Sequence[str]) -> list[str]:
    letters = {"aggregated": "", "prefill": "P", "decode": "D"}
    names: list[str] = []
    for place, pool in enumerate(pools):
        names.append(f"{letters.get(pool, '')}{list(pools[:place]).count(pool)}")
    return names


def _time_axis(axis: Any, curves: Sequence[Curves]) -> None:
    axis.set_xlabel("time, s")
    axis.set_xlim(0, common_time_s(curves))


def _plain(value: float, _position: int | None = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _plain_sparse(value: float, _position: int | None = None) -> str:
    """A label for 2 and 5 between the decades of a log axis; empty for other digits."""
    digit = value / 10 ** np.floor(np.log10(value)) if value > 0 else 0
    return _plain(value) if round(float(digit)) in (2, 5) else ""
