"""Prompts into rows that are ready to decode, in pieces, so that others decode in between.

A prompt is read under its own plans at once. Where gates decide, it is first read unsteered up to
the layers that decide, and then goes on from the lowest steered layer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache

from mlx_steer.conditions import Condition, digest
from mlx_steer.engine.batch import Batch, Row, Watch
from mlx_steer.engine.caches import arrays_of, grow_by, row_of, take_rows, twin
from mlx_steer.engine.condition_plans import ConditionPlans, gate_scores, new_row, plans_of
from mlx_steer.engine.forward import Call, Forward
from mlx_steer.engine.jobs import Job
from mlx_steer.engine.prefill import LayerPlans, stack_plans
from mlx_steer.model.load import Model
from mlx_steer.serve.messages import Ask, Begun
from mlx_steer.serve.prefix_cache import PrefixCache

# Positions that a batch's caches grow by at a time.
_GROWTH = 64
_UNSTEERED = "unsteered"

Pieces = Callable[[], int]
"""How many tokens may be read at once now."""


@dataclass(frozen=True, eq=False)
class Ready:
    """Prompts that were read.

    Attributes:
        batch: Their rows, in the order of the asks.
        begun: What their clients are told.
    """

    batch: Batch
    begun: list[Begun]


@dataclass(frozen=True, eq=False)
class _Part:
    """What is read of prompts: each row's tokens from where its caches end."""

    caches: list[Any]
    known: list[int]
    rest: Sequence[Sequence[int]]


class Reader:
    """Reads prompts.

    Args:
        model: The model.
        forward: Its network.
        turns: What was read before.
    """

    def __init__(self, model: Model, forward: Forward, turns: PrefixCache) -> None:
        """See the class."""
        self._model = model
        self._forward = forward
        self._turns = turns
        self._keeps = all(type(c) is KVCache for c in self._single())

    def unread(self, ask: Ask) -> int:
        """How many of a prompt's tokens have to be read, as far as can be told before."""
        if not self._keeps:
            return len(ask.ids)
        name = _gate_name(self._highest(ask)) if ask.condition.gates else name_of(ask.condition)
        return len(ask.ids) - self._turns.known(name, ask.ids[:-1])

    def read(self, wave: Sequence[Ask], pieces: Pieces) -> Generator[None, None, Ready]:
        """Read some prompts; several only if they fit into one piece, with gates all or none.

        The same prompt under the same condition, as when several choices are asked for, is read
        once.

        Args:
            wave: The asks.
            pieces: Asked before each piece.
        """
        places: dict[tuple[tuple[int, ...], Condition], int] = {}
        places_of = [places.setdefault((ask.ids, ask.condition), len(places)) for ask in wave]
        prompts = [wave[places_of.index(place)] for place in range(len(places))]
        plans = [plans_of(self._model, ask.condition) for ask in prompts]
        scores: list[tuple[float, ...]] = [()] * len(prompts)
        states: _States | None = None
        if prompts[0].condition.gates:
            scores, states = yield from self._decided(prompts, plans, pieces)
        rows = [self._row(a, plans[i], scores[i]) for a, i in zip(wave, places_of, strict=True)]
        own = [rows[places_of.index(i)] for i in range(len(prompts))]
        part = self._begun([name_of(r.job.condition, r.steered) for r in own], prompts)
        start = self._replayed(own, part, states)
        yield from self._read(part, [row.prompt_plans for row in own], pieces, start)
        if start is not None and states is not None:
            part.caches[: start[0] + 1] = states.caches[: start[0] + 1]
            # What was known of the prompts before may have left the halves padded unlike.
            for cache in part.caches:
                cache.filter(mx.arange(len(own)))
        caches = part.caches
        if len(rows) > len(own):
            caches = [take_rows(cache, places_of) for cache in caches]
        grow_by(caches, _GROWTH)
        begun = [
            Begun(part.known[i], row.gates, row.steered)
            for row, i in zip(rows, places_of, strict=True)
        ]
        return Ready(Batch(rows, caches, mx.array([ask.ids[-1] for ask in wave])), begun)

    def keep(self, batch: Batch, row: Row) -> None:
        """Keep what a row that is leaving has read, for the next turn of its conversation."""
        if not self._keeps:
            return
        place = next(i for i, one in enumerate(batch.rows) if one is row)
        known = [*row.job.ids, *row.tokens]
        if not _same_throughout(row):
            # The last prompt token is the first that is read as a part of the response.
            known = known[: len(row.job.ids) - 1]
        caches = [row_of(cache, place) for cache in batch.caches]
        mx.eval(arrays_of(caches))
        self._turns.keep(name_of(row.job.condition, row.steered), known, caches)

    def _decided(
        self, wave: Sequence[Ask], plans: Sequence[ConditionPlans], pieces: Pieces
    ) -> Generator[None, None, tuple[list[tuple[float, ...]], _States]]:
        """The scores of their gates, and what was read unsteered to decide them."""
        top = max(map(self._highest, wave))
        gate_layers = {self._model.layer(g.layer) for ask in wave for g in ask.condition.gates}
        lowest = {min(own.prompt) for own in plans if own.prompt}
        part = self._begun([_gate_name(top)] * len(wave), wave)
        kept = sorted({*lowest, top})
        hidden: dict[int, mx.array] = {}
        for piece in self._pieces(part, pieces):
            done = self._forward.read(piece, part.caches, self._below(top, kept))
            mx.eval(list(done.hidden.values()), arrays_of(part.caches))
            for layer, states in done.hidden.items():
                before = [hidden[layer]] if layer in hidden else []
                hidden[layer] = mx.concatenate([*before, states], axis=1)
            yield
        copies = [take_rows(cache, range(len(wave))) for cache in part.caches]
        call = self._below(top, sorted(gate_layers))
        last = self._forward.read([ask.ids[-1:] for ask in wave], copies, call).hidden
        exact = {
            k: np.array(v[:, 0].astype(mx.float32)).astype(np.float64) for k, v in last.items()
        }
        scores = []
        for i, ask in enumerate(wave):
            job = Job("", ask.ids, ask.condition)
            scores.append(gate_scores(self._model, job, {k: v[i] for k, v in exact.items()}))
            if self._keeps:
                mine = [row_of(cache, i) for cache in part.caches if not cache.empty()]
                mx.eval(arrays_of(mine))
                self._turns.keep(_gate_name(top), ask.ids[:-1], mine)
        return scores, _States(part.caches, part.known, hidden, top)

    def _row(self, ask: Ask, plans: ConditionPlans, scores: tuple[float, ...]) -> Row:
        # The same numbers are drawn for the same request: its seed alone names them.
        row = new_row(self._model, Job("", ask.ids, ask.condition), ask.sampling, plans, scores)
        row.watch = self._watch(ask)
        return row

    def _watch(self, ask: Ask) -> Watch | None:
        acts = ask.condition.interventions
        if ask.logprobs is None and not (ask.projections and acts):
            return None
        if not (ask.projections and acts):
            return Watch(ask.logprobs)
        first = min(acts, key=lambda act: self._model.layer(act.layer))
        norm = float(np.linalg.norm(first.vector)) or 1.0
        unit = mx.array((first.vector / norm).astype(np.float32))
        return Watch(ask.logprobs, self._model.layer(first.layer), unit)

    def _highest(self, ask: Ask) -> int:
        """The highest layer that is needed unsteered: the gates', and the lowest steered one."""
        layers = [self._model.layer(gate.layer) for gate in ask.condition.gates]
        acting = [i.layer for i in ask.condition.interventions if i.acts_on("prompt")]
        return max(*layers, min(map(self._model.layer, acting), default=0))

    def _below(self, top: int, keep: Sequence[int]) -> Call:
        count = len(self._forward.sites)
        above = range(top + 1, count) if self._forward.traits.skips else range(count, count)
        return Call(keep=keep, skip=above)

    def _begun(self, names: Sequence[str], wave: Sequence[Ask]) -> _Part:
        """Where each prompt's reading goes on: behind what is known of it."""
        known: list[int] = []
        every: list[list[Any]] = []
        for name, ask in zip(names, wave, strict=True):
            # At least one token is left to be read, so that there is something to go on with.
            found = self._turns.take(name, ask.ids[:-2]) if self._keeps else None
            fresh = self._single() if self._keeps else []
            caches, count = found or (fresh, 0)
            every.append([*caches, *fresh[len(caches) :]])
            known.append(count)
        rest = [ask.ids[count:-1] for ask, count in zip(wave, known, strict=True)]
        if not any(known):
            return _Part(self._forward.fresh(len(wave)), known, rest)
        merged = [rows[0].merge(list(rows)) for rows in zip(*every, strict=True)]
        mx.eval(arrays_of(merged))
        return _Part(merged, known, rest)

    def _read(
        self,
        part: _Part,
        plans: Sequence[LayerPlans],
        pieces: Pieces,
        start: tuple[int, mx.array] | None,
    ) -> Iterator[None]:
        layers = sorted({layer for own in plans for layer in own})
        stacked = {layer: stack_plans(plans, layer) for layer in layers}
        at = 0
        for piece in self._pieces(part, pieces):
            length = max(map(len, piece))
            begin = None
            if start is not None:
                begin = start[0], start[1][:, at : at + length]
                # The mask is made from the lowest cache, which is not read into.
                for skipped in range(start[0] + 1):
                    part.caches[skipped] = twin(part.caches[-1])
            self._forward.read(piece, part.caches, Call(stacked, start=begin))
            mx.eval(arrays_of(part.caches))
            at += length
            yield

    def _pieces(self, part: _Part, pieces: Pieces) -> Iterator[Sequence[Sequence[int]]]:
        if len(part.rest) > 1:
            yield part.rest
            return
        (rest,), at = part.rest, 0
        while at < len(rest):
            size = max(1, pieces())
            yield [rest[at : at + size]]
            at += size

    def _replayed(
        self, rows: Sequence[Row], part: _Part, states: _States | None
    ) -> tuple[int, mx.array] | None:
        """A layer, and its unsteered output at all that is to be read, if that is known."""
        if states is None or not (self._keeps and self._forward.traits.replays):
            return None
        skipped = [b - a for a, b in zip(states.known, part.known, strict=True)]
        if min(skipped) < 0:
            return None
        lowest = min([states.top, *(min(r.prompt_plans) for r in rows if r.prompt_plans)])
        whole = states.hidden[lowest]
        longest = max(map(len, part.rest))
        mine = [whole[i, n : n + longest] for i, n in enumerate(skipped)]
        padded = [mx.pad(h, [(0, longest - h.shape[0]), (0, 0)]) for h in mine]
        return lowest, mx.stack(padded)

    def _single(self) -> list[Any]:
        from mlx_lm.models.cache import make_prompt_cache

        return list(make_prompt_cache(self._forward.network))


@dataclass(frozen=True, eq=False)
class _States:
    """What an unsteered reading of prompts gave, but for their last tokens.

    Attributes:
        caches: Of the layers up to `top`.
        known: How many tokens of each had been read before.
        hidden: By layer, the states at the others.
        top: The highest layer that was run.
    """

    caches: list[Any]
    known: list[int]
    hidden: dict[int, mx.array]
    top: int


def name_of(condition: Condition, steered: bool = True) -> str:
    """Names the plans that act on a prompt; the same for all conditions that do the same."""
    # Whether the response is steered too makes no difference there.
    acts = [
        {name: value for name, value in item.key().items() if name != "scope"}
        for item in condition.interventions
        if item.acts_on("prompt")
    ]
    return digest(acts) if acts and steered else _UNSTEERED


def _gate_name(top: int) -> str:
    return f"{_UNSTEERED} up to {top}"


def _same_throughout(row: Row) -> bool:
    """Whether the same plans acted on the prompt and on the response."""
    acts = [i for i in row.job.condition.interventions if i.acts]
    return not row.steered or all(act.scope == "all" for act in acts)
