"""A behavior of two opposed sentences, as an experiment file says it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from mlx_steer.search_config import Section

ANSWERS_TEMPERATURE = 0.7
"""At which several answers to a question are sampled."""

JUDGED_TOKENS = 32
"""So many first tokens of every response the judge of two sentences reads."""

FACT_TOKENS = 24
"""Of responses to short factual questions."""

_Text = Annotated[str, Field(min_length=1)]


class TwoSentences(Section):
    """In place of a behavior's name: `behavior: {positive: "...", negative: "..."}`.

    Attributes:
        positive: A system prompt that shows what the vector is to lead to.
        negative: One that shows the opposite.
        name: Of the behavior, short.
        rules: A judge of rules that reads every response too; how far the two agree is reported.
        prompts: A file of prompts in place of the shipped neutral questions; with `other` prompts
            there is a limit on false positives, with `gate` prompts a gate can be fitted.
    """

    positive: _Text
    negative: _Text
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")] = "two_sentences"
    rules: _Text | None = None
    prompts: _Text | None = None

    @model_validator(mode="after")
    def _opposed(self) -> Self:
        for side in ("positive", "negative"):
            if not getattr(self, side).strip():
                raise ValueError(f"the {side} sentence is empty; say how to answer")
        if self.positive.split() == self.negative.split():
            raise ValueError(
                "the two sentences are the same, so that nothing lies between them; write opposed "
                "ones"
            )
        return self
