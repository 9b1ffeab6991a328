"""The report of a comparison: one HTML file that loads nothing, in a light and a dark theme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from wardrop.demo.figures import Curves, Figures
from wardrop.demo.picture import DARK, LIGHT, draw_svg
from wardrop.demo.table import cells, lines

NOTES = (
    "Every arm starts with new workers and empty caches, and gets the same requests with the same "
    "tokens. The next turn of a conversation leaves a think time after the previous answer, so a "
    "slow arm ends later.",
    "Time to first token: from the sent request to the first token, at the client. Gap between "
    "tokens: over all gaps of all answers, at the client.",
    "Cached prompt tokens: as the engines report in `usage`.",
    "Busiest worker ÷ mean: request-seconds in flight; 1 is perfectly even. Round robin is even in "
    "requests, not in work.",
    "Router CPU per request: user and system time of the frontend process (HTTP, templates, "
    "tokeniser, detokeniser, routing, KV events) and of Wardrop's process in its arm (data plane, "
    "feeds, control), divided by answered requests. Workers and the load driver do not count.",
    "The engines are mock workers: their caches, batches and events are real Dynamo code, their "
    "step times come from a formula.",
)
"""How to read the figures."""

_STYLE = """
:root { color-scheme: light dark; --ground:#ffffff; --text:#1c2330; --faint:#5b6474;
  --line:#e3e6eb; --best:#0b6b3a; --band:#f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --ground:#12161d; --text:#e6e9ef; --faint:#9aa4b5;
  --line:#2a313d; --best:#6fd6a4; --band:#191f28; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 40px 28px 64px; background: var(--ground);
  color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 44px 0 12px; }
.lead { color: var(--faint); margin: 0 0 28px; max-width: 75ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid var(--faint); font-size: 15px; }
td.unit { color: var(--faint); text-align: left; padding-left: 0; }
td.best { color: var(--best); font-weight: 650; }
svg { width: 100%; height: auto; display: block; }
.dark { display: none; }
@media (prefers-color-scheme: dark) { .light { display: none; } .dark { display: block; } }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; }
ul { padding-left: 20px; max-width: 85ch; } li { margin: 6px 0; }
code { font-family: ui-monospace, monospace; font-size: .92em; }
footer { margin-top: 44px; color: var(--faint); font-size: 14px; }
@media (max-width: 640px) { body { padding: 24px 16px; } dl { grid-template-columns: 1fr; }
  dt { margin-top: 8px; } }
"""


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        title: Heading.
        lead: One or two sentences below the heading.
        labels: Names of the arms.
        figures: Numbers of the arms.
        curves: Curves of the arms.
        pools: Pools of workers, for the rows of the table.
        settings: Name and value of each setting of the run.
        footnote: Versions and machine.
    """

    title: str
    lead: str
    labels: Sequence[str]
    figures: Sequence[Figures]
    curves: Sequence[Curves]
    pools: Sequence[str]
    settings: Sequence[tuple[str, str]]
    footnote: str


def html(page: Page) -> str:
    """The report as HTML.

    Raises:
        PlotMissingError: matplotlib is not installed.
    """
    light, dark = (draw_svg(page.labels, page.curves, theme) for theme in (LIGHT, DARK))
    spoken = _plain_text(page.labels, page.figures)
    rows = "".join(_table_rows(page.figures, page.pools))
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in page.labels)
    listed = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.settings
    )
    notes = "".join(f"<li>{_code(note)}</li>" for note in NOTES)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(page.title)}</h1>
<p class="lead">{escape(page.lead)}</p>
<div class="scroll"><table>
<thead><tr><th></th><th></th>{heads}</tr></thead>
<tbody>{rows}</tbody>
</table></div>
<h2>While it ran</h2>
<div role="img" aria-label="{escape(spoken)}">
<div class="light">{light}</div>
<div class="dark">{dark}</div>
</div>
<h2>What was run</h2>
<dl>{listed}</dl>
<h2>How to read it</h2>
<ul>{notes}</ul>
<footer>{escape(page.footnote)}</footer>
</body>
</html>
"""


def _table_rows(figures: Sequence[Figures], pools: Sequence[str]) -> list[str]:
    rows: list[str] = []
    for line in lines(pools):
        data = "".join(
            f'<td class="best">{escape(text)}</td>' if best else f"<td>{escape(text)}</td>"
            for text, best in cells(line, figures)
        )
        name, unit = escape(line.name), escape(line.unit)
        rows.append(f'<tr><td>{name}</td><td class="unit">{unit}</td>{data}</tr>\n')
    return rows


def _plain_text(labels: Sequence[str], figures: Sequence[Figures]) -> str:
    """The picture in words, for readers who cannot see it."""
    parts = [
        f"{label}: {_number(f.ttft_p50_ms)} and {_number(f.ttft_p95_ms)} ms"
        for label, f in zip(labels, figures, strict=True)
    ]
    return "Time to first token, median and 95th percentile. " + "; ".join(parts)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _code(text: str) -> str:
    """Escaped text, with `backticks` as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))
