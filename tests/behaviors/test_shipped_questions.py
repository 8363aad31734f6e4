"""Questions for any behavior and the shelf of opposed sentences: complete, distinct, checkable."""

import json
import re
from collections import Counter
from importlib import resources
from itertools import combinations
from typing import Any

import pytest
import yaml

from mlx_steer.behaviors import list_behaviors, load_behavior
from mlx_steer.checks.lint.findings import words

NEAR = 0.6
"""The share of common words from which two questions count as one."""

_FOLDER = resources.files("mlx_steer.behaviors")


def _lines(name: str) -> list[dict[str, Any]]:
    text = _FOLDER.joinpath("questions", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


NEUTRAL, FACTUAL = _lines("neutral.jsonl"), _lines("factual.jsonl")
SHELF: list[dict[str, str]] = yaml.safe_load(_FOLDER.joinpath("shelf.yaml").read_text("utf-8"))


def alike(one: str, other: str) -> float:
    """The share of words that two texts have in common."""
    first, second = words(one), words(other)
    return len(first & second) / len(first | second)


def test_neutral_questions_are_enough_for_extraction_choice_and_measurement() -> None:
    assert Counter(one["split"] for one in NEUTRAL) == {"extract": 60, "select": 40, "test": 60}
    assert all(set(one) == {"id", "split", "category", "prompt"} for one in NEUTRAL)
    kinds = {
        split: Counter(one["category"] for one in NEUTRAL if one["split"] == split)
        for split in ("extract", "select", "test")
    }
    assert len(kinds["test"]) == 10
    assert set(kinds["extract"].values()) == set(kinds["test"].values()) == {6}
    assert set(kinds["select"].values()) == {4}


def test_no_two_neutral_questions_are_alike_nor_like_a_prompt_of_a_behavior() -> None:
    own = [(one["id"], one["prompt"]) for one in NEUTRAL]
    others = [
        (one.id, one.prompt)
        for behavior in map(load_behavior, list_behaviors())
        for one in (*behavior.pairs, *behavior.prompts)
    ]
    pairs = [*combinations(own, 2), *((one, other) for one in own for other in others)]
    assert [(a, b) for (a, x), (b, y) in pairs if alike(x, y) > NEAR] == []


@pytest.mark.parametrize("questions", [NEUTRAL, FACTUAL], ids=["neutral", "factual"])
def test_ids_and_texts_of_questions_are_unique_and_clean(questions: list[dict[str, Any]]) -> None:
    for field in ("id", "prompt"):
        values = [one[field] for one in questions]
        assert len({value.casefold() for value in values}) == len(values)
        assert all(value == " ".join(value.split()) for value in values)


def test_factual_questions_have_answers_that_the_question_does_not_give_away() -> None:
    assert len(FACTUAL) == 100
    assert all(set(one) == {"id", "category", "prompt", "answers"} for one in FACTUAL)
    for one in FACTUAL:
        assert one["answers"] and len(set(one["answers"])) == len(one["answers"])
        for answer in one["answers"]:
            assert re.search(r"\w", answer)
            assert not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", one["prompt"], re.I), one


def test_the_shelf_holds_ten_pairs_of_sentences_of_like_form_and_length() -> None:
    assert len(SHELF) == len({one["name"] for one in SHELF}) == 10
    assert not {one["name"] for one in SHELF} & set(list_behaviors())
    for one in SHELF:
        assert list(one) == ["name", "title", "positive", "negative", "expect"]
        sides = one["positive"], one["negative"]
        assert all(side.startswith("You are ") and side.endswith(".") for side in sides)
        assert abs(len(sides[0]) - len(sides[1])) < 0.1 * max(map(len, sides))
        assert len({side.count(". ") for side in sides}) == 1
        assert 0.3 < alike(*sides) < 1, one["name"]
        assert "\n" not in one["expect"] and len(one["expect"]) <= 100
