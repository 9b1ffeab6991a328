"""The advice that follows from the evidence: choices, gains with intervals, and where it loses."""

from __future__ import annotations

from dataclasses import dataclass

from wardrop.advise.comparison import FIGURES, Ratio, of, ratio
from wardrop.advise.evidence import Evidence
from wardrop.advise.optimum import Optimum
from wardrop.advise.question import Question
from wardrop.replay.run import Policy
from wardrop.replay.sweep import mean_and_range


@dataclass(frozen=True)
class Loss:
    """A figure that the advice makes worse.

    Attributes:
        load: rate factor.
        text: name of the figure.
        ratio: cost of the advice relative to the policy in use.
    """

    load: float
    text: str
    ratio: Ratio


@dataclass(frozen=True)
class Advice:
    """What to run, and what it changes.

    Attributes:
        policy: the policy to run.
        changes: whether the policy differs from the one in use.
        ratios: per load, the objective's cost under `policy` relative to the policy in use.
        losses: figures that become worse than under the policy in use.
        fewest_workers: fewest workers at which enough requests keep both limits under `policy`,
            among the numbers that were tried; None if no number suffices or none was tried.
        fewest_now: the same under the policy in use.
        split: (prefill, decode) workers if a split serves better than the fleet of the question.
        split_ratio: cost of the chosen split relative to that fleet, both under `policy`.
    """

    policy: Policy
    changes: bool
    ratios: dict[float, Ratio]
    losses: tuple[Loss, ...]
    fewest_workers: int | None = None
    fewest_now: int | None = None
    split: tuple[int, int] | None = None
    split_ratio: Ratio | None = None


def advise(question: Question, evidence: Evidence) -> Advice:
    """The advice that follows from the evidence."""
    running, best = question.running.label, evidence.best.label
    cells = evidence.policies
    losses = [
        Loss(load, text, found)
        for load in sorted(question.loads)
        for figure, text, _ in FIGURES
        if (found := ratio(of(cells, best, load), of(cells, running, load), figure)).is_worse
    ]
    split = split_ratio = None
    if evidence.split is not None:
        split_ratio = ratio(evidence.splits, of(cells, best), question.figure)
        if split_ratio.is_better:
            split = (evidence.split.prefill_workers, evidence.split.decode_workers)
    return Advice(
        policy=evidence.best,
        changes=best != running,
        ratios={
            load: ratio(of(cells, best, load), of(cells, running, load), question.figure)
            for load in sorted(question.loads)
        },
        losses=tuple(losses),
        fewest_workers=_fewest(question, evidence, best),
        fewest_now=_fewest(question, evidence, running),
        split=split,
        split_ratio=split_ratio,
    )


def _fewest(question: Question, evidence: Evidence, policy: str) -> int | None:
    for size in sorted({size for size, _ in evidence.workers}):
        cells = [cell for at, cell in evidence.workers if at == size and cell.policy == policy]
        if cells and mean_and_range(cells, "attainment")[0] >= question.share:
            return size
    return None


def sentences(question: Question, evidence: Evidence, advice: Advice) -> list[str]:
    """The advice in sentences, most important first."""
    running, best = question.running.label, advice.policy.label
    what = {name: text for name, text, _ in FIGURES}[question.figure]
    now = advice.ratios[1.0]
    parts: list[str] = []
    if advice.changes:
        parts.append(
            f"Run {best}. Its cost in {what} is {now} of the cost of {running} on this traffic "
            "(1 is equal, lower is better, 95 % interval)."
        )
    else:
        parts.append(f"Keep {running}. No other policy has a clearly lower cost in {what}.")
    percent = f"{question.share * 100:g} %"
    if evidence.workers:
        parts.append(_workers_sentence(advice, running, best, percent))
    if advice.split is not None:
        prefill, decode = advice.split
        parts.append(
            f"A split into {prefill} prefill and {decode} decode workers has a cost of "
            f"{advice.split_ratio} of the fleet as it is."
        )
    elif evidence.split is not None:
        parts.append(
            f"Do not change the fleet's shape: the best split, {evidence.split.prefill_workers} "
            f"prefill and {evidence.split.decode_workers} decode workers, has a cost of "
            f"{advice.split_ratio} of the fleet as it is."
        )
    if evidence.optimum is not None:
        parts += _optimum_sentences(question, evidence.optimum, best)
    if advice.losses:
        worst = max(advice.losses, key=lambda loss: loss.ratio.mean)
        parts.append(
            f"The advice loses somewhere: at {worst.load:g} times the load, the {worst.text} is "
            f"{worst.ratio} times that of {running}."
        )
    elif advice.changes:
        parts.append(f"No compared figure becomes worse than under {running} at any tried load.")
    return parts


def _optimum_sentences(question: Question, optimum: Optimum, best: str) -> list[str]:
    what = {name: text for name, text, _ in FIGURES}[optimum.figure]
    prices = {price.policy: price for price in optimum.prices}
    parts: list[str] = []
    for label in dict.fromkeys((best, question.running.label)):
        if label in prices:
            price = prices[label]
            parts.append(
                f"The price of anarchy of {label} in {what} lies between {price.low:.2f} and "
                f"{price.high:.2f}: its cost over the best policy tried, and over a bound that no "
                "routing can beat."
            )
    helpful = sorted(
        (saved.mean, limit, saved) for limit, saved in optimum.savings.items() if saved.is_better
    )
    if helpful:
        saved = "; ".join(f"{limit}, {saving(one)}" for _, limit, one in helpful)
        parts.append(f"What would lower the {what} under {best}: {saved}.")
    elif optimum.savings:
        parts.append(f"No single limit of the fleet raises the {what} under {best} clearly.")
    return parts


def saving(one: Ratio) -> str:
    """The share of a cost that is saved, with its interval: `31 % less (28 to 34 %)`."""
    mean, low, high = (100 * (1 - value) for value in (one.mean, one.high, one.low))
    return f"{mean:.0f} % less ({low:.0f} to {high:.0f} %)"


def _workers_sentence(advice: Advice, running: str, best: str, percent: str) -> str:
    if advice.fewest_workers is None:
        return f"No tried number of workers lets {percent} of the requests keep both limits."
    text = f"{percent} of the requests keep both limits from {advice.fewest_workers} workers on"
    if not advice.changes:
        return f"{text}."
    now = "no tried number" if advice.fewest_now is None else f"{advice.fewest_now} workers"
    return f"{text} under {best}; under {running} it takes {now}."
