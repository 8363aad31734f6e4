"""How fast a run goes: timed stage by stage while it runs, for its manifest and for later plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_steer.experiment.batch_size import BatchChoice
from mlx_steer.experiment.counts import StageCount
from mlx_steer.experiment.duration import Rates, learned_rates
from mlx_steer.experiment.plan import seconds
from mlx_steer.experiment.progress import Expected, Progress
from mlx_steer.run.rates import MachineRates

# A read token takes this part of a decoded one where stages are too alike to tell: measured on two
# CPU cores, 450 tokens a second against 253.
_READ_PART = 0.5

# A run that did less has measured little but its start.
_FEWEST_SECONDS, _FEWEST_TOKENS = 3.0, 200


@dataclass
class StageTime:
    """What one stage did in this start of the run, until the last sign of life."""

    name: str
    total: int
    units: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Pace:
    """A `Progress` that passes everything on, keeps the stages' times, and looks now and then.

    Args:
        told: What everything is passed on to.
        look: Says what the rows say so far, while and after responses are made; None for nothing.
    """

    every = 20.0

    def __init__(self, told: Progress, look: Callable[[], str | None] | None = None) -> None:
        """See the class."""
        self._told, self._look = told, look
        self._begun = self._looked = time.monotonic()
        self._next_look = self.every
        self.stages: list[StageTime] = []

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """Pass it on."""
        self._told.expect(stages, known)

    def stage(self, name: str, total: int, done: int) -> None:
        """Pass it on, and begin to time it."""
        if self.stages and self.stages[-1].tokens:
            self._say_interim()
        self.stages.append(StageTime(name, total))
        self._told.stage(name, total, done)
        self._begun = time.monotonic()

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """Pass it on and count it."""
        now, stage = time.monotonic(), self.stages[-1]
        stage.units += units
        stage.tokens += tokens
        stage.seconds = now - self._begun
        self._told.advance(units, tokens)
        if tokens and now - self._looked > self._next_look:
            self._say_interim()

    def interim(self, text: str) -> None:
        """Pass it on."""
        self._told.interim(text)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._told.note(text)

    def tell(self, text: str) -> None:
        """Pass it on."""
        self._told.tell(text)

    def _say_interim(self) -> None:
        before = time.monotonic()
        found = self._look() if self._look is not None else None
        self._looked = time.monotonic()
        # Looking reads all rows: at most a fiftieth of the time goes into it.
        self._next_look = max(self.every, 50 * (self._looked - before))
        if found is not None:
            self._told.interim(found)


def expected(fitting: BatchChoice, runs: Iterable[Path]) -> tuple[list[Expected], bool]:
    """The stages of a run as they were counted, with their times if an earlier run tells speeds."""
    learned = learned_rates(fitting.size, runs) if fitting.size is not None else None
    # Their shares of the whole, where nothing is known.
    rates = learned or Rates(1 / _READ_PART, 1.0, "")
    return [
        Expected(c.name, c.rows, c.decoded, seconds(c, rates)) for c in fitting.counts
    ], learned is not None


def machine_rates(fitting: BatchChoice, made: Sequence[StageTime]) -> MachineRates | None:
    """What a run's manifest says of its speed; None if it made too little to tell."""
    found, size = speeds(made, {c.name: c for c in fitting.counts}), fitting.size
    if found is None or size is None:
        return None
    read, decode = found
    parameters = size.shape.active_parameters
    return MachineRates(
        read=float(f"{read:.4g}"),
        decode=float(f"{decode:.4g}"),
        rows=fitting.rows,
        parameters=parameters,
        parameter_bytes=float(f"{size.weights / parameters:.4g}"),
        dtype_bytes=size.dtype_bytes,
    )


def speeds(
    made: Sequence[StageTime], counted: Mapping[str, StageCount]
) -> tuple[float, float] | None:
    """Tokens read and tokens decoded in a second, which explain the stages' times best.

    Args:
        made: What was timed.
        counted: The plan's counts by stage: what a row of it reads.

    Returns:
        None if too little was made to tell.
    """
    lines = [
        (one.units * counted[one.name].read / counted[one.name].rows, one.tokens, one.seconds)
        for one in made
        if one.units and one.name in counted and counted[one.name].rows
    ]
    spent, tokens = sum(line[2] for line in lines), sum(line[1] for line in lines)
    if spent < _FEWEST_SECONDS or tokens < _FEWEST_TOKENS:
        return None
    # Least squares in two unknowns, seconds for a token read and for one decoded.
    rr = sum(r * r for r, _, _ in lines)
    rt = sum(r * t for r, t, _ in lines)
    tt = sum(t * t for _, t, _ in lines)
    rs, ts = sum(r * s for r, _, s in lines), sum(t * s for _, t, s in lines)
    apart = rr * tt - rt * rt
    if apart > 1e-6 * rr * tt:
        read, decode = (rs * tt - ts * rt) / apart, (ts * rr - rs * rt) / apart
        if read > 0 and decode > 0:
            return 1 / read, 1 / decode
    decode = spent / sum(_READ_PART * r + t for r, t, _ in lines)
    return 1 / (_READ_PART * decode), 1 / decode
