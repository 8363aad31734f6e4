"""How far a whole run is and how long the rest takes: what was counted, corrected by what came."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_steer.experiment.progress import Expected

# A run that no earlier one tells of says how long it takes once so much of it is done; rows are
# decoded together, and when the first of them ends nearly all the work of others may be done.
_TELLING_PART, _TELLING_SECONDS = 0.1, 5.0

# How much an earlier run's speeds weigh against the present one's, in seconds of work.
_TRUST = 60.0


@dataclass
class _Stage:
    """A stage as far as it is known: its rows, its work in seconds, and what of both is done."""

    name: str
    units: int
    tokens: int
    work: float
    done: int = 0
    made: int = 0
    before: int = 0

    @property
    def part(self) -> float:
        """The part of its work that is done, by rows that ended or by tokens of all."""
        if not self.units:
            return 1.0
        rows = self.done / self.units
        todo = self.tokens * (self.units - self.before) / self.units
        under_way = (self.before + (self.units - self.before) * self.made / todo) if todo else 0.0
        return min(1.0, max(rows, under_way / self.units))


class Timeline:
    """The stages of a run, those to come among them."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._stages: list[_Stage] = []
        self._at = -1
        self._known = False
        self._begun = time.monotonic()
        self._skipped = 0.0

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """All stages, at most; the clock starts."""
        self._stages = [_Stage(s.name, s.units, s.tokens, s.seconds) for s in stages]
        self._known, self._begun = known, time.monotonic()

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage begins; those before it have ended."""
        if self._at >= 0:
            self._stages[self._at].done = self._stages[self._at].units
        for place in range(self._at + 1, len(self._stages)):
            if self._stages[place].name == name:
                self._pass(place)
                break
        else:  # one that was not counted, such as a judge model's: its rows take what others do
            units, work = self.rows[1], sum(s.work for s in self._stages)
            self._at += 1
            each = work / units if units else 1.0
            self._stages.insert(self._at, _Stage(name, total, 0, each * total))
        stage = self._stages[self._at]
        share = total / stage.units if stage.units else 1.0
        stage.work, stage.tokens = stage.work * share, round(stage.tokens * share)
        stage.units, stage.done, stage.before = total, done, done
        self._skipped += stage.work * stage.part

    def advance(self, units: int, tokens: int) -> None:
        """So many rows are finished and so many tokens made."""
        self._stages[self._at].done += units
        self._stages[self._at].made += tokens

    @property
    def place(self) -> str:
        """Which stage it is of how many, such as "3/9"."""
        return f"{self._at + 1}/{len(self._stages)}"

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that are done, and all."""
        return sum(s.done for s in self._stages), sum(s.units for s in self._stages)

    @property
    def part(self) -> float:
        """The part of the whole work that is done."""
        whole = sum(s.work for s in self._stages)
        return self._worked() / whole if whole else 0.0

    def left(self) -> float | None:
        """Seconds that the rest takes; None while that would be a guess."""
        spent, worked = time.monotonic() - self._begun, self._worked() - self._skipped
        rest = sum(s.work for s in self._stages) - self._worked()
        if rest <= 0:
            return None
        if self._known:
            return rest * (spent + _TRUST) / (worked + _TRUST)
        telling = worked / (worked + rest) >= _TELLING_PART
        return rest * spent / worked if telling and spent >= _TELLING_SECONDS else None

    def _worked(self) -> float:
        return sum(s.work * s.part for s in self._stages[: self._at + 1])

    def _pass(self, place: int) -> None:
        """Stages that no one told of, such as an extraction, have been done on the way."""
        for passed in self._stages[self._at + 1 : place]:
            passed.done = passed.units
        self._at = place
