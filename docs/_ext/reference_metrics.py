"""The page `reference/metrics.md`, from the names and help texts in the Rust sources.

The registry itself shows a metric with labels only once it has a value, so a scrape of an idle
gateway would miss half of them. The sources name each metric as `METHOD("name", "help", LABELS)`.
"""

from __future__ import annotations

import re
from pathlib import Path

HEAD = """# Metrics

`GET /metrics` of a router, in Prometheus' text format. Names begin with `wardrop_`, counters end
with `_total`, durations are in seconds. Every series also carries the label `router_id`. A label
has one meaning: `code` is an HTTP status, `error_code` the code of the router's own error.
This page is generated from the help texts in the Rust sources.
"""
METRIC = re.compile(
    r"(?P<method>[\w:]+)\(\s*\"(?P<name>[a-z][a-z0-9_]+)\",\s*\"(?P<help>(?:[^\"\\]|\\.|\\\n)+)\"\)?,?\s*"
    r"(?P<labels>&\[[^\]]*\]|[A-Z_]+)?",
)
CLOSURE = re.compile(r"let (\w+) = \|[^|]*\|\s*\w+\.(\w+)\(name, help, (&\[[^\]]*\]|[A-Z_]+)\)")
CONSTANT = re.compile(r"const ([A-Z_]+): &\[&str\] = (&\[[^\]]*\]);")
KINDS = {
    "counter": "counter",
    "counters": "counter",
    "float_counter": "counter",
    "float_counters": "counter",
    "gauge": "gauge",
    "gauges": "gauge",
    "histogram": "histogram",
    "histograms": "histogram",
}


def page(sources: Path) -> str:
    """The whole page in Markdown.

    Args:
        sources: the folder `rust`.

    Raises:
        RuntimeError: the sources no longer name metrics as this module expects.
    """
    files = sorted(sources.glob("*/src/**/*.rs"))
    rows = [row for file in files for row in _rows(file)]
    if len(rows) < 40:
        raise RuntimeError(
            f"{sources}: found {len(rows)} metrics, expected at least 40 of the form "
            'METHOD("name", "help", LABELS); adapt docs/_ext/reference_metrics.py'
        )
    table = "\n".join(sorted(set(rows)))
    return f"{HEAD}\n| metric | kind | labels | meaning |\n|---|---|---|---|\n{table}\n"


def _rows(file: Path) -> list[str]:
    text = file.read_text()
    constants = dict(CONSTANT.findall(text))
    closures = {name: (method, labels) for name, method, labels in CLOSURE.findall(text)}
    rows: list[str] = []
    for found in METRIC.finditer(text):
        method, labels = found["method"].rpartition("::")[2], found["labels"] or ""
        if method in closures:
            method, labels = closures[method]
        if method not in KINDS or (
            not found["help"][:1].isupper() and not found["help"][:1].isdigit()
        ):
            continue
        names = re.findall(r'"(\w+)"', constants.get(labels, labels))
        # A backslash at the end of a line joins it with the next one, without the indentation.
        meaning = re.sub(r"\\\n\s*", "", found["help"]).replace("|", "\\|")
        shown = ", ".join(f"`{name}`" for name in names) or "–"
        rows.append(f"| `wardrop_{found['name']}` | {KINDS[method]} | {shown} | {meaning} |")
    return rows
