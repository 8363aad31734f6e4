"""Perplexity of responses under the unsteered model, given the same prompt; batched.

Each prompt is run once for all its responses. Which responses are run together follows from the
keys alone, so an interrupted run gives the same digits as an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.likelihood import Float64, Likelihood
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
    with forward_of(model.network) as forward:
        likelihood = Likelihood(model, forward)
        for ids, group in sorted(groups.items(), key=lambda g: (len(g[0]), g[0])):
            scored: list[tuple[str, float | None]] = [(a.key, None) for a in group if not a.tokens]
            full = [a for a in group if a.tokens]
            (read,) = likelihood.log_probs([ids], [[a.tokens for a in full]], group[0].head)
            scored += zip((a.key for a in full), map(_perplexity, read), strict=True)
            yield scored
            mx.clear_cache()


def _perplexity(log_probs: Float64) -> float:
    loss = -float(log_probs.mean())
    return float(f"{math.exp(min(loss, 700.0)):.4g}")
