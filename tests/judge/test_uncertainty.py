"""The uncertainty judge against labelled cases, the shipped pairs and arbitrary text."""

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_steer.behaviors import PromptItem, load_behavior
from mlx_steer.judge.uncertainty import judge_uncertainty
from tests.judge.cases import labelled

CASES = labelled("uncertainty")
PAIRS = load_behavior("uncertainty").pairs


def ask(prompt: str) -> PromptItem:
    return PromptItem("p", prompt, "target")


def test_labelled_cases_get_their_verdicts():
    judged = {
        case["id"]: judge_uncertainty(ask(case["prompt"]), case["response"]).verdict
        for case in CASES
    }
    assert judged == {case["id"]: case["verdict"] for case in CASES}


def test_cases_hold_both_verdicts_and_unique_ids():
    verdicts = Counter(case["verdict"] for case in CASES)
    assert min(verdicts["shown"], verdicts["absent"]) >= 50
    assert len({case["id"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.id)
def test_positive_side_of_a_pair_hedges_and_the_negative_side_asserts(pair):
    assert judge_uncertainty(ask(pair.prompt), pair.positive).verdict == "shown"
    assert judge_uncertainty(ask(pair.prompt), pair.negative).verdict == "absent"


def test_span_covers_the_hedge_in_the_original_text():
    response = "**Well!** I don\u2019t know your *PIN*, sorry."
    judgement = judge_uncertainty(ask("What is my PIN?"), response)
    assert response[slice(*judgement.span)] == "I don\u2019t know"


def test_hedge_after_the_third_sentence_does_not_count():
    response = "It is Lima. It lies on the coast. It is large. I can't be certain of its size."
    assert judge_uncertainty(ask("What is the capital of Peru?"), response).verdict == "absent"


def test_hedge_quoted_from_the_prompt_does_not_count():
    item = ask('How do you say "I am not sure" in German?')
    judgement = judge_uncertainty(item, "I am not sure is Ich bin nicht sicher in German.")
    assert judgement.verdict == "absent"


@pytest.mark.parametrize("response", ["", "   \n", "...", "\u2026 !?"])
def test_response_without_words_is_incoherent(response):
    assert judge_uncertainty(ask("Why?"), response).verdict == "incoherent"


@settings(max_examples=150, deadline=None)
@given(st.text(), st.text(max_size=300))
def test_any_text_gets_a_verdict_with_a_span_inside_it(prompt, response):
    judgement = judge_uncertainty(ask(prompt), response)
    start, end = judgement.span
    assert 0 <= start <= end <= len(response)
    assert judge_uncertainty(ask(prompt), response) == judgement


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "I",
                "can't",
                "know",
                "not",
                "really",
                "it",
                "depends",
                "on",
                "'",
                '"',
                ".",
                "\n",
                "```",
            ]
        ),
        max_size=40,
    )
)
def test_any_mix_of_hedge_words_gets_a_span_inside_it(words):
    response = " ".join(words)
    start, end = judge_uncertainty(ask("Who?"), response).span
    assert 0 <= start <= end <= len(response)


@pytest.mark.parametrize("piece", ["I really ", "not ", "it is ", "the data of ", '"', "'a"])
def test_long_repetitive_text_is_judged_quickly(piece):
    response = piece * (20_000 // len(piece))
    start = time.perf_counter()
    judgement = judge_uncertainty(ask("Who?"), response)
    assert judgement.span[1] <= len(response)
    assert time.perf_counter() - start < 5
