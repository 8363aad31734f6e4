"""What is done to the output of one block, row by row: interventions made into an affine map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.conditions import Intervention
from mlx_steer.errors import VectorError

Float64 = NDArray[np.float64]


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


def plan_of(interventions: Sequence[Intervention], hidden_size: int, dtype: mx.Dtype) -> Plan:
    """One row's plan for one layer.

    Projections (`ablate`, `clamp`) are taken from the block's own output; vectors are added to what
    is left. Full projections come first and each ends at its own value, orthogonal to the others or
    not; of two on the same direction the later one counts. A part (`ablate` below 1) is then taken
    of what the full ones leave of its direction.

    Args:
        interventions: All of one layer.
        hidden_size: Width of the hidden state.
        dtype: Dtype of the hidden state.
    """
    added = np.zeros(hidden_size, np.float64)
    clamped = np.zeros(hidden_size, np.float64)
    full: list[tuple[Float64, float]] = []
    parts: list[tuple[Float64, float]] = []
    for item in interventions:
        vector = item.vector.astype(np.float64)
        _check_strength(item, vector)
        unit = vector / (np.linalg.norm(vector) or 1.0)
        if item.operator == "add":
            added += item.strength * vector
        elif item.operator == "clamp":
            full.append((unit, item.strength))
        elif item.strength == 1.0:
            full.append((unit, 0.0))
        else:
            parts.append((unit, item.strength))
    basis: list[Float64] = []
    for unit, value in reversed(full):
        residue = _residue(unit, basis)
        size = float(np.linalg.norm(residue))
        if size > 1e-6:
            basis.append(residue / size)
            # Orthogonal to the directions before, so that their values stay.
            clamped += (value - unit @ clamped) / size * basis[-1]
    weights = [1.0] * len(basis)
    for unit, part in parts:
        residue = _residue(unit, basis)
        size = float(np.linalg.norm(residue))
        if size > 1e-6:
            basis.append(residue / size)
            weights.append(part)
    rows = mx.array((added + clamped).astype(np.float32)).astype(dtype)[None, None]
    if not basis:
        return Plan(rows)
    scaled = np.stack(basis) * np.sqrt(weights)[:, None]
    return Plan(rows, mx.array(scaled.astype(np.float32))[None])


def _residue(unit: Float64, basis: Sequence[Float64]) -> Float64:
    """What is left of a vector without its projections on an orthonormal basis."""
    for other in basis:
        unit = unit - (other @ unit) * other
    return unit


def _check_strength(item: Intervention, vector: Float64) -> None:
    if not np.isfinite(item.strength):
        raise VectorError(f"the strength at layer {item.layer} must be finite, not {item.strength}")
    if item.operator == "ablate" and not 0 <= item.strength <= 1:
        raise VectorError(
            f"ablating takes a part of the projection, from 0 to 1, not {item.strength:g}"
        )
    if item.operator != "add" and not vector.any():
        raise VectorError(f"a vector of zeros at layer {item.layer} has no direction to project on")
