"""A part of a run's rows, for machines that cannot see one another.

The rows of a stage are known before any is made, so each machine can take its part of them without
asking: neighbours, by prompt, so that a prompt is mostly read by one machine alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mlx_steer.team import part_of

_Unit = TypeVar("_Unit")


@dataclass(frozen=True)
class Part:
    """One of several parts; the only one is the whole.

    Attributes:
        number: Counted from 1.
        count: How many there are.
    """

    number: int = 1
    count: int = 1

    @property
    def whole(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    def of(self, units: Sequence[_Unit]) -> Sequence[_Unit]:
        """This part of some units; the parts have the same number, or one more."""
        return part_of(units, self.number - 1, self.count)

    def __str__(self) -> str:
        """As in the command that makes it."""
        return f"{self.number}/{self.count}"
