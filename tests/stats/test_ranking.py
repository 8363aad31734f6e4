"""Areas under curves and thresholds, against scipy, worked examples and their own identities."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlx_steer.stats import (
    auc,
    auc_interval,
    roc_curve,
    threshold_for_fpr,
    wilson,
)

few = settings(max_examples=60, deadline=None)


# Small whole numbers make ties frequent.
tied_scores = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=30)


def test_auc_gives_the_published_area() -> None:
    # Hanley and McNeil 1982, Radiology 143, table I: CT images of 58 normal and 51 abnormal
    # patients, rated 1 to 5 by one reader; area 0.893.
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    scores = np.repeat([1.0, 2, 3, 4, 5] * 2, normal + abnormal)
    labels = np.repeat([False, True], [58, 51])
    assert auc(scores, labels) == pytest.approx(0.893, abs=5e-4)
    assert auc(scores.tolist(), labels.tolist()) == auc(scores, labels)


@few
@given(tied_scores, st.data())
def test_auc_equals_mann_whitney_and_the_trapezoids_of_the_curve(
    scores: list[float], data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    if len(set(labels)) < 2:
        labels = [True, *[False] * (len(scores) - 1)]
    positives = [s for s, label in zip(scores, labels, strict=True) if label]
    negatives = [s for s, label in zip(scores, labels, strict=True) if not label]
    u = scipy_stats.mannwhitneyu(positives, negatives).statistic
    area = auc(scores, labels)
    assert area == pytest.approx(u / len(positives) / len(negatives))
    assert auc([-s for s in scores], labels) == pytest.approx(1 - area)
    curve = roc_curve(scores, labels)
    false, true = curve.false_positive_rates, curve.true_positive_rates
    steps = itertools.pairwise(zip(false, true, strict=True))
    trapezoids = sum((right[0] - left[0]) * (right[1] + left[1]) / 2 for left, right in steps)
    assert trapezoids == pytest.approx(area)
    assert false == sorted(false)
    assert true == sorted(true)
    thresholds = sorted(set(scores), reverse=True)
    above = [np.mean([s >= threshold for s in negatives]) for threshold in thresholds]
    assert false == pytest.approx([0, *above])


def test_an_roc_curve_starts_with_none_and_ends_with_all() -> None:
    curve = roc_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    assert curve.false_positive_rates == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert curve.true_positive_rates == [0.0, 0.5, 0.5, 1.0, 1.0]


def test_equal_areas_are_equal_to_the_last_digit() -> None:
    # So that the choice among a gate's candidates does not hang on rounding.
    for positives, negatives in ((3, 3), (3, 6)):
        found: dict[int, set[float]] = {}
        places = positives + negatives
        for chosen in itertools.combinations(range(places), positives):
            area = auc([float(i) for i in range(places)], [i in chosen for i in range(places)])
            found.setdefault(sum(chosen), set()).add(area)
        assert all(len(areas) == 1 for areas in found.values())


@pytest.mark.parametrize(("labels", "missing"), [([True] * 3, "negative"), ([False] * 3, "pos")])
def test_a_single_class_has_no_area(labels: list[bool], missing: str) -> None:
    with pytest.raises(ValueError, match=f"no {missing}"):
        auc([1.0, 2.0, 3.0], labels)
    with pytest.raises(ValueError, match=f"no {missing}"):
        roc_curve([1.0, 2.0, 3.0], labels)


def test_a_threshold_lets_exactly_the_allowed_share_through_without_ties() -> None:
    scores = [float(i) for i in range(100)]
    for percent in (0, 1, 5, 29, 57, 58, 99):  # 0.29 * 100 is below 29 in floating point
        threshold, rate = threshold_for_fpr(scores, percent / 100)
        assert rate == wilson(percent, 100)
        assert threshold == 99 - percent


def test_a_threshold_never_splits_ties() -> None:
    threshold, rate = threshold_for_fpr([0.0, 1.0, 2.0, 2.0, 2.0], 0.4)
    assert threshold == 2.0
    assert rate.count == 0


def test_a_rate_of_one_lets_everything_through() -> None:
    threshold, rate = threshold_for_fpr([0.3, -2.0], 1.0)
    assert threshold == -math.inf
    assert rate.value == 1


@few
@given(tied_scores, st.floats(0, 1))
def test_a_threshold_keeps_its_limit_and_the_next_lower_score_would_not(
    scores: list[float], limit: float
) -> None:
    threshold, rate = threshold_for_fpr(scores, limit)
    assert rate.count == sum(s > threshold for s in scores)
    assert rate.value <= limit + 1e-9
    lower = [s for s in scores if s < threshold]
    if lower:
        assert sum(s > max(lower) for s in scores) > limit * len(scores)


@pytest.mark.parametrize("rate", [-0.01, 1.01, math.nan])
def test_a_false_positive_rate_outside_zero_to_one_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be"):
        threshold_for_fpr([1.0], rate)


@pytest.mark.parametrize(
    ("area", "positives", "negatives"), [(1.0, 60, 60), (0.82, 30, 45), (0.5, 8, 8)]
)
def test_the_interval_of_an_area_solves_its_equation_and_mirrors(area, positives, negatives):
    found = auc_interval(area, positives, negatives)
    assert found.low < area <= found.high and found.high - found.low > 0.03
    z, extra = 1.959963984540054, (positives + negatives) / 2 - 1
    for bound in (found.low, found.high):
        if bound < 1:
            inner = 1 + extra * ((1 - bound) / (2 - bound) + bound / (1 + bound))
            variance = bound * (1 - bound) * inner / (positives * negatives)
            assert abs(area - bound) == pytest.approx(z * math.sqrt(variance), rel=1e-6)
    mirrored = auc_interval(1 - area, positives, negatives)
    assert mirrored.low == pytest.approx(1 - found.high) or area == 1
    assert mirrored.high == pytest.approx(1 - found.low)


def test_an_area_without_scores_has_no_interval():
    with pytest.raises(ValueError, match="no interval"):
        auc_interval(0.5, 0, 3)
