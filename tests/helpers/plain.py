"""The plainest way to run a row: uncached, alone, by other means than the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_steer.conditions import Intervention
from mlx_steer.engine.jobs import Job
from mlx_steer.model.load import Model


class _Changed:
    """A decoder block in a wrapper that changes its output; its attributes are the block's."""

    def __init__(self, block: nn.Module, change: Callable[[mx.array], mx.array]) -> None:
        self._block = block
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return self._change(self._block(*args, **kwargs))


def plain_logits(
    model: Model,
    ids: Sequence[int],
    interventions: Sequence[Intervention],
    split: int,
    answer: int | None = None,
) -> mx.array:
    """Logits of one whole sequence, shape (positions, vocabulary), by other means than the package.

    Uncached, with blocks wrapped instead of subclassed, and operators as their definitions say;
    `split` is the position of the last prompt token, `answer` that of the token that ends the
    thinking; None if there is no thinking.
    """
    start = split if answer is None else answer

    def changing(items: list[Intervention]) -> Callable[[mx.array], mx.array]:
        def change(hidden: mx.array) -> mx.array:
            out = hidden
            at = mx.arange(hidden.shape[1])[None, :, None]
            for item in items:
                vector = mx.array(item.vector)
                unit = vector / mx.linalg.norm(vector)
                projection = (hidden @ unit)[..., None] * unit
                difference = {
                    "add": item.strength * vector,
                    "ablate": -item.strength * projection,
                    "clamp": item.strength * unit - projection,
                }[item.operator]
                inside = {
                    "all": at >= 0,
                    "generated": at >= split,
                    "prompt": at < split,
                    "thinking": (at >= split) & (at < start),
                    "answer": at >= start,
                }
                out = out + mx.where(inside[item.scope], difference, 0.0)
            return out

        return change

    blocks = model.network.model.layers
    before = list(blocks)
    for layer in {i.layer for i in interventions}:
        here = [i for i in interventions if i.layer == layer]
        blocks[layer] = _Changed(before[layer], changing(here))
    try:
        logits: mx.array = model.network(mx.array(list(ids))[None])[0]
    finally:
        blocks[:] = before
    return logits


def plain_tokens(
    model: Model, job: Job, max_tokens: int, thinking_end: int | tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """A job's greedy response, all of the sequence computed anew for every token.

    With `thinking_end` it begins with thinking, which the first such token, or tokens, end.
    """
    end = (thinking_end,) if isinstance(thinking_end, int) else thinking_end or ()
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        acts, split, ids = job.condition.interventions, len(job.ids) - 1, [*job.ids, *tokens]
        ends = (i for i in range(len(tokens)) if tuple(tokens[: i + 1][-len(end) :]) == end)
        thought = next(ends, len(tokens))
        answer = None if thinking_end is None else len(job.ids) + thought
        best = int(mx.argmax(plain_logits(model, ids, acts, split, answer)[-1]).item())
        if best in model.chat.stop_ids:
            break
        tokens.append(best)
    return tuple(tokens)
