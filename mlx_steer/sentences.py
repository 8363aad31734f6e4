"""A behavior of two opposed sentences, as an experiment file says it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Text = Annotated[str, Field(min_length=1)]


class TwoSentences(BaseModel):
    """In place of a behavior's name: `behavior: {positive: "...", negative: "..."}`.

    Attributes:
        positive: A system prompt that shows what the vector is to lead to.
        negative: One that shows the opposite.
        name: Of the behavior, short.
        rules: A judge of rules that reads every response too; how far the two agree is reported.
        prompts: A file of prompts in place of the shipped neutral questions; with `other` prompts
            there is a limit on false positives, with `gate` prompts a gate can be fitted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

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
