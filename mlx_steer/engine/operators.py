"""The operators `add`, `ablate` and `clamp`: interventions made into one plan of a row."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.conditions import Intervention
from mlx_steer.engine.row_plan import Plan
from mlx_steer.errors import VectorError

Float64 = NDArray[np.float64]


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
