"""One call of the network on several rows with caches, each row under its own plans.

All that the engine asks of a network goes through `Forward`. Where a network cannot compute rows
together (see `Traits`), it makes several calls of one and puts their results side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_steer.engine.caches import RowCaches, grow_by, join, take_rows
from mlx_steer.engine.row_plan import Plan, StagedPlan
from mlx_steer.engine.steering import Site
from mlx_steer.engine.traits import Traits

Ids = Sequence[int]
Plans = Mapping[int, Plan]
"""Plans by layer; of one row, or of all rows of a batch."""


@dataclass(frozen=True, eq=False)
class Pass:
    """What one call gave, lazily: what nobody evaluates is never computed.

    Attributes:
        logits: Shape (rows, positions, vocabulary).
        hidden: By layer: shape (rows, positions, hidden_size); rows are aligned at their starts.
    """

    logits: mx.array
    hidden: dict[int, mx.array]


@dataclass(frozen=True, eq=False)
class Call:
    """What is asked for, beside the tokens.

    Attributes:
        plans: By layer, of all rows.
        keep: Layers whose outputs are wanted.
        start: A layer, and what is taken as its output; it and the blocks below are not run.
        skip: Blocks that are not run either.
    """

    plans: Plans = field(default_factory=dict)
    keep: Sequence[int] = ()
    start: tuple[int, mx.array] | None = None
    skip: range = range(0)

    def rows(self, rows: Sequence[int], length: int) -> Call:
        """The same for some rows, of so many tokens."""
        start = self.start
        if start is not None:
            start = start[0], start[1][mx.array(list(rows)), :length]
        return Call({k: p.rows(rows) for k, p in self.plans.items()}, self.keep, start, self.skip)


class Forward:
    """Calls a network whose blocks are steerable.

    Args:
        network: An mlx-lm network inside `steerable(network)`.
        sites: The sites of all its blocks.
        traits: What holds for it.
    """

    def __init__(self, network: nn.Module, sites: Sequence[Site], traits: Traits) -> None:
        """See the class."""
        self.network = network
        self.sites = sites
        self.traits = traits

    def fresh(self, rows: int) -> list[Any]:
        """Empty caches for a batch."""
        from mlx_lm.models.cache import make_prompt_cache

        if self.traits.together == "single":
            every = [make_prompt_cache(self.network) for _ in range(rows)]
            return [RowCaches(list(same)) for same in zip(*every, strict=True)]
        return [c.merge([c] * rows) for c in make_prompt_cache(self.network)]

    def read(self, sequences: Sequence[Ids], caches: list[Any], call: Call | None = None) -> Pass:
        """Let each row read its next tokens, as many as it has.

        Args:
            sequences: Token ids of each row, at least one each.
            caches: Caches of as many rows, which go on.
            call: What else is asked for.
        """
        lengths = [len(s) for s in sequences]
        longest = max(lengths)
        grow_by(caches, longest)
        ids = mx.array([list(s) + [0] * (longest - len(s)) for s in sequences])
        call = call or Call()
        if self.traits.together == "single" and len(lengths) > 1:
            return self._apart(ids, lengths, caches, call)
        if self.traits.together == "even" and len(set(lengths)) > 1:
            return self._apart(ids, lengths, caches, call)
        return self._together(ids, caches, call, lengths)

    def step(self, tokens: mx.array, caches: list[Any], plans: Plans) -> mx.array:
        """Let each row read one token.

        Args:
            tokens: Shape (rows,).
            caches: Caches of as many rows, which go on.
            plans: Of all rows.

        Returns:
            The logits after it: (rows, vocabulary).
        """
        return self.observed_step(tokens, caches, Call(plans)).logits[:, -1]

    def observed_step(self, tokens: mx.array, caches: list[Any], call: Call) -> Pass:
        """As `step`, with all that the call asks for."""
        ids = tokens[:, None]
        if self.traits.together == "single" and tokens.size > 1:
            return self._apart(ids, [1] * tokens.size, caches, call)
        return self._together(ids, caches, call)

    def alone(
        self, ids: Ids, split: int, staged: Mapping[int, StagedPlan], keep: Sequence[int] = ()
    ) -> Pass:
        """One row by itself, nothing shared and nothing kept; of its last tokens at least.

        Args:
            ids: All its tokens, those before `split` being read at once where it matters.
            split: The position of the last prompt token.
            staged: By layer: what happens to the output.
            keep: Layers whose outputs are wanted.
        """
        from mlx_lm.models.cache import make_prompt_cache

        chunks = [ids] if self.traits.uncached else [ids[:split], *([i] for i in ids[split:])]
        own = None if self.traits.uncached else make_prompt_cache(self.network)
        at = 0
        for chunk in filter(len, chunks):
            plans = {layer: plan.moved(at) for layer, plan in staged.items()}
            with self._asked(Call(keep=keep)) as hidden, self._planned(plans):
                logits = self.network(mx.array([list(chunk)]), cache=own)
            at += len(chunk)
        return Pass(logits, hidden)

    def _together(
        self, ids: mx.array, caches: list[Any], call: Call, lengths: Sequence[int] = ()
    ) -> Pass:
        padding = [ids.shape[1] - n for n in lengths]
        if any(padding):
            for cache in caches:
                cache.prepare(lengths=list(lengths), right_padding=padding)
        own = [c.rows[0] if isinstance(c, RowCaches) else c for c in caches]
        with self._asked(call) as hidden, self._planned(call.plans):
            logits = self.network(ids, cache=own)
        if any(padding):
            for cache in caches:
                if not cache.empty():
                    cache.finalize()
        return Pass(logits, hidden)

    def _apart(self, ids: mx.array, lengths: Sequence[int], caches: list[Any], call: Call) -> Pass:
        """The rows of each length by themselves, or each row by itself."""
        single = self.traits.together == "single"
        groups = [[i] for i in range(len(lengths))] if single else _alike(lengths)
        parts: list[Pass] = []
        taken: list[list[Any]] = []
        for group in groups:
            rows = mx.array(group)
            length = lengths[group[0]]
            own = [_part(cache, group) for cache in caches]
            parts.append(self._together(ids[rows, :length], own, call.rows(group, length)))
            taken.append(own)
        back = [place for place, _ in sorted(enumerate(chain(*groups)), key=lambda p: p[1])]
        if not single:  # single rows' caches went on in their places
            caches[:] = [take_rows(cache, back) for cache in join(taken)]
        logits = _side_by_side([p.logits for p in parts], back)
        hidden = {k: _side_by_side([p.hidden[k] for p in parts], back) for k in parts[0].hidden}
        return Pass(logits, hidden)

    @contextmanager
    def _asked(self, call: Call) -> Iterator[dict[int, mx.array]]:
        """Ask the sites; yields what becomes the hidden states that are kept."""
        hidden: dict[int, mx.array] = {}
        skipped = [self.sites[i] for i in call.skip]
        if call.start is not None:
            self.sites[call.start[0]].replay = call.start[1]
            skipped += self.sites[: call.start[0]]
        try:
            for site in skipped:
                site.skip = True
            for layer in call.keep:
                self.sites[layer].record = _Keeper(hidden, layer)
            yield hidden
        finally:
            for site in skipped:
                site.skip = False
            for layer in call.keep:
                self.sites[layer].record = None
            if call.start is not None:
                self.sites[call.start[0]].replay = None

    @contextmanager
    def _planned(self, plans: Mapping[int, Plan] | Mapping[int, StagedPlan]) -> Iterator[None]:
        before = {layer: self.sites[layer].plan for layer in plans}
        try:
            for layer, plan in plans.items():
                self.sites[layer].plan = plan
            yield
        finally:
            for layer, plan_before in before.items():
                self.sites[layer].plan = plan_before


class _Keeper:
    def __init__(self, into: dict[int, mx.array], layer: int) -> None:
        self.into = into
        self.layer = layer

    def __call__(self, hidden: mx.array) -> None:
        self.into[self.layer] = hidden


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length, []).append(row)
    return list(groups.values())


def _part(cache: Any, rows: Sequence[int]) -> Any:
    if isinstance(cache, RowCaches):  # not copied: they go on in their places
        return RowCaches([cache.rows[i] for i in rows])
    return take_rows(cache, rows)


def _side_by_side(parts: Sequence[mx.array], order: Sequence[int]) -> mx.array:
    """Parts of several rows as one array, padded at their ends to the longest."""
    longest = max(part.shape[1] for part in parts)
    padded = [
        mx.pad(part, [(0, 0), (0, longest - part.shape[1]), (0, 0)])
        if part.shape[1] < longest
        else part
        for part in parts
    ]
    return mx.concatenate(padded)[mx.array(list(order))]
