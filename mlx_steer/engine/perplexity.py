"""Perplexity of responses under the unsteered model, given the same prompt; batched.

Each prompt is run once for all its responses. Which responses are run together follows from what is
to be scored alone, so an interrupted run gives the same digits as an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import mlx.core as mx

from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.likelihood import Float64, Likelihood, grouped, packed
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


def units(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Responses in the groups that are read together, those to one prompt in one group.

    Args:
        answers: All that belong together, such as the rows that a stage scores.
    """
    found: list[list[Answer]] = []
    heads = grouped(sorted(answers, key=lambda a: a.key), lambda a: a.ids[: a.head])
    for _, own in sorted(heads.items()):
        # Prompts of like length together, so that little is padded.
        ordered = sorted(grouped(own, lambda a: a.ids).items(), key=lambda p: (len(p[0]), p[0]))
        found += packed(group for _, group in ordered)
    return found


def perplexities(
    model: Model, groups: Sequence[Sequence[Answer]]
) -> Iterator[list[tuple[str, float | None]]]:
    """Perplexity exp(mean negative log-likelihood per token) of each response.

    Args:
        model: The model, unsteered.
        groups: Of `units`.

    Yields:
        For each group: (key, perplexity to 4 significant digits) of all its responses; None for a
        response without tokens.
    """
    with forward_of(model.network) as forward:
        likelihood = Likelihood(model, forward)
        for group in groups:
            scored: list[tuple[str, float | None]] = [(a.key, None) for a in group if not a.tokens]
            prompts = grouped((a for a in group if a.tokens), lambda a: a.ids)
            if prompts:
                responses = [[a.tokens for a in own] for own in prompts.values()]
                read = likelihood.log_probs([*prompts], responses, group[0].head)
                asked = chain(*prompts.values())
                scored += [
                    (answer.key, _perplexity(values))
                    for answer, values in zip(asked, chain(*read), strict=True)
                ]
            yield scored
            mx.clear_cache()


def _perplexity(log_probs: Float64) -> float:
    loss = -float(log_probs.mean())
    return float(f"{math.exp(min(loss, 700.0)):.4g}")
