"""The advice with its evidence as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from wardrop.advise.advice import Advice, saving, sentences
from wardrop.advise.comparison import FIGURES, of, ratio
from wardrop.advise.evidence import Evidence
from wardrop.advise.optimum import Optimum
from wardrop.advise.question import Question
from wardrop.replay.chart import COLOURS, Axis, Line, lines
from wardrop.replay.report import curves_over_load
from wardrop.replay.sweep import Cell, mean_and_range
from wardrop.replay.workload import Workload

_OVER_LOAD = (
    ("ttft_mean_s", "Time to first token, mean", "s"),
    ("ttft_p99_s", "Time to first token, 99th percentile", "s"),
    ("e2e_mean_s", "Time to last token, mean", "s"),
    ("goodput_per_s", "Goodput: requests within both limits", "requests/s"),
)
_HEAD = (
    "<!doctype html><html lang=en><meta charset=utf-8>"
    "<meta name=viewport content='width=device-width,initial-scale=1'>"
)


def page(question: Question, evidence: Evidence, advice: Advice, config: str) -> str:
    """The page as text.

    Args:
        question: what was asked.
        evidence: what the simulations found.
        advice: what follows from it.
        config: the configuration file of the advice.
    """
    workload = question.workload(0)
    name = escape(Path(workload.name).name)
    style = files("wardrop.replay").joinpath("report.css").read_text(encoding="utf-8")
    said = "".join(f"<li>{escape(text)}</li>" for text in sentences(question, evidence, advice))
    limits = (
        f"{question.slo.ttft_s:g} s to the first token, {question.slo.itl_s * 1e3:g} ms a token"
    )
    return (
        f"{_HEAD}<title>Wardrop advice: {name}</title><style>{style}</style><main>"
        f"<h1>Advice for {name}</h1>"
        f"<p>Simulated: {_fleet_text(question)}. Objective: {escape(question.objective)}. "
        f"Limits of a good request: {limits}.</p>"
        f'<div class="said"><ul>{said}</ul></div>'
        f"<h2>The traffic</h2>{_facts(workload)}"
        f"<h2>Policies on this traffic</h2>{_policy_table(question, evidence, advice)}"
        f"<h2>Over load</h2>{_load_charts(evidence)}"
        f"{_workers(question, evidence)}{_split(evidence, advice)}"
        f"{_optimum(evidence.optimum)}{_losses(question, advice)}"
        f"<h2>The configuration</h2><pre>{escape(config)}</pre>"
        f"<h2>What the figures rest on</h2>{_limits_of_the_method(question, workload)}"
        "</main></html>"
    )


def _fleet_text(question: Question) -> str:
    fleet, engine = question.fleet, question.fleet.engine
    shape = (
        f"{fleet.prefill} prefill and {fleet.decode} decode workers"
        if fleet.is_split
        else f"{fleet.workers} workers"
    )
    return f"{shape} with {engine.num_blocks:,} KV blocks of {engine.block_size} tokens each"


def _facts(workload: Workload) -> str:
    inputs, outputs = workload.input_tokens, workload.output_tokens
    rate = len(workload) / workload.span_s if workload.span_s else 0.0
    rows = (
        ("requests", f"{len(workload):,}"),
        ("minutes", f"{workload.span_s / 60:.1f}"),
        ("requests/s", f"{rate:.2f}"),
        (
            "prompt tokens, median and p99",
            f"{np.median(inputs):,.0f}, {np.percentile(inputs, 99):,.0f}",
        ),
        (
            "answer tokens, median and p99",
            f"{np.median(outputs):,.0f}, {np.percentile(outputs, 99):,.0f}",
        ),
        (
            "most reuse that any cache could give",
            f"{workload.ideal_reuse() * 100:.1f} % of prompt tokens",
        ),
    )
    facts = "".join(f"<span>{escape(key)} <b>{escape(value)}</b></span>" for key, value in rows)
    return f'<div class="facts">{facts}</div>'


def _policy_table(question: Question, evidence: Evidence, advice: Advice) -> str:
    running = question.running.label
    rows: list[str] = []
    for label in dict.fromkeys(cell.policy for cell in evidence.policies):
        cells = of(evidence.policies, label)
        cost = ratio(cells, of(evidence.policies, running), question.figure)
        marks = [
            text
            for text, holds in (
                ("in use", label == running),
                ("advised", label == advice.policy.label),
            )
            if holds
        ]
        values = "".join(
            f"<td>{mean_and_range(cells, figure)[0]:.3g}</td>"
            for figure in (*[name for name, _, _ in FIGURES], "reuse", "attainment")
        )
        rows.append(
            f"<tr><td>{escape(label)}</td><td>{', '.join(marks)}</td>"
            f"<td{' class=best' if cost.is_better else ''}>{cost}</td>{values}</tr>"
        )
    heads = "".join(
        f"<th>{escape(head)}</th>"
        for head in (
            *("policy", "", "cost relative to the policy in use", "TTFT s", "TTFT p99 s", "ITL ms"),
            *("E2E s", "goodput/s", "reuse", "within limits"),
        )
    )
    return f"<div class=scroll><table><tr>{heads}</tr>{''.join(rows)}</table></div>"


def _load_charts(evidence: Evidence) -> str:
    charts = "".join(
        _figure(title, curves_over_load(evidence.policies, figure), "load (× the trace)", unit)
        for figure, title, unit in _OVER_LOAD
    )
    colours = {line.name: line.colour for line in curves_over_load(evidence.policies, "e2e_mean_s")}
    return f"{_legend(colours)}<div class=grid2>{charts}</div>"


def _legend(colours: dict[str, str]) -> str:
    parts = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<div class="legend" style="position:static">{parts}</div>'


def _figure(title: str, curves: Sequence[Line], x: str, y: str) -> str:
    values = [point[1] for curve in curves for point in curve.points]
    log = y == "s" and min(values) > 0 and max(values) / min(values) > 8
    drawn = lines(title, list(curves), Axis(x), Axis(y, log=log))
    note = " <small>log scale</small>" if log else ""
    return f"<figure><figcaption>{escape(title)}{note}</figcaption>{drawn}</figure>"


def _workers(question: Question, evidence: Evidence) -> str:
    if not evidence.workers:
        return ""
    labels = list(dict.fromkeys(cell.policy for _, cell in evidence.workers))
    colours = dict(zip(labels, COLOURS, strict=False))
    charts = "".join(
        _figure(title, _over_workers(evidence.workers, figure, colours), "workers", unit)
        for figure, title, unit in (
            ("attainment", "Requests within both limits", "share"),
            (question.figure, f"The objective: {question.objective}", "s"),
        )
    )
    return (
        "<h2>Numbers of workers</h2><p>The same traffic on more and on fewer workers.</p>"
        f"{_legend(colours)}<div class=grid2>{charts}</div>"
    )


def _over_workers(
    cells: Sequence[tuple[int, Cell]], figure: str, colours: dict[str, str]
) -> list[Line]:
    curves: list[Line] = []
    for label, colour in colours.items():
        sizes = sorted({size for size, cell in cells if cell.policy == label})
        points = [
            (
                float(size),
                *mean_and_range([c for at, c in cells if at == size and c.policy == label], figure),
            )
            for size in sizes
        ]
        curves.append(Line(label, points, colour))
    return curves


def _split(evidence: Evidence, advice: Advice) -> str:
    if evidence.split is None:
        return ""
    choice = evidence.split
    workers = choice.prefill_workers + choice.decode_workers
    rows = "".join(
        f"<tr><td>{prefill}</td><td>{workers - prefill}</td>"
        f"<td>{attained.ttft * 100:.1f} %</td><td>{attained.itl * 100:.1f} %</td>"
        f"<td>{attained.both * 100:.1f} %</td><td>{attained.goodput_rps:.2f}</td></tr>"
        for prefill, attained in choice.neighbours.items()
    )
    heads = "".join(
        f"<th>{head}</th>"
        for head in (
            *("prefill", "decode", "within the TTFT limit", "within the ITL limit"),
            *("within both", "goodput/s"),
        )
    )
    return (
        "<h2>Splits into prefill and decode workers</h2>"
        f"<p>The resource game chooses {choice.prefill_workers} prefill and "
        f"{choice.decode_workers} decode workers. Its cost relative to the fleet as it is: "
        f"{advice.split_ratio}.</p>"
        f"<div class=scroll><table><tr>{heads}</tr>{rows}</table></div>"
    )


def _optimum(optimum: Optimum | None) -> str:
    if optimum is None:
        return ""
    what = {name: text for name, text, _ in FIGURES}[optimum.figure]
    text = (
        "<h2>How far from the optimum</h2><p>The price of anarchy is the cost of a policy over the "
        f"least cost that any routing of these requests could have reached. The cost is the {what}."
        "</p>"
    )
    if optimum.refusal is not None:
        text += f"<p>There is no price of anarchy here: {escape(optimum.refusal)}.</p>"
    else:
        rows = "".join(
            f"<tr><td>{escape(price.policy)}</td><td>{price.low:.2f}</td>"
            f"<td>{price.high:.2f}</td></tr>"
            for price in optimum.prices
        )
        text += (
            "<div class=scroll><table><tr><th>policy</th><th>at least: over the best policy here"
            f"</th><th>at most: over the lower bound</th></tr>{rows}</table></div>"
        )
    if not optimum.savings:
        return text
    rows = "".join(
        f"<tr><td>{escape(limit)}</td><td{' class=best' if one.is_better else ''}>{saving(one)}"
        "</td></tr>"
        for limit, one in optimum.savings.items()
    )
    return (
        f"{text}<h2>What would help</h2><p>The same traffic with one limit of the fleet relaxed, "
        f"under the advised policy. 95 % intervals; a negative figure costs time.</p>"
        f"<div class=scroll><table><tr><th>limit</th><th>{escape(what)}</th></tr>{rows}</table>"
        "</div>"
    )


def _losses(question: Question, advice: Advice) -> str:
    if not advice.losses:
        return ""
    items = "".join(
        f"<li>at {loss.load:g} times the load, {escape(loss.text)}: {loss.ratio} of "
        f"{escape(question.running.label)}</li>"
        for loss in advice.losses
    )
    return f"<h2>Where the advice loses</h2><ul>{items}</ul>"


def _limits_of_the_method(question: Question, workload: Workload) -> str:
    notes = [
        "A simulator ran the production router in front of simulated engines. The report on the "
        "simulator's validation says how close it comes to a live Dynamo.",
        f"Intervals are 95 % confidence intervals over {question.seeds} repetitions, paired by "
        "seed. Each repetition redraws the gaps between the arrivals of a recorded trace, or the "
        "whole traffic of a generator.",
        "The engines' speed comes from the timing table that was named. Check its figures against "
        "your own engines.",
    ]
    if workload.ideal_reuse() == 0:
        notes.append(
            "The trace names no shared prompt blocks. No policy can gain from caches in this "
            "simulation; a trace with block hashes may give another answer."
        )
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"
