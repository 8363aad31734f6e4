"""Decoding: one token a step for every row, and near ties decided by the row alone.

A step is dispatched before the last one's tokens are read, so that the device never waits. What the
reading then shows to be wrong (a near tie that the row alone decides otherwise, the end of the
thinking, where plans change) is put right by taking the new step back and taking it again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_steer.engine.batch import Batch, Flight, Row
from mlx_steer.engine.caches import room_for_one, twin
from mlx_steer.engine.forward import Call, Forward
from mlx_steer.engine.jobs import Completion
from mlx_steer.engine.narrowing import narrowing
from mlx_steer.engine.observing import observed, seen, watched_layers
from mlx_steer.engine.row_plan import StagedPlan
from mlx_steer.model.load import Model
from mlx_steer.words import FinishReason

TIE = 1e-3
# Finished rows stay in the batch until they are one in so many, or until others take their places.
IDLE = 4
# Batch and solo margins differ by a few 1e-5: what might be within TIE alone is looked at too.
_SUSPECT = 1.5 * TIE


class Decoder:
    """Takes steps.

    Args:
        model: The model.
        forward: Its network.
        ahead: Dispatch a step before the last one's tokens are read, where steps can be undone.
        drops: Drop finished rows in time; otherwise whoever asks for steps does so.
    """

    def __init__(
        self, model: Model, forward: Forward, *, ahead: bool = True, drops: bool = True
    ) -> None:
        """See the class."""
        self._drops = drops
        self._model = model
        self._forward = forward
        self._ahead = ahead and forward.traits.undoes
        self._stop_ids = model.chat.stop_ids

    def step(self, batch: Batch) -> list[Completion]:
        """Give every row one token; rows that end are returned, and leave the batch in time."""
        return self._step(batch, ahead=self._ahead)

    def land(self, batch: Batch) -> list[Completion]:
        """Read a step that is under way, if there is one, and take no other: rows may join then."""
        return [] if batch.flight is None else self._step(batch, ahead=False)

    def _step(self, batch: Batch, *, ahead: bool) -> list[Completion]:
        flight = batch.flight or self._dispatched(batch, batch.tokens, 0)
        following: Flight | None = None
        before: list[Any] = batch.caches
        if ahead and any(_goes_on(row) for row in batch.rows):
            room_for_one(batch.caches)
            before = twin(batch.caches)
            following = self._dispatched(batch, flight.best, 1)
        mx.eval(flight.arrays())
        tokens: list[int] = np.array(flight.best).tolist()
        finished: list[Completion] = []
        answers = changed = False
        for i, (row, margin) in enumerate(
            zip(batch.rows, np.array(flight.margins).tolist(), strict=True)
        ):
            if row.done:
                continue
            token = self._settled(row, tokens[i], margin)
            if row.watch is not None:
                row.seen.append(seen(flight, i, token, row.watch))
            reason = self._take(row, token)
            if reason is not None:
                row.done = True
                finished.append(self._completion(row, reason))
            else:
                if self._ends_thinking(row):
                    row.answer_start = len(row.job.ids) + len(row.tokens) - 1
                    answers = True
                changed |= token != tokens[i]
            tokens[i] = token
        if following is not None and (answers or changed):
            batch.caches, following = before, None
        if answers:
            batch.begin_answers()
        del before  # it holds arrays that dropping rows is to free
        batch.flight = following
        batch.tokens = mx.array(tokens)
        if self._drops:
            batch.drop_finished(at_least=max(1, len(batch.rows) // IDLE))
        return finished

    def _dispatched(self, batch: Batch, tokens: mx.array, later: int) -> Flight:
        """Begin a step that reads these tokens; `later`: so many of each row's are not known."""
        done = self._forward.observed_step(
            tokens, batch.caches, Call(batch.plans, watched_layers(batch.rows))
        )
        logits = done.logits[:, -1].astype(mx.float32)
        slack = _SUSPECT if self._model.exact else 0.0
        best, margins = self._chosen(logits, batch.rows, later, slack)
        flight = Flight(best, margins, *observed(batch.rows, logits, done.hidden))
        mx.async_eval(*flight.arrays())  # type: ignore[no-untyped-call]
        return flight

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
        """A row's next token and margin by plain forward passes of the row alone."""
        stages = row.stages()
        layers = sorted({layer for _, plans in stages for layer in plans})
        staged = {
            layer: StagedPlan([(start, plans.get(layer)) for start, plans in stages])
            for layer in layers
        }
        ids = [*row.job.ids, *row.tokens]
        logits = self._forward.alone(ids, len(row.job.ids) - 1, staged).logits[:, -1]
        best, margin = self._chosen(logits.astype(mx.float32), [row], 0, 0.0)
        mx.eval(best, margin)
        return int(np.array(best)[0]), float(np.array(margin)[0])

    def _chosen(
        self, logits: mx.array, rows: Sequence[Row], later: int, slack: float
    ) -> tuple[mx.array, mx.array]:
        """Each row's next token, and how clear it is; `slack`: see `narrowing`."""
        scores = self._scores(logits, rows, later)
        if not any(row.sampling.narrows for row in rows):
            return best_two(scores)
        wide, narrow = narrowing(logits, [row.sampling for row in rows], slack)
        best, margin = best_two(mx.where(logits >= wide, scores, -mx.inf))
        sure = mx.argmax(mx.where(logits >= narrow, scores, -mx.inf), axis=-1)
        return best, mx.where(best == sure, margin, 0.0)

    def _scores(self, scores: mx.array, rows: Sequence[Row], later: int) -> mx.array:
        heat = [row.sampling.temperature for row in rows]
        if max(heat) <= 0:
            return scores
        # argmax(logits / t + Gumbel noise) is a draw from softmax(logits / t).
        noise = [self._noise(row, scores.shape[-1], len(row.tokens) + later) for row in rows]
        return scores / mx.array([t if t > 0 else 1.0 for t in heat])[:, None] + mx.stack(noise)

    def _noise(self, row: Row, size: int, place: int) -> mx.array:
        if row.sampling.temperature <= 0:
            return mx.zeros((size,))
        name = f"{row.sampling.seed}:{row.job.key}:{place}"
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return mx.random.gumbel((size,), key=mx.random.key(key))

    def _take(self, row: Row, token: int) -> FinishReason | None:
        if token in self._stop_ids:
            return "stop"
        row.tokens.append(token)
        return "length" if len(row.tokens) >= row.sampling.max_tokens else None

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


def _goes_on(row: Row) -> bool:
    """Whether the row may need a token after the one that is under way."""
    return not row.done and len(row.tokens) + 1 < row.sampling.max_tokens


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
