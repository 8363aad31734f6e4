"""Prompts into caches, each token of each layer computed once.

Three things are shared. The head that prompts have in common (the chat template's opening, a system
prompt) is run once. A prompt is run once for all conditions. And since a condition that first
acts at layer L leaves layers 0 to L as they are, only the layers above L are run again for it,
from the hidden states kept at L, where the network allows it. Prefill stops before the last prompt
token: that one is the first step of decoding, so a whole prefill is of scope `prompt`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_steer.engine.caches import arrays_of, take_rows
from mlx_steer.engine.forward import Call, Forward, Ids
from mlx_steer.engine.row_plan import Plan

LayerPlans = Mapping[int, Plan]
"""The plans of one row, by layer, each of one row."""


@dataclass(frozen=True, eq=False)
class Prefilled:
    """Several sequences in caches, and their hidden states at some layers.

    Attributes:
        caches: In the network's order, rows aligned at their ends.
        hidden: By layer: shape (rows, longest, hidden_size), rows aligned at their starts.
        lengths: Tokens of each row that `hidden` holds.
    """

    caches: list[Any]
    hidden: dict[int, mx.array]
    lengths: list[int]

    def rows(self, indices: Sequence[int]) -> list[Any]:
        """Copies of some rows' caches, in that order; rows may repeat."""
        return [take_rows(c, indices) for c in self.caches]


@dataclass(frozen=True, eq=False)
class Prefill:
    """Runs prompts into caches.

    Attributes:
        forward: The network.
    """

    forward: Forward

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
        traits = self.forward.traits
        caches = start if start is not None else self.forward.fresh(len(sequences))
        layers, count = sorted(set(keep)), len(self.forward.sites)
        above = range(
            count if top is None or not traits.skips else max(top, *layers, -1) + 1, count
        )
        done = self.forward.read(sequences, caches, Call(keep=layers, skip=above))
        # Caches are the layers' own, in their order, where replays are right.
        needed = caches if top is None or not traits.replays else caches[: top + 1]
        mx.eval(list(done.hidden.values()), [] if top == -1 else arrays_of(needed))
        return Prefilled(caches, done.hidden, [len(s) for s in sequences])

    def logits(self, sequences: Sequence[Ids], start: list[Any]) -> mx.array:
        """The network's logits after each token, lazily: (rows, longest, vocabulary).

        Args:
            sequences: Token ids of each row, at least one each; rows are aligned at their starts.
            start: Caches to continue, one row for each sequence; they are used up.
        """
        return self.forward.read(sequences, start).logits

    def replay(
        self,
        base: Prefilled,
        rows: Sequence[int],
        plans: Sequence[LayerPlans],
        start: list[Any],
        sequences: Sequence[Ids],
    ) -> Prefilled:
        """Run rows of an unsteered prefill again under plans, from the lowest planned layer up.

        Where the network does not allow that they are run again whole.

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
        stacked = {k: stack_plans(plans, k) for k in sorted({k for p in plans for k in p})}
        if self.forward.traits.replays:
            # The base run may have been padded to a longer row than any that is replayed.
            longest = max(map(len, sequences))
            states = base.hidden[lowest][mx.array(list(rows)), :longest]
            self.forward.read(sequences, start, Call(stacked, start=(lowest, states)))
            below = [take_rows(c, rows) for c in base.caches[: lowest + 1]]
            caches = below + start[lowest + 1 :]
            mx.eval(arrays_of(start[lowest + 1 :]))
        else:
            self.forward.read(sequences, start, Call(stacked))
            caches = start
            mx.eval(arrays_of(caches))
        return Prefilled(caches, {}, [len(s) for s in sequences])


def stack_plans(rows: Sequence[LayerPlans], layer: int) -> Plan:
    """The plans of many rows at one layer as one; rows without a plan there get one of zeros."""
    nothing = Plan(mx.zeros_like(next(p[layer] for p in rows if layer in p).shift))
    return Plan.stack([p.get(layer, nothing) for p in rows])


def common_head(sequences: Sequence[Ids], spare: int = 2) -> int:
    """How many first tokens all sequences share, leaving each at least `spare` of its own."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    shared = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        shared += 1
    return max(0, min(shared, min(len(s) for s in sequences) - spare))
