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

from mlx_steer.model import Model
from mlx_steer.prefill import Prefill
from mlx_steer.steering import steerable

# Logits held at a time: rows x tokens x vocabulary.
_LOGITS_AT_ONCE = 50_000_000


@dataclass(frozen=True)
class Answer:
    """A response to be scored.

    Attributes:
        key: Its row's key.
        ids: The prompt's token ids.
        tokens: The response's token ids.
    """

    key: str
    ids: tuple[int, ...]
    tokens: tuple[int, ...]


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
    with steerable(model.network) as sites:
        prefill = Prefill(model.network, sites)
        for ids, group in sorted(groups.items(), key=lambda g: (len(g[0]), g[0])):
            scored: list[tuple[str, float | None]] = [(a.key, None) for a in group if not a.tokens]
            full = [a for a in group if a.tokens]
            base = prefill.run([ids[:-1]]) if len(ids) > 1 else None
            longest = max((len(a.tokens) for a in full), default=1)
            step = max(1, _LOGITS_AT_ONCE // (longest * vocabulary))
            for i in range(0, len(full), step):
                part = full[i : i + step]
                start = base.rows([0] * len(part)) if base else prefill.fresh(len(part))
                logits = prefill.logits([(ids[-1], *a.tokens[:-1]) for a in part], start)
                scored += zip((a.key for a in part), _perplexity(logits, part), strict=True)
            yield scored
            mx.clear_cache()


def _perplexity(logits: mx.array, answers: Sequence[Answer]) -> list[float]:
    longest = logits.shape[1]
    targets = mx.array([[*a.tokens, *[0] * (longest - len(a.tokens))] for a in answers])
    exact = logits.astype(mx.float32)
    chosen = mx.take_along_axis(exact, targets[..., None], axis=-1)[..., 0]
    loss = np.array(mx.logsumexp(exact, axis=-1) - chosen).astype(np.float64)
    means = [float(row[: len(a.tokens)].mean()) for row, a in zip(loss, answers, strict=True)]
    return [float(f"{math.exp(min(mean, 700.0)):.4g}") for mean in means]
