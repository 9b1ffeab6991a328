"""Empty matplotlib figures, for every picture that needs the extra `plot`.

The demo, `wardrop curves` and `wardrop games plots` draw with matplotlib. The report of `wardrop
replay` does not: `wardrop.replay.chart` writes SVG itself, because a replay needs no extra.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


class PlotMissingError(RuntimeError):
    """matplotlib is not installed. The text names the command that installs it."""


def new_figure(width_inches: float, height_inches: float) -> Any:
    """An empty figure with constrained layout, without the global state of pyplot.

    Raises:
        PlotMissingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _missing() from error
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def styled(style: dict[str, Any]) -> AbstractContextManager[None]:
    """A context in which figures take these matplotlib settings.

    Raises:
        PlotMissingError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise _missing() from error
    untyped: Any = mpl
    return untyped.rc_context(style)


def _missing() -> PlotMissingError:
    return PlotMissingError("a picture needs matplotlib; run: pip install 'wardrop[plot]'")
