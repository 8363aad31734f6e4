"""What the parts of a run do between one merge and the next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mlx_steer.experiment.counts import StageCount


@dataclass(frozen=True)
class Round:
    """What every part does before all are merged.

    Attributes:
        stages: Their names.
        rows: That one part makes, at most.
        seconds: One part's; None if speeds are unknown.
    """

    stages: tuple[str, ...]
    rows: int
    seconds: float | None


def rounds_of(
    counts: Sequence[StageCount],
    deciding: Collection[str],
    seconds: Mapping[str, float],
    parts: int,
) -> tuple[Round, ...]:
    """The rounds of a run in parts; what is left after the last one, the run itself does.

    Args:
        counts: The stages, in order.
        deciding: Names of stages whose rows decide what comes next.
        seconds: By stage; empty if unknown.
        parts: How many.
    """
    gate = [count for count in counts if count.name == "gate"]
    made: list[list[StageCount]] = [[]]
    for count in counts:
        if count.name not in ("gate", "judge", "score", "price"):
            made[-1].append(count)
        if count.name in deciding:
            made.append([])
    found = []
    for some in filter(None, made):
        # What is only read, each part reads for itself; gates are fitted at every start.
        whole = sum(seconds.get(count.name, 0) for count in (*gate, *some) if not count.decoded)
        shared = sum(seconds.get(count.name, 0) for count in some if count.decoded)
        rows = sum(-(-count.rows // parts) for count in some if count.decoded)
        each = round(whole + shared / parts, 1) if seconds else None
        found.append(Round(tuple(count.name for count in (*gate, *some)), rows, each))
    return tuple(found)
