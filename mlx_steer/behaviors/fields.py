"""What the files of a behavior may say, field by field."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from mlx_steer.behaviors.items import LOG_RATIO, Tool
from mlx_steer.files import check_text, one_line
from mlx_steer.words import PromptSet, Split, Verdict

MAX_TEXT = 100_000


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    if len(value) > MAX_TEXT:
        raise ValueError(f"has {len(value):,} characters; at most {MAX_TEXT:,} are read")
    return check_text(value)


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", value):
        raise ValueError("must be small letters, digits, '_' and '-', a letter or digit first")
    return value


_Text = Annotated[str, AfterValidator(_text)]

_Line = Annotated[_Text, AfterValidator(one_line)]


class Fields(BaseModel):
    """A record of a file: every field is known, typed and immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Entry(Fields):
    """What contrast pairs and prompts have in common."""

    id: _Line | None = None
    prompt: _Text
    category: _Line | None = None
    system: _Text | None = None
    tools: bool = False


class PairEntry(Entry):
    """One entry of a file of contrast pairs."""

    positive: _Text
    negative: _Text

    @model_validator(mode="after")
    def _responses_differ(self) -> Self:
        if normal(self.positive) == normal(self.negative):
            raise ValueError("positive and negative are the same text")
        return self


class PromptEntry(Entry):
    """One entry of a file of prompts."""

    set: PromptSet
    split: Split = "test"
    check: dict[str, JsonValue] | None = None


def _has(*keys: str) -> Callable[[Mapping[str, object]], Mapping[str, object]]:
    def check(value: Mapping[str, object]) -> Mapping[str, object]:
        missing = [key for key in keys if key not in value]
        if missing:
            raise ValueError(f"needs {' and '.join(map(repr, missing))} as well")
        return value

    return check


class SentencesEntry(Fields):
    """Two opposed sentences in `behavior.yaml`."""

    positive: _Text
    negative: _Text
    rules: _Line | None = None

    @model_validator(mode="after")
    def _opposed(self) -> Self:
        if normal(self.positive) == normal(self.negative):
            raise ValueError("positive and negative are the same sentence; write opposed ones")
        return self


class BehaviorFile(Fields):
    """All of `behavior.yaml`."""

    name: Annotated[str, AfterValidator(_name)]
    title: _Line
    description: _Text
    judge: _Line
    verdicts: Annotated[dict[Verdict, _Text], AfterValidator(_has("shown", "absent"))]
    sets: Annotated[dict[PromptSet, _Text], AfterValidator(_has("target"))]
    system_prompts: dict[str, _Text] = Field(default_factory=dict)
    openings: dict[Literal["shown", "absent"], list[_Text]] = Field(default_factory=dict)
    tools: list[Tool] = Field(default_factory=list)
    sentences: SentencesEntry | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.sentences is None and "other" not in self.sets:
            raise ValueError("sets: needs 'other' as well")
        if (self.judge == LOG_RATIO) != (self.sentences is not None):
            raise ValueError(f"sentences and 'judge: {LOG_RATIO}' belong together")
        return self


def normal(text: str) -> str:
    """A text without differences of case and spacing."""
    return " ".join(text.split()).casefold()
