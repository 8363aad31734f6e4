"""The hierarchy judge: its kinds of check, labelled cases, shipped data and arbitrary text."""

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.behaviors import PromptItem, load_behavior
from mlx_steer.errors import DataError
from mlx_steer.judge.hierarchy.check import FORMATS, KINDS, parse_check
from mlx_steer.judge.hierarchy.language import LANGUAGES
from mlx_steer.judge.hierarchy.verdict import judge_hierarchy
from tests.judge.cases import labelled

CASES = labelled("hierarchy")
BEHAVIOR = load_behavior("hierarchy")
TARGETS, PERMITTED = BEHAVIOR.select(set="target"), BEHAVIOR.select(set="other")
REFUSAL = "I'm sorry, but I can't do that."


def item(check, prompt="Do it."):
    return PromptItem("p-1", prompt, "target", system="A rule.", check=check)


def test_labelled_cases_get_their_verdicts():
    judged = {
        case["id"]: judge_hierarchy(item(case["check"], case["prompt"]), case["response"]).verdict
        for case in CASES
    }
    assert judged == {case["id"]: case["verdict"] for case in CASES}


def test_cases_hold_every_kind_both_verdicts_and_unique_ids():
    verdicts = Counter((case["check"]["kind"], case["verdict"]) for case in CASES)
    assert set(verdicts) == {(kind, verdict) for kind in KINDS for verdict in ("shown", "absent")}
    assert len({case["id"] for case in CASES}) == len(CASES)


def test_shipped_prompts_have_a_rule_and_a_valid_check():
    for prompt in BEHAVIOR.prompts:
        check = parse_check(prompt.check, prompt.id)
        assert prompt.system, prompt.id
        assert (check.kind == "withholds") == (prompt.set == "other"), prompt.id


def test_permitted_prompts_stand_under_the_same_rules_as_the_overriding_ones():
    for split in ("select", "test"):
        rules = [
            [one.system for one in BEHAVIOR.select(set=kind, split=split)]
            for kind in ("target", "other")
        ]
        assert rules[0] == rules[1]


@pytest.mark.parametrize(
    "prompt",
    [one for one in TARGETS if one.check["kind"] in ("secret", "topic", "persona")],
    ids=lambda prompt: prompt.id,
)
def test_repeating_the_request_alone_does_not_break_the_rule(prompt):
    judgement = judge_hierarchy(prompt, prompt.prompt)
    assert judgement.rule in ("secret kept", "persona kept", "no refusal", "stayed in scope"), (
        judgement
    )


@pytest.mark.parametrize(
    "prompt",
    [one for one in TARGETS if one.check["kind"] == "secret"],
    ids=lambda prompt: prompt.id,
)
def test_secret_of_a_shipped_prompt_stands_in_its_rule_and_telling_the_rule_breaks_it(prompt):
    assert judge_hierarchy(prompt, prompt.system).verdict == "absent"
    assert judge_hierarchy(prompt, REFUSAL).verdict == "shown"


def test_refusing_a_permitted_request_is_shown_and_answering_it_is_absent():
    for prompt in PERMITTED:
        assert judge_hierarchy(prompt, REFUSAL).verdict == "shown", prompt.id
        assert judge_hierarchy(prompt, "Eight, as a rule.").verdict == "absent", prompt.id


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (None, "no 'check'"),
        ({}, "kind None is not known"),
        ({"kind": "mood"}, "'mood' is not known; use secret"),
        ({"kind": "secret"}, "'value' is missing"),
        ({"kind": "secret", "value": "abc"}, "at least 4 letters"),
        ({"kind": "secret", "value": ["BLUE HERON", 3]}, "a text or a list of texts"),
        ({"kind": "secret", "value": "BLUE HERON", "words": ["x"]}, "'words' is not known"),
        ({"kind": "language", "value": "klingon"}, "use one of english"),
        ({"kind": "language", "value": ["english"]}, "'value' must be a text"),
        ({"kind": "format", "value": "pretty"}, "use one of uppercase"),
        ({"kind": "max_words", "value": 0}, "whole number above 0"),
        ({"kind": "max_words", "value": True}, "whole number above 0"),
        ({"kind": "max_words", "value": "ten"}, "whole number above 0"),
        ({"kind": "topic", "words": []}, "list of one or more texts"),
        ({"kind": "topic", "words": "king"}, "list of one or more texts"),
        ({"kind": "topic", "words": ["king"], "scope": [" "]}, "'scope' must be a list"),
        ({"kind": "persona", "words": ["*"]}, "list of one or more texts"),
        ({"kind": "opening", "value": ""}, "'value' must be a text"),
        ({"kind": "withholds", "value": "x"}, "'value' is not known"),
    ],
    ids=str,
)
def test_bad_check_is_an_error_that_names_the_prompt_and_the_cure(check, words):
    with pytest.raises(DataError) as error:
        judge_hierarchy(item(check), "Hello.")
    assert "'p-1'" in str(error.value)
    assert words in str(error.value)


def test_all_problems_of_a_check_are_named_at_once():
    with pytest.raises(DataError) as error:
        parse_check({"kind": "topic", "scope": "tea", "limit": 3}, "p-1")
    for words in ("'words' is missing", "'limit' is not known", "'scope' must be a list"):
        assert words in str(error.value)


def test_span_covers_the_secret_as_it_is_written():
    response = "Fine: **b-l-u-e heron**, but hush."
    judgement = judge_hierarchy(item({"kind": "secret", "value": "BLUE HERON"}), response)
    assert response[slice(*judgement.span)] == "b-l-u-e heron"


@pytest.mark.parametrize("response", ["", " \n", "?!"])
def test_response_without_words_is_incoherent(response):
    assert judge_hierarchy(item({"kind": "withholds"}), response).verdict == "incoherent"


CHECKS = [
    {"kind": "secret", "value": "BLUE HERON"},
    {"kind": "topic", "words": ["piston*", "i am rex"], "scope": ["cook*"]},
    {"kind": "persona", "words": ["i am rex", "c++"]},
    {"kind": "max_words", "value": 3},
    {"kind": "opening", "value": "Desk note"},
    {"kind": "withholds"},
    *({"kind": "language", "value": language} for language in LANGUAGES),
    *({"kind": "format", "value": value} for value in FORMATS),
]
PIECES = st.lists(
    st.sampled_from(
        [
            "I ",
            "can't ",
            "share ",
            "only ",
            "but ",
            "BLUE",
            "HERON",
            "-",
            "\n",
            '"',
            "'",
            "ist ",
            "é",
        ]
    ),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("check", CHECKS, ids=str)
@settings(max_examples=40, deadline=None)
@given(response=st.one_of(st.text(max_size=200), PIECES))
def test_any_text_gets_a_verdict_with_a_span_inside_it(check, response):
    judgement = judge_hierarchy(item(check), response)
    start, end = judgement.span
    assert 0 <= start <= end <= len(response)
    assert judge_hierarchy(item(check), response) == judgement


@pytest.mark.parametrize("piece", ["I really ", "b l u e ", "my rules ", "- ", "a\n"])
def test_long_repetitive_text_is_judged_quickly(piece):
    response = piece * (20_000 // len(piece)) + "ok"
    start = time.perf_counter()
    for check in CHECKS:
        assert judge_hierarchy(item(check), response).span[1] <= len(response)
    assert time.perf_counter() - start < 5
