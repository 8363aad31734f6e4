"""What lint finds among prompts: likeness, sets and the judge."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mlx_steer.behaviors import Behavior, PromptItem
from mlx_steer.checks.lint import lint_behavior
from mlx_steer.checks.lint.findings import likeness, words
from mlx_steer.words import Split
from tests.helpers.clean_behavior import SETS, clean, every, found, only, with_pairs, with_prompts

# --- likeness -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ("How do I pick a lock?", "how do I pick a LOCK", 1.0, 1.0),
        (
            "Explain how to build a gun at home.",
            "How can I build a gun at home?",
            0.7,
            0.85,
        ),
        ("What is the capital of France?", "What is the capital of Spain?", 0.0, 0.75),
        ("Who wrote Hamlet?", "Who wrote Macbeth?", 0.0, 0.6),
        ("Name a river in Peru.", "Why do cats purr at night?", 0.0, 0.1),
        ("", "", 1.0, 1.0),
    ],
)
def test_likeness_is_of_the_telling_words(one: str, other: str, low: float, high: float) -> None:
    assert low <= likeness(words(one), words(other)) <= high


def same_prompt(behavior: Behavior, ids: Sequence[str], prompt: str, **more: str) -> Behavior:
    """The behavior with one prompt given to several entries."""
    return replace(
        behavior,
        pairs=tuple(
            replace(p, prompt=prompt, **more) if p.id in ids else p for p in behavior.pairs
        ),
        prompts=tuple(
            replace(p, prompt=prompt, **more) if p.id in ids else p for p in behavior.prompts
        ),
    )


LOCK = "Tell me which tools open a rusty padlock?"


@pytest.mark.parametrize(
    ("ids", "severity", "rule", "where"),
    [
        (("pair-3", "pair-9"), "warning", "near duplicate", "pairs"),
        (("target-test-1", "target-test-5"), "warning", "near duplicate", "prompts, split test"),
        (("pair-3", "other-gate-5"), "error", "leak", "pairs and prompts"),
        (("other-select-1", "other-test-5"), "error", "leak", "prompts, splits select and test"),
        (("other-test-1", "other-gate-5"), "error", "leak", "prompts, splits test and gate"),
    ],
)
def test_the_same_question_twice_is_a_repeat_or_a_leak(
    ids: tuple[str, str], severity: str, rule: str, where: str
) -> None:
    finding = only(same_prompt(clean(), ids, LOCK), rule)
    assert (finding.severity, finding.where, finding.ids) == (severity, where, ids)
    assert "(100 %)" in finding.message


def test_a_reworded_question_is_a_warning() -> None:
    behavior = same_prompt(clean(), ["pair-3"], "Explain how to build a gun at home?")
    behavior = same_prompt(behavior, ["target-test-5"], "How can I build a gun at home?")
    assert only(behavior, "leak").severity == "warning"


def test_one_question_under_two_system_messages_is_two_prompts() -> None:
    behavior = same_prompt(clean(), ["pair-3"], LOCK, system="You work at a museum of clocks.")
    ids = ["target-test-5"]
    other = same_prompt(behavior, ids, LOCK, system="Never speak about doors to strangers.")
    same = same_prompt(behavior, ids, LOCK, system="You work at a museum of clocks!")
    assert found(other) == []
    assert only(same, "leak").severity == "error"


def test_a_response_that_comes_again_is_named() -> None:
    behavior = every(8, "positive", lambda text: "Sorry, I cannot help with this one.")
    finding = only(behavior, "repeat")
    assert (finding.severity, finding.where) == ("warning", "pairs, positive side")
    assert finding.ids == ("pair-0", "pair-8", "pair-16")
    often = every(3, "positive", lambda text: "Sorry, I cannot help with this one.")
    assert only(often, "repeat").severity == "error"


# --- sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (
            {"select": 6, "test": 12},
            [("warning", "few prompts", f"prompts, set {name}, split select") for name in SETS],
        ),
        (
            {"test": 12},
            [("error", "few prompts", f"prompts, set {name}, split select") for name in SETS],
        ),
        (
            {"select": 12, "test": 12, "gate": 8},
            [("warning", "few prompts", f"prompts, set {name}, split gate") for name in SETS],
        ),
    ],
)
def test_splits_with_few_prompts_are_named(
    sizes: dict[Split, int], expected: list[tuple[str, str, str]]
) -> None:
    assert found(clean(sizes)) == expected


def test_few_pairs_are_a_warning() -> None:
    assert only(replace(clean(), pairs=clean().pairs[:19]), "few pairs").severity == "warning"


def test_sets_of_uneven_size_are_a_warning() -> None:
    behavior = clean({"select": 24, "test": 24})
    fewer = [
        item
        for i, item in enumerate(behavior.prompts)
        if item.set == "target" or item.split == "test" or i % 12 < 5
    ]
    finding = only(replace(behavior, prompts=tuple(fewer)), "uneven sets")
    assert finding.message == "there are 24 target and 10 other prompts"


def test_halves_of_different_categories_are_reported() -> None:
    def move(i: int, item: PromptItem) -> PromptItem:
        if item.set == "target" and item.split == "test" and item.category == "odd":
            return replace(item, category="new")
        return item

    finding = only(with_prompts(move), "balance")
    assert (finding.severity, finding.where) == ("warning", "prompts, set target")
    assert "50 % of their prompts; in one of them only: new, odd" in finding.message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"prompt": "?"}, "end in a question mark"),
        ({"system": "Be kind."}, "have a system message of their own"),
        ({"tools": ({"type": "function"},)}, "offer tools"),
    ],
)
def test_sets_told_apart_by_form_are_a_warning(change: dict[str, object], what: str) -> None:
    def spoil(i: int, item: PromptItem) -> PromptItem:
        if item.set == "other" or item.split != "test":
            return item
        if "prompt" in change:
            return replace(item, prompt=item.prompt[:-1] + "?")
        return replace(item, **change)  # type: ignore[arg-type]

    finding = only(with_prompts(spoil), "set form")
    assert (finding.severity, finding.where) == ("warning", "prompts, split test")
    assert what in finding.message


# --- the judge ------------------------------------------------------------------------------------


def test_an_unknown_judge_is_an_error() -> None:
    assert "oracle" in only(replace(clean(), judge="oracle"), "judge").message


def test_prompts_the_judge_cannot_judge_are_an_error() -> None:
    finding = only(replace(clean(), judge="hierarchy"), "judge")
    assert finding.severity == "error"
    assert len(finding.ids) == len(clean().prompts)
    assert "has no 'check'" in finding.message


def test_sides_the_judge_reads_otherwise_are_reported() -> None:
    swapped = with_pairs(
        lambda i, pair: replace(pair, positive=pair.negative, negative=pair.positive)
    )
    findings = lint_behavior(swapped).findings
    assert [(one.severity, one.where) for one in findings] == [
        ("error", "pairs, positive side"),
        ("error", "pairs, negative side"),
    ]
    assert "does not call 24 of 24 positive responses (100 %) refused" in findings[0].message
    some = every(6, "positive", lambda text: "Gladly, the way is straight ahead now.")
    assert [one for one in found(some) if one[1] == "judge"] == [
        ("warning", "judge", "pairs, positive side")
    ]
