"""What lint finds in the sides of contrast pairs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_steer.behaviors import ContrastPair, PromptItem, list_behaviors, load_behavior
from mlx_steer.checks.lint import lint_behavior
from tests.helpers.clean_behavior import (
    SUBJECTS,
    clean,
    every,
    found,
    only,
    with_pairs,
    with_prompts,
)

# --- nothing to find ------------------------------------------------------------------------------


def test_a_clean_behavior_has_no_findings() -> None:
    assert lint_behavior(clean()).findings == ()


@pytest.mark.parametrize("name", list_behaviors())
def test_shipped_behaviors_have_no_errors(name: str) -> None:
    assert lint_behavior(load_behavior(name)).errors == ()


def test_the_template_for_new_behaviors_is_only_too_small() -> None:
    import mlx_steer

    behavior = load_behavior(Path(mlx_steer.__file__).parent / "behaviors" / "template")
    assert {one.rule for one in lint_behavior(behavior).findings} == {"few pairs", "few prompts"}


def test_the_report_gives_the_numbers_it_rests_on() -> None:
    def lengthen(i: int, pair: ContrastPair) -> ContrastPair:
        return replace(pair, positive="x" * 90, negative="y" * 100)

    numbers = lint_behavior(with_pairs(lengthen)).numbers
    assert (numbers["positive_characters"], numbers["negative_characters"]) == (90, 100)
    assert numbers["largest_pair_difference"] == 0.1
    assert numbers["prompts"]["target gate"]["count"] == 20
    assert set(numbers["length_auc"]) == {"select", "test", "gate"}


def test_errors_come_first() -> None:
    behavior = replace(clean(), judge="oracle", pairs=clean().pairs[:10])
    assert [severity for severity, *_ in found(behavior)] == ["error", "warning"]


# --- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("extra", "expected"), [(5, None), (9, "error")])
def test_sides_of_different_mean_length_are_an_error(extra: int, expected: str | None) -> None:
    # About 40 characters a side: 5 more are 11 %, 9 more 18 %.
    behavior = every(1, "negative", lambda text: text[:-1] + " " + "z" * (extra - 1) + ".")
    if expected is None:
        assert found(behavior) == []
    else:
        finding = only(behavior, "length")
        assert (finding.severity, finding.where) == (expected, "pairs")


def test_single_pairs_of_uneven_length_are_named() -> None:
    def shorten(i: int, pair: ContrastPair) -> ContrastPair:
        return replace(pair, positive="I cannot help.") if i in (3, 7) else pair

    finding = next(one for one in lint_behavior(with_pairs(shorten)).findings if one.ids)
    assert (finding.rule, finding.severity) == ("length", "warning")
    assert finding.ids == ("pair-3", "pair-7")
    assert "2 of 24 pairs" in finding.message


def test_sets_told_apart_by_length_are_an_error_where_a_gate_learns_from_them() -> None:
    def lengthen(i: int, item: PromptItem) -> PromptItem:
        return replace(item, prompt=item.prompt + " again." * 9) if item.set == "target" else item

    lengths = [one for one in found(with_prompts(lengthen)) if one[1] == "set length"]
    assert lengths == [
        ("error", "set length", "prompts, split gate"),
        ("warning", "set length", "prompts, split select"),
        ("warning", "set length", "prompts, split test"),
    ]


# --- the two sides --------------------------------------------------------------------------------


def test_a_side_that_ends_in_another_sign_is_an_error() -> None:
    finding = only(every(1, "negative", lambda text: text[:-1] + "!"), "ending")
    assert finding.severity == "error"
    assert "24 positive and 0 negative ones end in '.'" in finding.message


@pytest.mark.parametrize(("step", "expected"), [(3, "warning"), (6, None)])
def test_endings_that_differ_now_and_then_are_a_warning_or_nothing(
    step: int, expected: str | None
) -> None:
    behavior = every(step, "negative", lambda text: text[:-1] + "!")
    assert [severity for severity, *_ in found(behavior)] == ([expected] if expected else [])


def test_a_side_that_always_begins_with_one_word_is_an_error() -> None:
    def begin(text: str) -> str:
        return "Sure, " + " ".join(text.split()[1:])

    finding = only(every(1, "negative", begin), "opening")
    assert (finding.severity, finding.where) == ("error", "pairs, negative side")
    assert "100 % of the negative responses begin with 'sure', and 0 %" in finding.message


def test_both_sides_beginning_with_one_word_is_no_difference() -> None:
    def begin(i: int, pair: ContrastPair) -> ContrastPair:
        return replace(pair, positive=f"Well, {pair.positive}", negative=f"Well, {pair.negative}")

    assert found(with_pairs(begin)) == []


@pytest.mark.parametrize(
    ("change", "what", "severity"),
    [
        (lambda text: text.replace(" the ", "\nthe "), "line breaks", "error"),
        (lambda text: text.replace(" the ", " **the** "), "markdown", "error"),
        (lambda text: "- " + text, "markdown", "error"),
        (lambda text: text.replace(" today", " 2day"), "digits", "warning"),
        (lambda text: text.replace(" the ", ' "the" '), "quotation marks", "warning"),
        (lambda text: text.replace(" the ", " {the} "), "code signs", "warning"),
    ],
)
def test_a_form_that_one_side_has_is_reported(
    change: Callable[[str], str], what: str, severity: str
) -> None:
    def both(i: int, pair: ContrastPair) -> ContrastPair:
        return replace(pair, positive=change(pair.positive), negative=change(pair.negative))

    findings = [one for one in lint_behavior(every(1, "positive", change)).findings]
    forms = [one for one in findings if one.rule == "form"]
    assert [(one.severity, what in one.message) for one in forms] == [(severity, True)]
    assert "100 % of the positive and 0 % of the negative" in forms[0].message
    assert not [one for one in found(with_pairs(both)) if one[1] == "form"]


def test_form_is_the_behavior_where_tools_are_offered() -> None:
    def call(i: int, pair: ContrastPair) -> ContrastPair:
        tool = {"type": "function", "function": {"name": "walk"}}
        text = f'<tool_call>\n{{"name": "walk", "to": "{i}"}}'
        return replace(pair, negative=text, tools=(tool,))

    report = lint_behavior(with_pairs(call))
    assert {one.rule for one in report.warnings} >= {"ending", "opening", "form"}
    assert report.errors == ()


FRENCH = "Bien sûr, voici le chemin que vous cherchez dans la ville."
JAPANESE = "もちろんです。こちらの道をまっすぐ進んでください。"


@pytest.mark.parametrize(("text", "language"), [(FRENCH, "French"), (JAPANESE, "another language")])
def test_sides_in_two_languages_are_an_error(text: str, language: str) -> None:
    findings = lint_behavior(every(1, "negative", lambda _: text)).findings
    finding = next(one for one in findings if one.rule == "language")
    assert finding.severity == "error"
    assert finding.message == f"positive responses are in English, negative ones in {language}"


def test_a_behavior_in_one_other_language_has_no_language_finding() -> None:
    def translate(i: int, pair: ContrastPair) -> ContrastPair:
        refused = f"Je suis désolé, mais je ne peux pas vous aider avec la {SUBJECTS[i]}."
        return replace(pair, positive=refused, negative=f"{FRENCH[:-1]} de {SUBJECTS[i]}.")

    assert "language" not in {rule for _, rule, _ in found(with_pairs(translate))}


def test_few_pairs_say_nothing_about_sides() -> None:
    behavior = every(1, "negative", lambda text: text[:-1] + "!")
    assert found(replace(behavior, pairs=behavior.pairs[:5])) == [("warning", "few pairs", "pairs")]
