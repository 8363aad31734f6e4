"""Decoding: one token a step for every row, and near ties decided by the row alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_steer.engine.jobs import Completion, Job, Sampling
from mlx_steer.engine.planned_cache import PlannedCache
from mlx_steer.engine.prefill import LayerPlans, join
from mlx_steer.engine.row_plan import Plan
from mlx_steer.engine.steering import Site
from mlx_steer.model.load import Model
from mlx_steer.words import FinishReason

TIE = 1e-3
# Finished rows stay in the batch until they are one in so many, or until others take their places.
_IDLE = 4
# Batch and solo margins differ by a few 1e-5: what might be within TIE alone is looked at too.
_SUSPECT = 1.5 * TIE


@dataclass(eq=False)
class Row:
    """A row that is being decoded.

    Attributes:
        job: What it was asked for.
        prompt_plans: By layer, at the positions before the last prompt token.
        plans: By layer, from the last prompt token on, or as long as the row thinks.
        gates: Score minus threshold of each gate.
        steered: Whether the gates let the plans act.
        tokens: The response so far.
        margin: See `Completion`.
        done: Finished, but still in the batch: dropping a row copies the caches of all others.
        answer_plans: By layer, from the token that ends the thinking on; None if nothing changes
            there.
        answer_start: The position of that token, once it is there.
    """

    job: Job
    prompt_plans: LayerPlans
    plans: LayerPlans
    gates: tuple[float, ...]
    steered: bool
    tokens: list[int] = field(default_factory=list)
    margin: float | None = None
    done: bool = False
    answer_plans: LayerPlans | None = None
    answer_start: int | None = None

    def stages(self) -> list[tuple[int, LayerPlans]]:
        """The positions from which plans hold, in order, and these plans."""
        stages = [(0, self.prompt_plans), (len(self.job.ids) - 1, self.plans)]
        if self.answer_start is not None and self.answer_plans is not None:
            stages.append((self.answer_start, self.answer_plans))
        return stages


class Batch:
    """Rows, their caches, and the token each one reads next.

    Args:
        rows: The rows.
        caches: One batch cache for each layer.
        tokens: Shape (rows,).
    """

    def __init__(self, rows: list[Row], caches: list[Any], tokens: mx.array) -> None:
        """See the class."""
        self.rows = rows
        self.caches = caches
        self.tokens = tokens

    def __len__(self) -> int:
        """The number of rows that are not finished."""
        return sum(not row.done for row in self.rows)

    @staticmethod
    def joined(parts: Sequence[Batch]) -> Batch:
        """Several batches as one; the first one's caches are extended."""
        if len(parts) == 1:
            return parts[0]
        rows = [row for part in parts for row in part.rows]
        caches = join([part.caches for part in parts])
        return Batch(rows, caches, mx.concatenate([part.tokens for part in parts]))

    def drop_finished(self, at_least: int = 1) -> None:
        """Drop the finished rows if there are so many."""
        kept = [i for i, row in enumerate(self.rows) if not row.done]
        if len(self.rows) - len(kept) < at_least:
            return
        self.rows = [self.rows[i] for i in kept]
        self.tokens = self.tokens[mx.array(kept, mx.uint32)]
        if kept:
            for cache in self.caches:
                cache.filter(kept)

    def begin_answers(self, places: Sequence[int]) -> None:
        """Let the plans of the answer act on these rows, whose thinking has ended."""
        for layer, held in enumerate(self.caches):
            if isinstance(held, PlannedCache):
                nothing = Plan(mx.zeros_like(held.plan.shift[:1]))
                plans = [(self.rows[i].answer_plans or {}).get(layer, nothing) for i in places]
                held.plan = held.plan.with_rows(places, plans)


class Decoder:
    """Takes steps.

    Args:
        model: The model.
        sites: The sites of all its blocks.
        sampling: How the next token is chosen.
    """

    def __init__(self, model: Model, sites: Sequence[Site], sampling: Sampling) -> None:
        """See the class."""
        self._model = model
        self._sites = sites
        self._sampling = sampling
        self._stop_ids = model.chat.stop_ids

    def step(self, batch: Batch) -> list[Completion]:
        """Give every row one token; rows that end are returned, and leave the batch in time."""
        logits = self._model.network(batch.tokens[:, None], cache=batch.caches)[:, -1]
        best, margins = best_two(self._scores(logits, batch.rows))
        mx.eval(best, margins)
        tokens: list[int] = np.array(best).tolist()
        finished: list[Completion] = []
        answering: list[int] = []
        for i, (row, margin) in enumerate(zip(batch.rows, np.array(margins).tolist(), strict=True)):
            if row.done:
                continue
            tokens[i] = self._settled(row, tokens[i], margin)
            reason = self._take(row, tokens[i])
            if reason is not None:
                row.done = True
                finished.append(self._completion(row, reason))
            elif self._ends_thinking(row):
                row.answer_start = len(row.job.ids) + len(row.tokens) - 1
                answering.append(i)
        if answering:
            batch.begin_answers(answering)
        batch.tokens = mx.array(tokens)
        batch.drop_finished(at_least=max(1, len(batch.rows) // _IDLE))
        return finished

    def _ends_thinking(self, row: Row) -> bool:
        """Whether other plans act on the row from its last token on."""
        if row.answer_plans is None or row.answer_start is not None:
            return False
        end = self._model.chat.thinking_end
        return end is not None and tuple(row.tokens[-len(end) :]) == end

    def _settled(self, row: Row, token: int, margin: float) -> int:
        """The row's token, looked at alone if another could be as good; notes the margin."""
        if self._model.exact:
            if margin >= _SUSPECT:
                return token
            token, margin = self.alone(row)
            if margin >= TIE:
                return token
        margin = round(margin, 6)
        row.margin = margin if row.margin is None else min(row.margin, margin)
        return token

    def alone(self, row: Row) -> tuple[int, float]:
        """A row's next token and margin by one plain, uncached forward pass over all its tokens."""
        ids = mx.array([*row.job.ids, *row.tokens])[None]
        stages = row.stages()
        layers = sorted({layer for _, plans in stages for layer in plans})
        for layer in layers:
            self._sites[layer].plan = _Staged([(start, p.get(layer)) for start, p in stages])
        try:
            logits = self._model.network(ids)[:, -1]
            best, margin = best_two(self._scores(logits, [row]))
            mx.eval(best, margin)
        finally:
            for layer in layers:
                self._sites[layer].plan = None
        return int(np.array(best)[0]), float(np.array(margin)[0])

    def _scores(self, logits: mx.array, rows: Sequence[Row]) -> mx.array:
        scores = logits.astype(mx.float32)
        if self._sampling.temperature <= 0:
            return scores
        # argmax(logits / t + Gumbel noise) is a draw from softmax(logits / t).
        noise = [self._noise(row, scores.shape[-1]) for row in rows]
        return scores / self._sampling.temperature + mx.stack(noise)

    def _noise(self, row: Row, size: int) -> mx.array:
        name = f"{self._sampling.seed}:{row.job.key}:{len(row.tokens)}"
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return mx.random.gumbel((size,), key=mx.random.key(key))

    def _take(self, row: Row, token: int) -> FinishReason | None:
        if token in self._stop_ids:
            return "stop"
        row.tokens.append(token)
        return "length" if len(row.tokens) >= self._sampling.max_tokens else None

    def _completion(self, row: Row, reason: FinishReason) -> Completion:
        thinking, text = self._model.chat.texts(row.job.ids, row.tokens)
        return Completion(
            key=row.job.key,
            tokens=tuple(row.tokens),
            text=text,
            finish_reason=reason,
            margin=row.margin,
            gates=tuple(round(g, 6) for g in row.gates),
            steered=row.steered,
            thinking=thinking,
        )


class _Staged:
    """Plans that each act from a position to where the next one begins."""

    def __init__(self, stages: Sequence[tuple[int, Plan | None]]) -> None:
        self.stages = stages

    def __call__(self, hidden: mx.array) -> mx.array:
        ends = [*(start for start, _ in self.stages[1:]), hidden.shape[1]]
        parts = []
        for (start, plan), end in zip(self.stages, ends, strict=True):
            part = hidden[:, start:end]
            parts.append(part if plan is None else plan(part))
        return mx.concatenate(parts, axis=1)


def best_two(scores: mx.array) -> tuple[mx.array, mx.array]:
    """The best column of each row, and how far the second best lies below it.

    The vocabulary is read once, for the best of each chunk; the rest happens in one chunk of a row.

    Args:
        scores: Shape (rows, vocabulary).

    Returns:
        Indices and margins, each of shape (rows,).
    """
    rows, size = scores.shape
    width = _chunk_width(size)
    chunks = scores.reshape(rows, size // width, width)
    tops = mx.max(chunks, axis=-1)
    chunk = mx.argmax(tops, axis=-1, keepdims=True)
    inside = mx.take_along_axis(chunks, chunk[..., None], axis=1)[:, 0]
    place = mx.argmax(inside, axis=-1, keepdims=True)
    best = mx.take_along_axis(inside, place, axis=-1)
    second = mx.maximum(_best_but(tops, chunk), _best_but(inside, place))
    return (chunk * width + place)[:, 0], (best - second)[:, 0]


def _best_but(values: mx.array, index: mx.array) -> mx.array:
    """The largest value of each row, one column left out."""
    others = mx.where(mx.arange(values.shape[-1]) == index, -mx.inf, values)
    return mx.max(others, axis=-1, keepdims=True)


@cache
def _chunk_width(size: int) -> int:
    """The divisor nearest to the square root, from above; the size itself if it is prime."""
    return next(d for d in range(math.isqrt(size - 1) + 1, size + 1) if size % d == 0)
