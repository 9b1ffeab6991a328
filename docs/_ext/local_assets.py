"""Sphinx extension: fails a build whose pages load a script, a style or a picture from elsewhere.

The site must work on a machine without a network, and must report its readers to nobody.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]*\"|"
    r"<link\b(?=[^>]*\brel=\"(?:stylesheet|preload|icon|preconnect)\")[^>]*\bhref=\"(?:https?:)?//[^\"]*\""
)


def check(app: Any, exception: Exception | None) -> None:
    """Look at every page once the build is done.

    Raises:
        ExtensionError: a page loads something from another host.
    """
    if exception is not None:
        return
    for page in sorted(Path(app.outdir).rglob("*.html")):
        if found := LOADED.search(page.read_text()):
            raise ExtensionError(f"{page}: loads {found[0]!r}; keep every asset in the site")


def setup(app: Any) -> dict[str, bool]:
    """Register the extension: Sphinx calls this once per build."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
