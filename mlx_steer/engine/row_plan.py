"""What is done to the output of one block, row by row: an affine map, made by `operators`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, eq=False)
class Plan:
    """What happens to the output of one block, row by row: h + shift - weighted projections of h.

    Attributes:
        shift: Shape (rows, positions or 1, hidden_size), in the dtype of the hidden state.
        basis: Orthonormal directions to be projected out, scaled by the square root of the part
            that is taken; float32, shape (rows, directions, hidden_size), or None where no row
            projects.
    """

    shift: mx.array
    basis: mx.array | None = None

    def __call__(self, hidden: mx.array) -> mx.array:
        """Apply the plan to hidden states of shape (rows, positions, hidden_size)."""
        # The shift has the stream's dtype: a float32 one would turn all later layers to float32.
        shifted = hidden + self.shift.astype(hidden.dtype)
        if self.basis is None:
            return shifted
        exact = hidden.astype(mx.float32)
        projected = (exact @ self.basis.swapaxes(-1, -2)) @ self.basis
        return shifted - projected.astype(hidden.dtype)

    def rows(self, indices: Sequence[int]) -> Plan:
        """The plan of some rows, in that order; rows may repeat."""
        chosen = mx.array(list(indices))
        return Plan(self.shift[chosen], None if self.basis is None else self.basis[chosen])

    @staticmethod
    def stack(plans: Sequence[Plan]) -> Plan:
        """Plans of several rows as one; rows without projections get directions of zero."""
        shift = mx.concatenate([p.shift for p in plans])
        if all(p.basis is None for p in plans):
            return Plan(shift)
        most = max(p.basis.shape[1] for p in plans if p.basis is not None)
        return Plan(shift, mx.concatenate([_padded_basis(p, most) for p in plans]))


class StagedPlan:
    """A row's plans, each acting from a position to where the next one begins.

    Args:
        stages: The positions, in order, and plans of one row; None does nothing.
        first: The position of the first hidden state it is given.
    """

    def __init__(self, stages: Sequence[tuple[int, Plan | None]], first: int = 0) -> None:
        """See the class."""
        self.stages = stages
        self.first = first

    def __call__(self, hidden: mx.array) -> mx.array:
        """Apply the plans to hidden states of shape (1, positions, hidden_size)."""
        length = hidden.shape[-2]
        starts = [min(max(start - self.first, 0), length) for start, _ in self.stages]
        parts = []
        for (_, plan), start, end in zip(self.stages, starts, [*starts[1:], length], strict=True):
            if start < end:
                part = hidden[..., start:end, :]
                parts.append(part if plan is None else plan(part))
        return mx.concatenate(parts, axis=-2)

    def moved(self, first: int) -> StagedPlan:
        """The same for hidden states that begin at another position."""
        return StagedPlan(self.stages, first)


def _padded_basis(plan: Plan, directions: int) -> mx.array:
    rows, _, hidden = plan.shift.shape
    if plan.basis is None:
        return mx.zeros((rows, directions, hidden), mx.float32)
    missing = directions - plan.basis.shape[1]
    return mx.pad(plan.basis, [(0, 0), (0, missing), (0, 0)])
