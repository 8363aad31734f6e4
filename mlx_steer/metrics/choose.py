"""How a cell of the sweep is chosen: one rule, on the select half, within the config's limits."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mlx_steer.bands import LayerOrBand, layer_order
from mlx_steer.config import Limits
from mlx_steer.errors import RunError
from mlx_steer.metrics.verdicts import Scored, rows_of
from mlx_steer.run.reader import RunData
from mlx_steer.run.records import ConditionRecord
from mlx_steer.stats import Rate, wilson
from mlx_steer.words import Split

# Limits are decimal numbers in a file: 0.15 must admit 3 of 20, which is a hair above it in binary.
_SLACK = 1e-9


@dataclass(frozen=True)
class Cell:
    """One condition on one split of the prompts.

    Attributes:
        condition: Its name.
        layer: The steered layer or band; None without steering.
        strength: The factor on the raw vector; None without steering.
        target: Share of target prompts that show the behavior.
        false_positive: Share of other prompts that show it; borderline prompts do not count here.
        coherence: Mean over all rows, borderline ones too; nan without rows.
        incoherent: Share of incoherent ones among all rows.
    """

    condition: str
    layer: LayerOrBand | None
    strength: float | None
    target: Rate
    false_positive: Rate
    coherence: float
    incoherent: Rate

    @property
    def rows(self) -> int:
        """Rows of target and other prompts."""
        return self.target.n + self.false_positive.n

    @property
    def complete(self) -> bool:
        """Whether there are rows of both sets, so that the cell can be compared."""
        return self.target.n > 0 and self.false_positive.n > 0


def cell_of(
    run: RunData,
    scored: Mapping[str, Scored],
    condition: ConditionRecord | str,
    split: Split,
    prompts: Collection[str] | None = None,
) -> Cell:
    """The rates of a condition on one split; missing rows are left out of n.

    Args:
        run: The run.
        scored: Its verdicts.
        condition: The condition, or its name.
        split: Of the prompts.
        prompts: Ids of the prompts that count; all by default.

    Raises:
        KeyError: If the run has no condition of this name.
    """
    if isinstance(condition, str):
        condition = run.condition(condition)
    rows = [
        (item, row)
        for item, row in rows_of(run, scored, condition, split)
        if prompts is None or item.id in prompts
    ]
    target = [s for item, s in rows if item.set == "target"]
    other = [s for item, s in rows if item.set == "other"]
    return Cell(
        condition=condition.name,
        layer=condition.layer,
        strength=condition.strength,
        target=wilson(sum(s.verdict == "shown" for s in target), len(target)),
        false_positive=wilson(sum(s.verdict == "shown" for s in other), len(other)),
        coherence=math.fsum(s.coherence for _, s in rows) / len(rows) if rows else math.nan,
        incoherent=wilson(sum(s.verdict == "incoherent" for _, s in rows), len(rows)),
    )


def broken_limits(cell: Cell, base: Cell, limits: Limits) -> tuple[str, ...]:
    """Which limits a cell breaks: "false positives", "coherence", "incoherent rows"."""
    broken = []
    if cell.false_positive.value > base.false_positive.value + limits.false_positives + _SLACK:
        broken.append("false positives")
    if cell.coherence < base.coherence - limits.coherence_drop - _SLACK:
        broken.append("coherence")
    if cell.incoherent.value > limits.incoherent + _SLACK:
        broken.append("incoherent rows")
    return tuple(broken)


def choose_cell(cells: Sequence[Cell], base: Cell, limits: Limits) -> tuple[Cell, bool]:
    """The cell to go on with, and whether it is within the limits.

    Among the cells within the limits: the highest target rate, then the smaller strength (its
    size), then fewer false positives, then the lower layer. If there is none: the largest target
    rate minus false positive rate, ties broken in the same way.

    Raises:
        RunError: If base or every cell lacks rows of one of the two sets.
    """
    candidates = [cell for cell in cells if cell.complete]
    # Those that reached the last round of a race; in a grid all cells have the same prompts.
    most = max((cell.rows for cell in candidates), default=0)
    candidates = [cell for cell in candidates if cell.rows == most]
    if not candidates or not base.complete:
        raise RunError(
            "there is nothing to choose from: the base condition and at least one other need rows "
            "of target and other prompts in the select half"
        )
    within = [cell for cell in candidates if not broken_limits(cell, base, limits)]
    if within:
        return min(within, key=lambda cell: (-_exact(cell.target), *_then(cell))), True
    return min(candidates, key=lambda cell: (-_gap(cell), *_then(cell))), False


def better_half(count: int) -> int:
    """How many of so many cells go on to the next round of a race."""
    return -(-count // 2)


def leaders(cells: Sequence[Cell], base: Cell, limits: Limits) -> list[Cell]:
    """The better half of a race's cells, best first, by few rows.

    A cell that is past the limits even at the favourable end of its interval comes after all
    others. The rest stand by target rate minus false positive rate: with so few rows, to hold them
    to the limits themselves would drop good cells by chance.
    """

    def place(cell: Cell) -> tuple[bool, Fraction, float, Fraction, tuple[int, int]]:
        allowed = base.false_positive.value + limits.false_positives
        hopeless = (
            cell.false_positive.low > allowed + _SLACK
            or cell.incoherent.low > limits.incoherent + _SLACK
        )
        return (hopeless, -_gap(cell), *_then(cell))

    return sorted(cells, key=place)[: better_half(len(cells))]


def choose_system_prompt(cells: Sequence[Cell], base: Cell, limits: Limits) -> tuple[Cell, bool]:
    """The system prompt to compare with, by the rule of `choose_cell`.

    Strength does not count here: ties go to fewer false positives, then to the first.

    Raises:
        RunError: See `choose_cell`.
    """
    return choose_cell(cells, base, limits)


def _then(cell: Cell) -> tuple[float, Fraction, tuple[int, int]]:
    return (abs(cell.strength or 0.0), _exact(cell.false_positive), layer_order(cell.layer))


def _gap(cell: Cell) -> Fraction:
    return _exact(cell.target) - _exact(cell.false_positive)


def _exact(rate: Rate) -> Fraction:
    # In floating point 0.3 - 0.1 and 0.2 differ, which would decide ties by rounding.
    return Fraction(rate.count, rate.n)
