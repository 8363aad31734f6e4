"""A behavior of two opposed sentences: everything else is shipped, or written by the model.

After Chen et al. 2025, "Persona vectors". Neutral questions serve in place of prompts: some for the
model to answer under either sentence, some to choose a cell on and some to test it; short factual
questions tell what steering costs in knowledge.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from mlx_steer.behaviors.fields import normal
from mlx_steer.behaviors.items import LOG_RATIO, Behavior, PromptItem, Sentences, pairs_sha256
from mlx_steer.behaviors.load import load_behavior, load_prompts
from mlx_steer.errors import DataError
from mlx_steer.files import check_text, parse_yaml, read_text
from mlx_steer.sentences import TwoSentences

NAME = "two_sentences"
POSITIVE, NEGATIVE = "positive", "negative"
"""The names of the two sentences as system prompts."""


@dataclass(frozen=True)
class OnShelf:
    """A shipped pair of opposed sentences.

    Attributes:
        name: Of the behavior.
        title: Both poles, for people.
        positive: The sentence that the vector leads to.
        negative: The sentence it leads away from.
        expect: One line on what to expect.
    """

    name: str
    title: str
    positive: str
    negative: str
    expect: str


@cache
def shelf() -> tuple[OnShelf, ...]:
    """The shipped pairs of opposed sentences."""
    source = resources.files("mlx_steer.behaviors").joinpath("shelf.yaml")
    entries = parse_yaml(read_text(source, DataError), source, DataError)
    assert isinstance(entries, list)
    return tuple(OnShelf(**entry) for entry in entries)


def from_shelf(name: str) -> TwoSentences | None:
    """The shipped sentences of a name; None if there are none."""
    found = next((one for one in shelf() if one.name == name), None)
    if found is None:
        return None
    return TwoSentences(positive=found.positive, negative=found.negative, name=name)


def behavior_of(said: str | TwoSentences) -> Behavior:
    """What an experiment file says under `behavior`: a name, a folder, or two sentences.

    Raises:
        DataError: See `load_behavior` and `opposed`.
    """
    if isinstance(said, str):
        return load_behavior(said)
    return opposed(said.positive, said.negative, said.name, rules=said.rules, prompts=said.prompts)


def opposed(
    positive: str,
    negative: str,
    name: str = NAME,
    *,
    rules: str | None = None,
    prompts: str | Path | None = None,
) -> Behavior:
    """The behavior that two opposed sentences say.

    Args:
        positive: What the vector is to lead to; works as a system prompt.
        negative: What it is to lead away from.
        name: Short, as in reports.
        rules: A judge of rules to compare the model's own judgement with.
        prompts: A file of prompts in place of the neutral questions for choice and test; it may
            hold other prompts, which should not show the behavior, and prompts to fit a gate on.

    Raises:
        DataError: If a sentence is empty or no text, both are the same, or the file is not usable.
    """
    for side, text in ((POSITIVE, positive), (NEGATIVE, negative)):
        if not text.strip():
            raise DataError(f"the {side} sentence is empty; say how the assistant should answer")
        try:
            check_text(text)
        except ValueError as error:
            raise DataError(f"the {side} sentence {error}") from None
    if normal(positive) == normal(negative):
        raise DataError(
            "the positive and the negative sentence are the same, so that nothing lies between "
            "them; write opposed ones, such as a pirate's and a plain assistant's"
        )
    asked = neutral_questions()
    if prompts is not None:
        own = load_prompts(prompts)
        asked = (*(q for q in asked if q.split == "extract"), *own)
    return Behavior(
        name=name,
        title=f"{name.replace('_', ' ').capitalize()}",
        description=f"Steering from {negative.strip()!r} to {positive.strip()!r} "
        "Responses are judged by their likeness to answers given under either sentence.",
        judge=LOG_RATIO,
        verdicts={
            "shown": f"answered {name}",
            "absent": f"not {name}",
            "incoherent": "incoherent",
        },
        sets={"target": "questions", "other": "other questions"},
        system_prompts={POSITIVE: positive, NEGATIVE: negative},
        openings={},
        tools=(),
        pairs=(),
        prompts=(*asked, *factual_questions()),
        sha256=pairs_sha256(()),
        sentences=Sentences(positive, negative, rules),
    )


@cache
def neutral_questions() -> tuple[PromptItem, ...]:
    """Shipped questions about everyday things, by split: extract, select and test."""
    return tuple(
        PromptItem(
            id=one["id"],
            prompt=one["prompt"],
            set="target",
            split=one["split"],
            category=one["category"],
        )
        for one in _lines("neutral.jsonl")
    )


@cache
def factual_questions() -> tuple[PromptItem, ...]:
    """Shipped short questions with one right answer; `check` holds the ways to write it."""
    return tuple(
        PromptItem(
            id=one["id"],
            prompt=one["prompt"],
            set="target",
            split="facts",
            category=one["category"],
            check={"answers": one["answers"]},
        )
        for one in _lines("factual.jsonl")
    )


def pair_id(question: str, number: int) -> str:
    """The name of the pair of a question's answers, counted from 0."""
    return question if number == 0 else f"{question}.{number + 1}"


def _lines(name: str) -> list[Any]:
    source = resources.files("mlx_steer.behaviors").joinpath("questions", name)
    return [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
