"""Perplexity of responses under the unsteered model, given the same prompt; batched.

Each prompt is run once for all its responses. Which responses are run together follows from the
keys alone, so an interrupted run gives the same digits as an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.limits import LOGITS_AT_ONCE
from mlx_steer.engine.prefill import Prefill, Prefilled
from mlx_steer.model.load import Model


@dataclass(frozen=True)
class Answer:
    """A response to be scored.

    Attributes:
        key: Its row's key.
        ids: The prompt's token ids.
        tokens: The response's token ids.
        head: So many of the prompt's first tokens are run once for all prompts that begin so. It
            must not depend on which answers are scored today: the last digits depend on it.
    """

    key: str
    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    head: int = 0


def perplexities(
    model: Model, answers: Sequence[Answer]
) -> Iterator[list[tuple[str, float | None]]]:
    """Perplexity exp(mean negative log-likelihood per token) of each response.

    Args:
        model: The model, unsteered.
        answers: All the responses there are: a prompt's responses are scored together.

    Yields:
        For each prompt: (key, perplexity to 4 significant digits) of all its responses; None for a
        response without tokens.
    """
    groups: dict[tuple[int, ...], list[Answer]] = {}
    for answer in sorted(answers, key=lambda a: a.key):
        groups.setdefault(answer.ids, []).append(answer)
    vocabulary = int(model.config.get("vocab_size") or 50_000)
    with forward_of(model.network) as forward:
        prefill = Prefill(forward)
        heads: dict[tuple[int, ...], Prefilled] = {}
        for ids, group in sorted(groups.items(), key=lambda g: (len(g[0]), g[0])):
            scored: list[tuple[str, float | None]] = [(a.key, None) for a in group if not a.tokens]
            full = [a for a in group if a.tokens]
            head = ids[: min(group[0].head, len(ids) - 2)] if len(ids) > 1 else ()
            if head and head not in heads:
                heads[head] = prefill.run([head])
            start = heads[head].rows([0]) if head else None
            base = prefill.run([ids[len(head) : -1]], start=start) if len(ids) > 1 else None
            longest = max((len(a.tokens) for a in full), default=1)
            step = max(1, LOGITS_AT_ONCE // (longest * vocabulary))
            for i in range(0, len(full), step):
                part = full[i : i + step]
                start = base.rows([0] * len(part)) if base else prefill.forward.fresh(len(part))
                logits = prefill.logits([(ids[-1], *a.tokens[:-1]) for a in part], start)
                scored += zip((a.key for a in part), _perplexity(logits, part), strict=True)
            yield scored
            mx.clear_cache()


def _perplexity(logits: mx.array, answers: Sequence[Answer]) -> list[float]:
    longest = logits.shape[1]
    targets = mx.array([[*a.tokens, *[0] * (longest - len(a.tokens))] for a in answers])
    exact = logits.astype(mx.float32)
    chosen = mx.take_along_axis(exact, targets[..., None], axis=-1)[..., 0]
    loss = _log_sum_exp(exact) - np.array(chosen).astype(np.float64)
    means = [float(row[: len(a.tokens)].mean()) for row, a in zip(loss, answers, strict=True)]
    return [float(f"{math.exp(min(mean, 700.0)):.4g}") for mean in means]


def _log_sum_exp(scores: mx.array) -> NDArray[np.float64]:
    """log(sum(exp(scores))) over the last axis."""
    if mx.default_device() != mx.Device(mx.cpu):
        return np.array(mx.logsumexp(scores, axis=-1)).astype(np.float64)
    # MLX's exponential takes one number at a time on a CPU, numpy's some sixteen.
    values = np.array(scores, copy=False)
    top = values.max(axis=-1, keepdims=True)
    sums = np.exp(values - top).sum(axis=-1, dtype=np.float64)
    result: NDArray[np.float64] = np.log(sums) + top[..., 0]
    return result
