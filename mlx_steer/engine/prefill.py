"""Prompts into caches, each token of each layer computed once.

Three things are shared. The head that prompts have in common (the chat template's opening, a system
prompt) is run once. A prompt is run once for all conditions. And since a condition that first
acts at layer L leaves layers 0 to L as they are, only the layers above L are run again for it,
from the hidden states kept at L. Prefill stops before the last prompt token: that one is the
first step of decoding, so a whole prefill is of scope `prompt`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_steer.engine.planned_cache import PlannedCache
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steering import Site

Ids = Sequence[int]
LayerPlans = Mapping[int, Plan]
"""The plans of one row, by layer, each of one row."""


@dataclass(frozen=True, eq=False)
class Prefilled:
    """Several sequences in caches, and their hidden states at some layers.

    Attributes:
        caches: One for each layer, rows aligned at their ends.
        hidden: By layer: shape (rows, longest, hidden_size), rows aligned at their starts.
        lengths: Tokens of each row that `hidden` holds.
    """

    caches: list[Any]
    hidden: dict[int, mx.array]
    lengths: list[int]

    def rows(self, indices: Sequence[int]) -> list[Any]:
        """Copies of some rows' caches, in that order; rows may repeat."""
        return [take_rows(c, indices) for c in self.caches]


class Prefill:
    """Runs prompts into caches for one network whose blocks are steerable.

    Args:
        network: An mlx-lm network inside `steerable(network)`.
        sites: The sites of all its blocks.
    """

    def __init__(self, network: nn.Module, sites: Sequence[Site]) -> None:
        """See the class."""
        self.network = network
        self.sites = sites

    def fresh(self, rows: int) -> list[Any]:
        """Empty caches for a batch."""
        from mlx_lm.models.cache import make_prompt_cache

        return [c.merge([c] * rows) for c in make_prompt_cache(self.network)]

    def run(
        self,
        sequences: Sequence[Ids],
        keep: Iterable[int] = (),
        start: list[Any] | None = None,
        top: int | None = None,
    ) -> Prefilled:
        """Run sequences through the network as it is.

        Args:
            sequences: Token ids of each row, at least one each.
            keep: Layers whose hidden states are kept.
            start: Caches to continue, one row for each sequence; they are used up.
            top: The highest layer whose cache is needed; all by default. Layers above it and above
                all in `keep` are not run.
        """
        caches = start if start is not None else self.fresh(len(sequences))
        layers = sorted(set(keep))
        above = [] if top is None else self.sites[max(top, *layers, -1) + 1 :]
        with _skipped(above):
            hidden, _ = self._forward(sequences, caches, layers)
        mx.eval(list(hidden.values()), _arrays(caches if top is None else caches[: top + 1]))
        return Prefilled(caches, hidden, [len(s) for s in sequences])

    def logits(self, sequences: Sequence[Ids], start: list[Any]) -> mx.array:
        """The network's logits after each token, lazily: (rows, longest, vocabulary).

        Args:
            sequences: Token ids of each row, at least one each; rows are aligned at their starts.
            start: Caches to continue, one row for each sequence; they are used up.
        """
        return self._forward(sequences, start, ())[1]

    def replay(
        self,
        base: Prefilled,
        rows: Sequence[int],
        plans: Sequence[LayerPlans],
        start: list[Any],
        sequences: Sequence[Ids],
    ) -> Prefilled:
        """Run rows of an unsteered prefill again under plans, from the lowest planned layer up.

        Args:
            base: Of `run`, with the hidden states kept at every row's lowest planned layer.
            rows: Which row of `base` each new row repeats.
            plans: Each new row's plans; their lowest layers must be the same.
            start: The caches that each row continues, under its plans; used up.
            sequences: Each new row's token ids.

        Returns:
            The rows' caches; layers up to the lowest planned one are copies of the base's.
        """
        lowest = min(plans[0])
        layers = sorted({layer for p in plans for layer in p})
        for layer in layers:
            start[layer] = PlannedCache(start[layer], stack_plans(plans, layer))
        # The base run may have been padded to a longer row than any that is replayed.
        longest = max(map(len, sequences))
        self.sites[lowest].replay = base.hidden[lowest][mx.array(list(rows)), :longest]
        try:
            with _skipped(self.sites[:lowest]):
                self._forward(sequences, start, ())
        finally:
            self.sites[lowest].replay = None
        below = [take_rows(c, rows) for c in base.caches[: lowest + 1]]
        above = [c.inner if isinstance(c, PlannedCache) else c for c in start[lowest + 1 :]]
        mx.eval(_arrays(above))
        return Prefilled(below + above, {}, [len(s) for s in sequences])

    def _forward(
        self, sequences: Sequence[Ids], caches: list[Any], keep: Sequence[int]
    ) -> tuple[dict[int, mx.array], mx.array]:
        lengths = [len(s) for s in sequences]
        longest = max(lengths)
        padding = [longest - n for n in lengths]
        grow_by(caches, longest)
        ids = mx.array([list(s) + [0] * p for s, p in zip(sequences, padding, strict=True)])
        if any(padding):
            for cache in caches:
                cache.prepare(lengths=lengths, right_padding=padding)
        hidden: dict[int, mx.array] = {}
        for layer in keep:
            self.sites[layer].record = _Keeper(hidden, layer)
        try:
            # Lazy: nothing above what the caller evaluates is ever computed, logits least of all.
            logits: mx.array = self.network(ids, cache=caches)
        finally:
            for layer in keep:
                self.sites[layer].record = None
        if any(padding):
            for cache in caches:
                if not cache.empty():
                    cache.finalize()
        return hidden, logits


@contextmanager
def _skipped(sites: Sequence[Site]) -> Iterator[None]:
    """Leave out some blocks."""
    for site in sites:
        site.skip = True
    try:
        yield
    finally:
        for site in sites:
            site.skip = False


class _Keeper:
    def __init__(self, into: dict[int, mx.array], layer: int) -> None:
        self.into = into
        self.layer = layer

    def __call__(self, hidden: mx.array) -> None:
        self.into[self.layer] = hidden


def stack_plans(rows: Sequence[LayerPlans], layer: int, nothing: Plan | None = None) -> Plan:
    """The plans of many rows at one layer as one; rows without a plan there get one of zeros."""
    if nothing is None:
        nothing = Plan(mx.zeros_like(next(p[layer] for p in rows if layer in p).shift))
    return Plan.stack([p.get(layer, nothing) for p in rows])


def grow_by(caches: Sequence[Any], tokens: int) -> None:
    """Let caches grow by so many positions at a time, instead of mlx-lm's 256.

    Whatever moves rows copies all positions there are room for. Caches of a sliding window are
    bounded by it and are left alone.
    """
    for cache in caches:
        if hasattr(cache, "step") and not hasattr(cache, "max_size"):
            cache.step = tokens


def make_room(caches: Sequence[Any], tokens: int) -> None:
    """Let caches hold so many more positions; copies of their rows then need not grow one by one.

    Leaves caches of a sliding window alone, as `grow_by` does.
    """
    for cache in caches:
        if hasattr(cache, "step") and not hasattr(cache, "max_size") and not cache.empty():
            pad = [(0, 0), (0, 0), (0, tokens), (0, 0)]
            cache.keys, cache.values = (mx.pad(x, pad) for x in cache.keys_and_values())


def take_rows(cache: Any, rows: Sequence[int]) -> Any:
    """A copy of some rows of a batch cache, in that order; rows may repeat."""
    taken = copy.copy(cache)
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


def common_head(sequences: Sequence[Ids], spare: int = 2) -> int:
    """How many first tokens all sequences share, leaving each at least `spare` of its own."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    shared = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        shared += 1
    return max(0, min(shared, min(len(s) for s in sequences) - spare))


def _arrays(caches: Sequence[Any]) -> list[Any]:
    return [c.state for c in caches if not c.empty()]
