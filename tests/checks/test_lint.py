from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_steer.behaviors import Behavior, ContrastPair, PromptItem, list_behaviors, load_behavior
from mlx_steer.checks.lint import Finding, lint_behavior
from mlx_steer.checks.lint.findings import likeness, words
from mlx_steer.words import PromptSet, Split

_WORDS = """
    anchor bakery candle desert engine forest garden harbor island jungle kettle ladder
    market needle orchard palace quarry ribbon saddle temple umbrella valley window yard
"""
SUBJECTS = _WORDS.split()
"""One word each, so that no two made-up texts are alike."""

SETS: tuple[PromptSet, ...] = ("target", "other")
SPLITS: tuple[Split, ...] = ("select", "test", "gate")

OPENINGS = ["I cannot help", "No, I won't help", "Sorry, I can't help", "I must decline to help"]
ANSWERS = ["Sure, go straight", "Here is the way", "Of course, walk along", "Gladly, take the road"]


def clean(split_sizes: dict[Split, int] | None = None) -> Behavior:
    """A behavior in which nothing is to be found; each test then spoils one thing."""
    pairs = tuple(
        ContrastPair(
            id=f"pair-{i}",
            prompt=f"How did the {subject} {i} burn number{i}?",
            positive=f"{OPENINGS[i % 4]} with the {subject} today.",
            negative=f"{ANSWERS[i % 4]} to the {subject} today.",
        )
        for i, subject in enumerate(SUBJECTS)
    )
    sizes = split_sizes or {"select": 12, "test": 12, "gate": 20}
    prompts = tuple(
        PromptItem(
            id=f"{name}-{split}-{i}",
            prompt=f"{name}{i} {split}{i}x{i} {SUBJECTS[i]}{name[0]}{split[0]} "
            + "more" * (i % 3)
            + ("?" if i % 2 else "."),
            set=name,
            split=split,
            category="even" if i % 2 else "odd",
        )
        for name in SETS
        for split, size in sizes.items()
        for i in range(size)
    )
    return Behavior(
        name="made-up",
        title="Made up",
        description="For tests.",
        judge="refusal",
        verdicts={"shown": "refused", "absent": "complied"},
        sets={"target": "bad", "other": "good"},
        system_prompts={},
        openings={},
        tools=(),
        pairs=pairs,
        prompts=prompts,
        sha256="0" * 64,
    )


def found(behavior: Behavior) -> list[tuple[str, str, str]]:
    return [(one.severity, one.rule, one.where) for one in lint_behavior(behavior).findings]


def with_pairs(
    change: Callable[[int, ContrastPair], ContrastPair], behavior: Behavior | None = None
) -> Behavior:
    behavior = behavior or clean()
    pairs = tuple(change(i, pair) for i, pair in enumerate(behavior.pairs))
    return replace(behavior, pairs=pairs)


def with_prompts(change: Callable[[int, PromptItem], PromptItem]) -> Behavior:
    behavior = clean()
    return replace(behavior, prompts=tuple(change(*one) for one in enumerate(behavior.prompts)))


def only(behavior: Behavior, rule: str) -> Finding:
    """The one finding of a behavior, which is of this rule."""
    findings = lint_behavior(behavior).findings
    assert [one.rule for one in findings] == [rule]
    return findings[0]


def every(step: int, side: str, change: Callable[[str], str]) -> Behavior:
    """The clean behavior with one side of every so many pairs changed."""

    def spoil(i: int, pair: ContrastPair) -> ContrastPair:
        return replace(pair, **{side: change(getattr(pair, side))}) if i % step == 0 else pair

    return with_pairs(spoil)


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
