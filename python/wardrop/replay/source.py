"""A trace or generator by its text on a command line, as the workload of each seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wardrop.replay.generate import GENERATORS, generate
from wardrop.replay.traces import load, redraw
from wardrop.replay.workload import ReplayError, Workload


@dataclass(frozen=True)
class TraceSource:
    """Makes the workload of a seed.

    Attributes:
        text: path of a trace, or a generator with its parameters.
        block_size: tokens per block id of the trace; by default as the rows imply.
        spread_ticks: whether requests that share a timestamp are spread up to the next one.
        part: (start, stop) of the kept part, as shares; None for the whole trace.
        redraws: whether seeds above 0 redraw the gaps between the arrivals of a recorded trace. A
            generator draws anew for each seed in any case.
        model: model whose decision records are read; None where the records hold one model.
    """

    text: str
    block_size: int | None = None
    spread_ticks: bool = True
    part: tuple[float, float] | None = None
    redraws: bool = False
    model: str | None = None

    @property
    def is_generated(self) -> bool:
        """Whether the text names a generator, and no file of this name exists."""
        return self.text.partition("(")[0] in GENERATORS and not Path(self.text).exists()

    def __call__(self, seed: int) -> Workload:
        """The workload of a seed.

        Raises:
            InputError: the trace or the generator cannot be used; the text names the reason.
        """
        if self.is_generated:
            made = generate(self.text, seed)
        else:
            made = load(
                self.text,
                block_size=self.block_size,
                spread_ticks=self.spread_ticks,
                seed=seed,
                model=self.model,
            )
        if self.part:
            made = made.part(*self.part)
        return redraw(made, seed) if self.redraws and not self.is_generated else made


def parse_part(text: str | None) -> tuple[float, float] | None:
    """Read `START:STOP` or `START` as shares of a trace; None gives None.

    Raises:
        ReplayError: the text is not of this form.
    """
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        return (float(start or 0), float(stop or 1)) if colon else (0.0, float(start))
    except ValueError as error:
        raise ReplayError(
            f"got --part {text!r}; expected START:STOP, for instance 0:0.5"
        ) from error
