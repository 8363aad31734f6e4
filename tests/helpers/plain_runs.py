"""Jobs of every kind, and the plainest way to run one: by other means than the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_steer.conditions import Condition, Intervention
from mlx_steer.engine.jobs import Job
from mlx_steer.model.load import Model
from tests.helpers.tiny import LAYERS, random_ids, random_vector


def effects(layers: int = LAYERS) -> dict[str, tuple[Intervention, ...]]:
    """Interventions of every kind: layers, strengths, operators, scopes and combinations."""
    a, b, c, d = (random_vector(i) for i in range(4))
    act = Intervention
    return {
        "base": (),
        "strength 0": (act(2, a, 0.0),),
        "first layer": (act(0, a, 1.0),),
        "layer 1, weak": (act(1, a, 0.4),),
        "layer 3": (act(3, b, 1.0),),
        "layer 3, strong": (act(3, b, 2.0),),
        "last layer": (act(layers - 1, c, 1.0),),
        "generated": (act(2, b, 1.5, scope="generated"),),
        "prompt": (act(2, d, 1.5, scope="prompt"),),
        "two layers": (act(1, a, 0.8), act(4, c, 1.0)),
        "two at one layer": (act(3, a, 0.8), act(3, b, -0.7)),
        "two scopes": (act(4, a, 1.0, scope="prompt"), act(2, b, 1.0, scope="generated")),
        "ablate": (act(2, d, 1.0, "ablate"),),
        "ablate half and add": (act(2, d, 0.5, "ablate"), act(2, a, 0.5)),
        "clamp": (act(4, c, 6.0, "clamp"),),
    }


def mixed_jobs(count: int = 45) -> list[Job]:
    """Jobs under all `effects` and three system prompts, with prompts of 10 to 57 tokens.

    Each system prompt is an opening that its prompts share; which effects meet which prompts is
    random, so that batches are not full products.
    """
    rng = np.random.default_rng(5)
    openings = {None: random_ids(100, 9), "brief": random_ids(101, 17), "long": random_ids(102, 30)}
    conditions = {
        (name, system): Condition(name, system, acts)
        for name, acts in effects().items()
        for system in openings
    }
    names, systems, lengths = list(effects()), list(openings), [1, 2, 5, 9, 14, 27]
    jobs: dict[str, Job] = {}
    while len(jobs) < count:
        name = names[len(jobs) % len(names)]
        system = systems[int(rng.integers(3))]
        length = lengths[int(rng.integers(6))]
        ids = openings[system] + random_ids(length, length + 1)[1:]
        key = f"{name} | {system} | {length}"
        jobs.setdefault(key, Job(key, ids, conditions[name, system]))
    return list(jobs.values())


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
