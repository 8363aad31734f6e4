"""What an experiment tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Expected:
    """A stage that is to come, at most.

    Attributes:
        name: As `Progress.stage` will call it; of some, such as extract, nothing more is told.
        units: Rows.
        tokens: Response tokens.
        seconds: Its time; where no speed is known yet, its share of the whole in any unit.
    """

    name: str
    units: int
    tokens: int
    seconds: float


class Progress(Protocol):
    """Told what is going on."""

    def expect(self, stages: Sequence[Expected], known: bool) -> None:
        """All stages of the run; `known` if their seconds are from an earlier run's speeds."""

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage of `total` units begins, `done` of which an earlier start has finished."""

    def advance(self, units: int = 0, tokens: int = 0) -> None:
        """So many units are finished, and so many tokens were made, since the last call."""

    def interim(self, text: str) -> None:
        """What the rows say so far, as a sentence; it takes the place of the last one."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def tell(self, text: str) -> None:
        """Something good to know, which is no matter for concern."""
