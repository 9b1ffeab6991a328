"""The page `reference/metrics.md`, from the names and help texts in the Rust sources.

The registry itself shows a metric with labels only once it has a value, so a scrape of an idle
gateway would miss half of them. The sources name each metric as `METHOD("name", "help", LABELS)`.
"""

from __future__ import annotations

import re
from pathlib import Path

HEAD = """# Metrics

`GET /metrics` of the gateway, in Prometheus' text format. Names begin with `wardrop_`, counters end
with `_total`, durations are in seconds. Every series also carries the label `router_id`.
This page is generated from the help texts in the Rust sources.
"""
METRIC = re.compile(
    r"(?P<method>[\w:]+)\(\s*\"(?P<name>[a-z][a-z0-9_]+)\",\s*\"(?P<help>(?:[^\"\\]|\\.)+)\"\)?,?\s*"
    r"(?P<labels>&\[[^\]]*\]|[A-Z_]+)?",
)
CLOSURE = re.compile(r"let (\w+) = \|[^|]*\|\s*\w+\.(\w+)\(name, help, (&\[[^\]]*\]|[A-Z_]+)\)")
CONSTANT = re.compile(r"const ([A-Z_]+): &\[&str\] = (&\[[^\]]*\]);")
KINDS = {
    "counter": "counter",
    "counters": "counter",
    "float": "counter",
    "gauge": "gauge",
    "gauges": "gauge",
    "histogram": "histogram",
    "histograms": "histogram",
    "new": "",
}


def page(sources: Path) -> str:
    """The whole page in Markdown.

    Args:
        sources: the folder `rust`.

    Raises:
        RuntimeError: the sources no longer name metrics as this module expects.
    """
    files = [file for file in sources.glob("*/src/**/*.rs") if "metrics" in str(file)]
    rows = [row for file in sorted(files) for row in _rows(file)]
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
        kind = KINDS[method] or ("counter" if found["name"].endswith("_total") else "gauge")
        names = re.findall(r'"(\w+)"', constants.get(labels, labels))
        meaning = found["help"].replace("|", "\\|")
        shown = ", ".join(f"`{name}`" for name in names) or "–"
        rows.append(f"| `wardrop_{found['name']}` | {kind} | {shown} | {meaning} |")
    return rows
