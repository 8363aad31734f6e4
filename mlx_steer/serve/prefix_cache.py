"""Conversations that were read before, so that their next turn is not read from the beginning."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = Sequence[int]

# As many as may be under way or waiting: a conversation's next turn finds its last one.
MOST_TURNS = 320
# Fewer tokens than this are read again faster than they are looked after.
_SHORTEST = 16


@dataclass(frozen=True, eq=False)
class _Turn:
    plans: str
    ids: NDArray[np.int64]
    caches: list[Any]
    size: int

    def shared(self, ids: NDArray[np.int64]) -> int:
        """How many first tokens it has in common with others."""
        both = min(len(self.ids), len(ids))
        other = np.flatnonzero(self.ids[:both] != ids[:both])
        return int(other[0]) if len(other) else both


class PrefixCache:
    """Keys and values by the plans they were read under, the least recently used dropped first.

    Only networks whose caches are all plain ones (`KVCache`) take part: those can be cut back to
    what two conversations share.

    Args:
        most_bytes: What all of them may take.
    """

    def __init__(self, most_bytes: int) -> None:
        """See the class."""
        self._most_bytes = most_bytes
        self._turns: OrderedDict[int, _Turn] = OrderedDict()
        self._next = 0
        self.bytes = 0

    def known(self, plans: str, ids: Ids) -> int:
        """How many of a prompt's first tokens were read under these plans."""
        found = self._best(plans, ids)
        return found[1] if found else 0

    def take(self, plans: str, ids: Ids) -> tuple[list[Any], int] | None:
        """Caches of one row for a prompt's first tokens, and how many these are.

        They share the arrays of what is kept, and may only be merged into a batch.
        """
        found = self._best(plans, ids)
        if found is None:
            return None
        name, count = found
        self._turns.move_to_end(name)
        caches = [copy.copy(cache) for cache in self._turns[name].caches]
        for cache in caches:
            cache.trim(cache.offset - count)
        return caches, count

    def keep(self, plans: str, ids: Ids, caches: list[Any]) -> None:
        """Keep one row's caches, which hold at least these tokens.

        Args:
            plans: Names the plans that acted at all these positions.
            ids: The tokens, or as many of them as the caches hold.
            caches: Caches of one row, evaluated; they are cut to these tokens.
        """
        count = min(len(ids), *(cache.offset for cache in caches))
        if count < _SHORTEST:
            return
        for cache in caches:
            cache.trim(cache.offset - count)
        tokens = np.array(ids[:count], np.int64)
        # Whatever it goes on from is worth nothing beside it.
        for name, turn in list(self._turns.items()):
            if turn.plans == plans and turn.shared(tokens) == len(turn.ids):
                self._drop(name)
        size = sum(cache.nbytes for cache in caches)
        self._turns[self._next] = _Turn(plans, tokens, caches, size)
        self._next += 1
        self.bytes += size
        while self._turns and (self.bytes > self._most_bytes or len(self._turns) > MOST_TURNS):
            self._drop(next(iter(self._turns)))

    def forget(self) -> None:
        """Drop all, to make room."""
        self._turns.clear()
        self.bytes = 0

    def _best(self, plans: str, ids: Ids) -> tuple[int, int] | None:
        tokens = np.array(ids, np.int64)
        counts = {n: t.shared(tokens) for n, t in self._turns.items() if t.plans == plans}
        if not counts:
            return None
        name = max(counts, key=lambda one: (counts[one], one))
        return (name, counts[name]) if counts[name] >= _SHORTEST else None

    def _drop(self, name: int) -> None:
        self.bytes -= self._turns.pop(name).size
