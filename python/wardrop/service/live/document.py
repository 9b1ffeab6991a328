"""The document of the live page: markup, style and script joined into one self-contained text.

The content security policy allows exactly this style and this script, and connections to the admin
API alone. Text from outside enters the page as text nodes only.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

_ASSETS = files("wardrop.service.live") / "assets"
_SCRIPTS = ("format.js", "charts.js", "fleet.js", "receipt.js", "page.js")


@cache
def document() -> str:
    """The page as one text of HTML."""
    return _read("page.html").replace("/*STYLE*/", _style()).replace("/*SCRIPT*/", _script())


@cache
def _style() -> str:
    return _read("style.css")


@cache
def _script() -> str:
    return '"use strict";\n' + "\n".join(_read(name) for name in _SCRIPTS)


def _read(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash(_script())}",
        f"style-src {_hash(_style())}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
