"""Intervals of rates and of means, against scipy, published values and their own identities."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlx_steer.stats import (
    auc,
    mean_interval,
    threshold_for_fpr,
    wilson,
)

few = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion: comparison of seven
    # methods", Statistics in Medicine 17, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(count: int, n: int, low: float, high: float) -> None:
    rate = wilson(count, n)
    assert rate.value == count / n
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_wilson_limits_are_the_rates_that_the_score_test_just_rejects(confidence: float) -> None:
    z = scipy_stats.norm.ppf(0.5 + confidence / 2)
    for count, n in ((1, 7), (3, 7), (39, 40), (20, 40), (0, 5), (5, 5)):
        rate = wilson(count, n, confidence)
        for limit in {rate.low, rate.high} - {0.0, 1.0}:
            assert abs(count / n - limit) == pytest.approx(z * (limit * (1 - limit) / n) ** 0.5)


@few
@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.01, 0.999))
def test_a_wilson_interval_contains_its_rate(n: int, share: float, confidence: float) -> None:
    rate = wilson(round(n * share), n, confidence)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_a_rate_of_no_rows_is_nan_and_says_nothing() -> None:
    rate = wilson(0, 0)
    assert math.isnan(rate.value)
    assert (rate.low, rate.high) == (0, 1)


@pytest.mark.parametrize(("count", "n"), [(-1, 5), (6, 5), (1, 0), (0, -1)])
def test_a_count_outside_the_rows_is_refused(count: int, n: int) -> None:
    with pytest.raises(ValueError, match="count from 0 to n"):
        wilson(count, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_a_confidence_outside_zero_to_one_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence)


def test_a_mean_interval_agrees_with_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).beta(8, 2, size=60)
    expected = scipy_stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=9999,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    result = mean_interval(values, seed=5)
    assert result.n == 60
    assert result.value == pytest.approx(values.mean())
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.003)


def test_a_mean_interval_is_the_same_for_the_same_seed_only() -> None:
    # So many distinct values that two draws hardly ever share a limit.
    values = np.random.default_rng(0).random(50)
    assert mean_interval(values, 4, resamples=50) == mean_interval(values, 4, resamples=50)
    assert len({mean_interval(values, s, resamples=50).low for s in range(8)}) == 8


def test_a_mean_of_many_values_is_resampled_in_full() -> None:
    # More values than fit in one block of resamples; an unfilled rest would be garbage or zero.
    values = np.linspace(10, 11, 30_000)
    result = mean_interval(values, seed=0, resamples=100)
    assert 10.49 < result.low < 10.5 < result.high < 10.51


@few
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 1000))
def test_a_mean_interval_contains_the_mean_and_stays_within_the_values(
    values: list[float], seed: int
) -> None:
    result = mean_interval(values, seed, resamples=100)
    assert result.low <= result.value <= result.high
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= result.low
    assert result.high <= max(values) + slack


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_position(bad: float) -> None:
    for call in (
        lambda: mean_interval([0.5, bad], seed=0),
        lambda: auc([0.5, bad], [True, False]),
        lambda: threshold_for_fpr([0.5, bad], 0.1),
    ):
        with pytest.raises(ValueError, match="at position 1"):
            call()


def test_importing_the_module_loads_neither_scipy_nor_mlx() -> None:
    code = "import sys, mlx_steer.stats; print([m for m in ('scipy', 'mlx') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
