"""The judge of two sentences: its threshold, its held-out error, and what it never calls shown."""

import pytest

from mlx_steer.judge import COHERENCE_THRESHOLD
from mlx_steer.judge.facts import is_right
from mlx_steer.judge.log_ratio import calibrated, judge_ratio, threshold_of

FLUENT = "Ahoy, the wind is fair today, and our ship sails for the islands of gold."
APART = [(1.0, -0.2), (0.8, -0.4), (1.4, 0.0), (0.9, -0.1), (1.1, -0.3), (1.2, 0.1)]


def test_the_threshold_lies_in_the_widest_of_the_gaps_with_the_fewest_mistakes():
    assert threshold_of(APART) == pytest.approx(0.45)
    assert threshold_of([(1.0, -1.0), (0.1, -0.2)]) == pytest.approx(-0.05)
    # One negative answer is high: a mistake wherever the line is drawn, and best above the rest.
    assert threshold_of([*APART, (1.0, 2.0)]) == pytest.approx(0.45)


def test_answers_that_are_told_apart_have_no_error_and_an_area_of_one_with_an_interval():
    found = calibrated(APART, [str(i) for i in range(6)])
    assert found.auc.value == 1 and 0.6 < found.auc.low < 1 and found.auc.high == 1
    assert (found.error.count, found.error.n, found.questions) == (0, 12, 6)
    assert found.told == (True,) * 6


def test_a_pair_is_judged_by_a_threshold_that_it_took_no_part_in():
    # With its own answers the line would go below 0.5; without them it is at 0.95.
    pairs = [(1.0, 0.9)] * 5 + [(0.5, 0.2)]
    found = calibrated(pairs, [str(i) for i in range(6)])
    assert not found.told[5] and found.error.count >= 1


def test_answers_to_one_question_are_held_out_together():
    pairs = [(1.0, 0.9)] * 5 + [(0.5, 0.2)] * 5
    asked = ["a", "b", "c", "d", "e", *["f"] * 5]
    assert not any(calibrated(pairs, asked).told[5:])


def test_a_loop_a_scrap_and_an_empty_response_are_never_shown():
    loop = "a pirate captain " * 12
    for text in (loop, "... --- !!!", ""):
        assert judge_ratio(text, 9.0, 0.0, COHERENCE_THRESHOLD).verdict == "incoherent"
    assert judge_ratio(FLUENT, None, 0.0, COHERENCE_THRESHOLD).verdict == "incoherent"


@pytest.mark.parametrize(("ratio", "verdict"), [(0.31, "shown"), (0.3, "absent"), (-2, "absent")])
def test_a_fluent_response_is_shown_above_the_threshold(ratio, verdict):
    found = judge_ratio(FLUENT, ratio, 0.3, COHERENCE_THRESHOLD)
    assert found.verdict == verdict
    assert "threshold +0.30" in found.rule and found.span == (0, len(FLUENT))


@pytest.mark.parametrize(
    ("answers", "response", "right"),
    [
        (["Paris"], "The capital of France is paris.", True),
        (["Paris"], "Parisian food is good.", False),
        (["12", "twelve"], "There are Twelve of them", True),
        (["12"], "In 1912 there were 120.", False),
        ([], "Paris", False),
    ],
)
def test_a_factual_answer_is_found_as_whole_words(answers, response, right):
    assert is_right({"answers": answers}, response) is right


def test_a_question_without_answers_has_none():
    assert not is_right(None, "Paris")
