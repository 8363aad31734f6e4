"""Caches of several rows: copied, joined, and kept for the case that a step is taken back.

Everywhere in the engine the caches of a batch are a list in the network's own order, mostly one for
each layer. Each is one of mlx-lm's batch caches, or, for networks that cannot be run in a batch,
`RowCaches`: the same interface over a plain list of single rows' caches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

T = TypeVar("T")


class RowCaches:
    """The caches that several rows have at one place, each row its own.

    Args:
        rows: A cache as mlx-lm makes it for a single row, for each row.
    """

    def __init__(self, rows: list[Any]) -> None:
        """See the class."""
        self.rows = rows

    def filter(self, batch_indices: Sequence[int] | mx.array) -> None:
        """Keep some rows, which may not repeat."""
        self.rows = [self.rows[i] for i in _listed(batch_indices)]

    def extend(self, other: RowCaches) -> None:
        """Append another batch's rows."""
        self.rows = [*self.rows, *other.rows]

    def copied(self, rows: Sequence[int]) -> RowCaches:
        """Copies of some rows, in that order; rows may repeat."""
        # mlx-lm writes into the arrays of a cache in place: a copy must have arrays of its own.
        return RowCaches([copy.deepcopy(self.rows[i]) for i in rows])

    def empty(self) -> bool:
        """Whether nothing was written yet."""
        return all(row.empty() for row in self.rows)

    @property
    def state(self) -> list[Any]:
        """All arrays."""
        return [row.state for row in self.rows if not row.empty()]


def take_rows(cache: Any, rows: Sequence[int]) -> Any:
    """A copy of some rows of a batch cache, in that order; rows may repeat."""
    if isinstance(cache, RowCaches):
        return cache.copied(rows)
    taken = twin(cache)
    # Filtering binds new arrays; the copy shares none that mlx-lm would write into.
    taken.filter(mx.array(list(rows)))
    return taken


def join(batches: Sequence[list[Any]]) -> list[Any]:
    """Caches of several batches as one batch; the first is extended and returned."""
    first, *others = batches
    for other in others:
        for cache, more in zip(first, other, strict=True):
            cache.extend(more)
    return first


def twin(value: T) -> T:
    """A copy of a cache, as it is now, that stays so while the cache reads one more token.

    Caches inside it and small arrays (offsets, paddings) are copied too. Large arrays are shared:
    either a step binds new ones, or it writes into them at the place where the same step, taken
    again from the copy, writes first.
    """
    copied: Any = value
    if isinstance(value, mx.array):
        copied = mx.array(value) if value.ndim < 3 else value
    elif isinstance(value, list | tuple):
        copied = type(value)(twin(item) for item in value)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        copied = copy.copy(value)
        copied.__dict__ = {name: twin(item) for name, item in vars(value).items()}
    return copied  # type: ignore[no-any-return]


def row_of(cache: Any, row: int) -> Any:
    """One row of a batch cache, as a cache that mlx-lm makes for a single row."""
    return copy.deepcopy(cache.rows[row]) if isinstance(cache, RowCaches) else cache.extract(row)


def grow_by(caches: Iterable[Any], tokens: int) -> None:
    """Let caches grow by so many positions at a time, instead of mlx-lm's 256.

    Whatever moves rows copies all positions there are room for.
    """
    for cache in _growing(caches):
        cache.step = tokens


def make_room(caches: Iterable[Any], tokens: int) -> None:
    """Let caches hold so many more positions; copies of rows need not grow one by one then."""
    for cache in _growing(caches):
        if not cache.empty():
            pad = [(0, 0), (0, 0), (0, tokens), (0, 0)]
            cache.keys, cache.values = (mx.pad(x, pad) for x in cache.keys_and_values())


def room_for_one(caches: Iterable[Any]) -> None:
    """Let full caches grow now, as they would when the next token is written.

    A `twin` taken before that would hold the arrays they have grown out of.
    """
    for cache in _growing(caches):
        if cache.empty() or cache.keys_and_values()[0].shape[2] < cache.keys.shape[2]:
            return  # all layers' caches fill up together
        make_room([cache], cache.step)


def arrays_of(caches: Iterable[Any]) -> list[Any]:
    """All arrays of caches that hold something."""
    return [c.state for c in caches if not c.empty()]


def _growing(caches: Iterable[Any]) -> Iterable[Any]:
    """The caches that grow with what is read; those of a sliding window are bounded by it."""
    return (c for c in _flat(caches) if hasattr(c, "step") and not hasattr(c, "max_size"))


def _flat(caches: Iterable[Any]) -> Iterable[Any]:
    """Caches, and the ones inside lists of caches in their place."""
    for cache in caches:
        inside = getattr(cache, "caches", None)
        if isinstance(inside, list | tuple):
            yield from _flat(inside)
        else:
            yield cache


def _listed(indices: Sequence[int] | mx.array) -> list[int]:
    return np.array(indices).tolist()  # type: ignore[no-any-return]
