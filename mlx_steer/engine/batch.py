"""A living batch: rows that are being decoded, their caches and plans, moved together.

Rows join between steps and leave at any time. A batch may be a step ahead of what its rows know
(see `Flight`); rows join only one that is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_steer.engine.caches import join
from mlx_steer.engine.jobs import Job, Sampling
from mlx_steer.engine.prefill import LayerPlans, stack_plans
from mlx_steer.engine.row_plan import Plan


@dataclass(frozen=True, eq=False)
class Watch:
    """What is to be observed of a row's tokens.

    Attributes:
        top: Most probable tokens that each token's log-probability comes with; None: without any.
        layer: The block whose output, plan included, is projected.
        unit: The direction it is projected on, float32, shape (hidden_size,); None: on nothing.
    """

    top: int | None = None
    layer: int = 0
    unit: mx.array | None = None


@dataclass(frozen=True)
class Seen:
    """What was observed of one token: at the position that predicts it.

    Attributes:
        logprob: Its log-probability at temperature 1, over all tokens.
        top: The most probable tokens with theirs, the best first.
        projection: Of the hidden state.
    """

    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    projection: float | None = None


@dataclass(eq=False)
class Row:
    """A row that is being decoded.

    Attributes:
        job: What it was asked for.
        sampling: How its tokens are chosen.
        prompt_plans: By layer, at the positions before the last prompt token.
        plans: By layer, from the last prompt token on, or as long as the row thinks.
        gates: Score minus threshold of each gate.
        steered: Whether the gates let the plans act.
        tokens: The response so far.
        margin: See `Completion`.
        done: Finished, but still in the batch: dropping a row copies the caches of all others.
        answer_plans: By layer, from the token that ends the thinking on; None if nothing changes
            there.
        answer_start: The position of that token, once it is there.
        watch: What is observed of its tokens.
        seen: What was observed, for each token of the response.
    """

    job: Job
    sampling: Sampling
    prompt_plans: LayerPlans
    plans: LayerPlans
    gates: tuple[float, ...]
    steered: bool
    tokens: list[int] = field(default_factory=list)
    margin: float | None = None
    done: bool = False
    answer_plans: LayerPlans | None = None
    answer_start: int | None = None
    watch: Watch | None = None
    seen: list[Seen] = field(default_factory=list)

    def stages(self) -> list[tuple[int, LayerPlans]]:
        """The positions from which plans hold, in order, and these plans."""
        stages = [(0, self.prompt_plans), (len(self.job.ids) - 1, self.plans)]
        if self.answer_start is not None and self.answer_plans is not None:
            stages.append((self.answer_start, self.answer_plans))
        return stages

    @property
    def current_plans(self) -> LayerPlans:
        """The plans at the position that is read next."""
        if self.answer_start is not None and self.answer_plans is not None:
            return self.answer_plans
        return self.plans


@dataclass(frozen=True, eq=False)
class Flight:
    """A step that is under way: what it chooses for each row, which nobody has read yet.

    Attributes:
        best: Each row's token: (rows,).
        margins: How far the second best lies below it: (rows,).
        logprobs: Of all tokens: (rows, vocabulary); None where no row's are observed.
        projections: Of each row's hidden state: (rows,); None likewise.
    """

    best: mx.array
    margins: mx.array
    logprobs: mx.array | None = None
    projections: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """All that is to be computed."""
        every = (self.best, self.margins, self.logprobs, self.projections)
        return [array for array in every if array is not None]

    def rows(self, indices: Sequence[int]) -> Flight:
        """The same of some rows."""
        chosen = mx.array(list(indices), mx.uint32)
        logprobs = None if self.logprobs is None else self.logprobs[chosen]
        projections = None if self.projections is None else self.projections[chosen]
        return Flight(self.best[chosen], self.margins[chosen], logprobs, projections)


class Batch:
    """Rows, their caches and plans, and the token each one reads next.

    Args:
        rows: The rows.
        caches: Their caches, in the network's order.
        tokens: Shape (rows,).
    """

    def __init__(self, rows: list[Row], caches: list[Any], tokens: mx.array) -> None:
        """See the class."""
        self.rows = rows
        self.caches = caches
        self.tokens = tokens
        self.plans: dict[int, Plan] = _stacked(rows)
        self.flight: Flight | None = None

    def __len__(self) -> int:
        """The number of rows that are not finished."""
        return sum(not row.done for row in self.rows)

    @staticmethod
    def joined(parts: Sequence[Batch]) -> Batch:
        """Several batches, none of them a step ahead, as one; the first's caches are extended."""
        if len(parts) == 1:
            return parts[0]
        if any(part.flight is not None for part in parts):
            raise ValueError("a batch that is a step ahead cannot be joined; land it first")
        rows = [row for part in parts for row in part.rows]
        caches = join([part.caches for part in parts])
        return Batch(rows, caches, mx.concatenate([part.tokens for part in parts]))

    def drop_finished(self, at_least: int = 1) -> None:
        """Drop the finished rows if there are so many."""
        kept = [i for i, row in enumerate(self.rows) if not row.done]
        if len(self.rows) - len(kept) < at_least:
            return
        self.rows = [self.rows[i] for i in kept]
        self.tokens = self.tokens[mx.array(kept, mx.uint32)]
        if kept:
            for cache in self.caches:
                cache.filter(kept)
            still = {layer for row in self.rows for layer in row.current_plans}
            self.plans = {k: plan.rows(kept) for k, plan in self.plans.items() if k in still}
            self.flight = self.flight and self.flight.rows(kept)
        else:
            self.flight = None

    def begin_answers(self) -> None:
        """Let the plans of the answer act on rows whose thinking has ended."""
        self.plans = _stacked(self.rows)


def _stacked(rows: Sequence[Row]) -> dict[int, Plan]:
    """By layer, the plans of all rows, wherever any of them has one now or will have."""
    current = [row.current_plans for row in rows]
    layers = sorted({layer for plans in current for layer in plans})
    return {layer: stack_plans(current, layer) for layer in layers}
