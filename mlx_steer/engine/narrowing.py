"""Sampling among some of the tokens: `top_p`, `top_k` and `min_p`, for each row its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from mlx_steer.engine.jobs import Sampling


def narrowing(
    logits: mx.array, samplings: Sequence[Sampling], slack: float
) -> tuple[mx.array, mx.array]:
    """The lowest logit that each row may sample.

    Logits of a batch differ in their last digits from the row's own, which can move a token across
    the bound. So there are two: one that lets too much pass and one that lets too little. Where
    both give the same token, the row alone gives it too.

    Args:
        logits: Float32, shape (rows, vocabulary).
        samplings: Of each row.
        slack: How far logits, and sums of probabilities, may be off.

    Returns:
        The lower bound and the higher one, each of shape (rows, 1); both are the exact one if there
        is no slack.
    """
    every = mx.full((len(samplings), 1), -mx.inf)
    wide, narrow = every, every
    if any(s.narrows and s.min_p > 0 for s in samplings):
        part = [math.log(s.min_p) if s.narrows and s.min_p > 0 else -mx.inf for s in samplings]
        wide = narrow = mx.max(logits, axis=-1, keepdims=True) + _column(part)
    if any(s.narrows and (s.top_k > 0 or s.top_p < 1) for s in samplings):
        ordered = -mx.sort(-logits, axis=-1)
        size = logits.shape[-1]
        if any(s.narrows and s.top_k > 0 for s in samplings):
            counts = [min(s.top_k, size) if s.narrows and s.top_k > 0 else size for s in samplings]
            kth = mx.take_along_axis(ordered, _column(counts).astype(mx.int32) - 1, axis=-1)
            wide, narrow = mx.maximum(wide, kth), mx.maximum(narrow, kth)
        if any(s.narrows and s.top_p < 1 for s in samplings):
            probable = mx.softmax(ordered, axis=-1, precise=True)
            before = mx.cumsum(probable, axis=-1) - probable
            # A part above 1 keeps all, whatever the sum's last digits.
            part = [s.top_p if s.narrows and s.top_p < 1 else 2.0 for s in samplings]
            wide = mx.maximum(wide, _lowest_within(ordered, before, _column(part) + slack))
            narrow = mx.maximum(narrow, _lowest_within(ordered, before, _column(part) - slack))
    return wide - slack, mx.minimum(narrow + slack, mx.max(logits, axis=-1, keepdims=True))


def _lowest_within(ordered: mx.array, before: mx.array, part: mx.array) -> mx.array:
    """The lowest logit of those that are needed to reach a sum of probabilities."""
    needed = mx.maximum(mx.sum(before < part, axis=-1, keepdims=True), 1)
    return mx.take_along_axis(ordered, needed.astype(mx.int32) - 1, axis=-1)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(list(values), mx.float32)[:, None]
