"""How much likelier a response is under one system prompt than under another.

The mean over its first tokens of log p(token | one prompt) - log p(token | other prompt), under the
unsteered model. Only the first tokens of every response are read, and of all responses equally
many: a style predicts itself, so that the ratio falls with the length of what is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import mlx.core as mx

from mlx_steer.engine.forward import Ids
from mlx_steer.engine.guard import forward_of
from mlx_steer.engine.likelihood import Float64, Likelihood, grouped, packed
from mlx_steer.model.load import Model
from mlx_steer.sentences import JUDGED_TOKENS


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


def units(answers: Sequence[Contrasted]) -> list[list[Contrasted]]:
    """Responses in the groups that are read together, those to one prompt in one group.

    The last digits of a ratio depend on its group: it is to be read whole or not at all.

    Args:
        answers: All that belong together, such as the rows that a stage makes.
    """
    prompts = grouped(sorted(answers, key=lambda a: a.key), lambda a: (a.positive, a.negative))
    # Prompts of like length together, so that little is padded.
    ordered = sorted(prompts.items(), key=lambda one: (len(one[0][0]), one[0]))
    return packed(group for _, group in ordered)


def log_ratios(
    model: Model,
    groups: Sequence[Sequence[Contrasted]],
    heads: tuple[int, int] = (0, 0),
    masked: Collection[int] = (),
) -> Iterator[list[tuple[str, LogRatio]]]:
    """Log-ratios of responses.

    Args:
        model: The model, unsteered.
        groups: Of `units`.
        heads: How many first tokens all prompts share, on either side; run once.
        masked: Token ids that the masked ratio leaves out.

    Yields:
        For each group: (key, ratio) of all its responses.
    """
    with forward_of(model.network) as forward:
        likelihood = Likelihood(model, forward)
        for group in groups:
            found = [(a.key, LogRatio(None, None)) for a in group if not a.tokens]
            prompts = grouped((a for a in group if a.tokens), lambda a: (a.positive, a.negative))
            if prompts:
                responses = [[a.tokens[:JUDGED_TOKENS] for a in own] for own in prompts.values()]
                one, other = (
                    likelihood.log_probs([both[side] for both in prompts], responses, heads[side])
                    for side in (0, 1)
                )
                asked = chain(*prompts.values())
                read = zip(asked, chain(*responses), chain(*one), chain(*other), strict=True)
                for answer, tokens, positive, negative in read:
                    found.append((answer.key, _ratio(positive - negative, tokens, masked)))
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
