"""Sphinx extension: writes the reference pages that the code itself can tell.

Each build writes `docs/reference/{cli,configuration,metrics}.md` and `docs/reference/python/*.md`
anew, so these pages never fall behind the code. Git ignores them. A page that does not change
keeps its time of modification, so Sphinx does not render it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import reference_cli
import reference_configuration
import reference_metrics
import reference_python

ROOT = Path(__file__).resolve().parents[2]


def write_pages(reference: Path) -> None:
    """Write every generated page below `reference`.

    Args:
        reference: the folder `docs/reference`.
    """
    pages = {
        "cli.md": reference_cli.page(),
        "configuration.md": reference_configuration.page(),
        "metrics.md": reference_metrics.page(ROOT / "rust"),
        **{f"python/{name}": text for name, text in reference_python.pages(ROOT).items()},
    }
    for name, text in pages.items():
        file = reference / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def setup(app: Any) -> dict[str, bool]:
    """Register the extension: Sphinx calls this once per build."""
    app.connect("config-inited", lambda app, _config: write_pages(Path(app.srcdir) / "reference"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
