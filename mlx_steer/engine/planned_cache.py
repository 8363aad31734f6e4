"""A block's cache with the plan of its rows, for those who use mlx-lm's `BatchGenerator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_steer.engine.row_plan import Plan
from mlx_steer.errors import GenerationError

# What mlx-lm's batch caches read of a cache that they are extended by, and no block reads.
_READ_BY_EXTEND = frozenset({"_idx", "batch_size", "caches"})
_MIXED = (
    "a cache with a plan and one without were joined; every row, base rows too, needs a "
    "PlannedCache at every layer that any row steers"
)


class PlannedCache:
    """A block's cache and the plan of its rows, moved together by mlx-lm's batching.

    Hand one to `BatchGenerator.insert(prompts, caches=...)` for every layer that any row of the
    generator steers, for base rows too.

    Args:
        inner: The cache mlx-lm would have used.
        plan: The plan of the rows in it.

    Raises:
        GenerationError: If it is joined with a cache that has no plan.
    """

    __slots__ = ("inner", "plan")

    def __init__(self, inner: Any, plan: Plan) -> None:
        """See the class."""
        self.inner = inner
        self.plan = plan

    def __getattr__(self, name: str) -> Any:
        """Everything else is the inner cache's."""
        if name in PlannedCache.__slots__:  # not set yet: copy and pickle probe for them
            raise AttributeError(name)
        if name in _READ_BY_EXTEND and hasattr(self.inner, name):
            raise GenerationError(_MIXED)
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the inner cache's attributes, but its own two."""
        if name in PlannedCache.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.inner, name, value)

    def __getitem__(self, index: int) -> Any:
        """One of the inner cache's arrays or caches."""
        return self.inner[index]

    def __setitem__(self, index: int, value: Any) -> None:
        """Set one of the inner cache's arrays."""
        self.inner[index] = value

    @staticmethod
    def merge(caches: Sequence[PlannedCache]) -> PlannedCache:
        """Rows of several caches as one batch."""
        if not all(isinstance(c, PlannedCache) for c in caches):
            raise GenerationError(_MIXED)
        inner = caches[0].inner.merge([c.inner for c in caches])
        return PlannedCache(inner, Plan.stack([c.plan for c in caches]))

    def extend(self, other: PlannedCache) -> None:
        """Append another batch's rows."""
        if not isinstance(other, PlannedCache):
            raise GenerationError(_MIXED)
        self.inner.extend(other.inner)
        self.plan = Plan.stack([self.plan, other.plan])

    def filter(self, batch_indices: Sequence[int]) -> None:
        """Keep some rows."""
        self.inner.filter(batch_indices)
        indices = batch_indices.tolist() if isinstance(batch_indices, mx.array) else batch_indices
        self.plan = self.plan.rows(indices)

    def extract(self, idx: int) -> PlannedCache:
        """One row's cache, with its plan."""
        return PlannedCache(self.inner.extract(idx), self.plan.rows([idx]))
