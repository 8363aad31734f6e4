"""How much likelier a response is under one system prompt than under another.

The mean over its first tokens of log p(token | one prompt) - log p(token | other prompt), under the
unsteered model. Only the first tokens of every response are read, and of all responses equally
many: a style predicts itself, so that the ratio falls with the length of what is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_steer.engine.forward import Ids
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.likelihood import Float64, Likelihood
from mlx_steer.model.load import Model

TOKENS = 32
"""So many first tokens of every response are read."""


@dataclass(frozen=True)
class Contrasted:
    """A response to a prompt under two system prompts.

    Attributes:
        key: Names it.
        positive: The prompt's token ids under the one.
        negative: The same under the other.
        tokens: The response's token ids.
    """

    key: str
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class LogRatio:
    """What was read of one response, in nats per token, to 4 decimals.

    Attributes:
        value: Of all tokens read; None for a response without any.
        masked: Without the tokens that the system prompts have too; None if none are left.
    """

    value: float | None
    masked: float | None


def log_ratios(
    model: Model,
    answers: Sequence[Contrasted],
    heads: tuple[int, int] = (0, 0),
    masked: Collection[int] = (),
) -> Iterator[list[tuple[str, LogRatio]]]:
    """Log-ratios of responses, those to one prompt together.

    Args:
        model: The model, unsteered.
        answers: Of each prompt all that are ever to be read with it: the last digits depend on it.
        heads: How many first tokens all prompts share, on either side; run once.
        masked: Token ids that the masked ratio leaves out.

    Yields:
        For each prompt: (key, ratio) of all its responses.
    """
    groups: dict[tuple[Ids, Ids], list[Contrasted]] = {}
    for answer in sorted(answers, key=lambda a: a.key):
        groups.setdefault((answer.positive, answer.negative), []).append(answer)
    with forward_of(model.network) as forward:
        likelihood = Likelihood(model, forward)
        for prompts, group in sorted(groups.items(), key=lambda g: (len(g[0][0]), g[0])):
            found = [(a.key, LogRatio(None, None)) for a in group if not a.tokens]
            full = [a for a in group if a.tokens]
            read = [a.tokens[:TOKENS] for a in full]
            positive, negative = (
                likelihood.log_probs(ids, read, head)
                for ids, head in zip(prompts, heads, strict=True)
            )
            for answer, tokens, one, other in zip(full, read, positive, negative, strict=True):
                found.append((answer.key, _ratio(one - other, tokens, masked)))
            yield found
            mx.clear_cache()


def _ratio(by_token: Float64, tokens: Ids, masked: Collection[int]) -> LogRatio:
    own = [value for value, token in zip(by_token, tokens, strict=True) if token not in masked]
    return LogRatio(
        value=round(float(by_token.mean()), 4),
        masked=round(float(sum(own)) / len(own), 4) if own else None,
    )


def tokens_of(model: Model, texts: Sequence[str]) -> frozenset[int]:
    """The token ids that spell a word of these texts, whatever its case and the space before it."""
    decode = model.chat.decode
    words = {
        word
        for text in texts
        for form in (text, text.lower(), text.title())
        for token in model.chat.response_ids(form)
        if (word := decode([token]).strip()).isalpha()
    }
    return frozenset(
        ids[0]
        for word in words
        for form in (word, word.lower(), word.title())
        for ids in (model.chat.response_ids(form), model.chat.response_ids(f" {form}"))
        if len(ids) == 1
    )
