"""Sphinx configuration of the site, for `make docs`: no network, and warnings are errors."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Wardrop"
copyright = "The Wardrop contributors"
extensions = ["myst_parser", "wardrop_reference", "local_assets"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]

smartquotes = False  # would turn `--flag` in help texts into a dash
myst_heading_anchors = 4
html_theme = "furo"
html_title = "Wardrop"
html_copy_source = False
html_show_sourcelink = False
