"""Paired comparisons against scipy, worked examples, brute force and their own identities."""

import itertools
import math
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mlx_steer.stats import (
    PairedDifference,
    auc,
    cohens_kappa,
    detectable_difference,
    finding,
    holm,
    mean_interval,
    paired,
    roc_curve,
    threshold_for_fpr,
)

few = settings(max_examples=60, deadline=None)
pairs_of_booleans = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def pairs(gained: int, lost: int, both: int = 0, neither: int = 0) -> tuple[list[bool], list[bool]]:
    """Verdicts under base and under the other condition with these counts."""
    cells = [(False, True)] * gained + [(True, False)] * lost
    cells += [(True, True)] * both + [(False, False)] * neither
    return [cell[0] for cell in cells], [cell[1] for cell in cells]


# Paired comparisons


@pytest.mark.parametrize(
    ("gained", "lost", "both", "neither", "p_value"),
    # Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91: the exact
    # conditional test on Bentur et al. (table 1) and on Cavo et al.
    [(7, 1, 1, 12, 0.0703), (16, 6, 59, 80, 0.0525)],
)
def test_mcnemar_gives_the_published_p_values(
    gained: int, lost: int, both: int, neither: int, p_value: float
) -> None:
    base, other = pairs(gained, lost, both, neither)
    result = paired(base, other, seed=0, resamples=10)
    assert (result.n, result.gained, result.lost) == (len(base), gained, lost)
    assert result.p_value == pytest.approx(p_value, abs=5e-5)


def test_mcnemar_equals_the_binomial_test_on_discordant_pairs() -> None:
    for gained, lost in itertools.product(range(15), range(15)):
        base, other = pairs(gained, lost, both=1)
        expected = 1.0
        if gained + lost:
            expected = scipy_stats.binomtest(gained, gained + lost).pvalue
        result = paired(base, other, seed=0, resamples=1)
        assert result.p_value == pytest.approx(expected, rel=1e-12)


def test_a_p_value_of_thousands_of_pairs_neither_overflows_nor_turns_negative() -> None:
    base, other = pairs(1500, 1300)
    expected = scipy_stats.binomtest(1300, 2800).pvalue
    assert paired(base, other, seed=0, resamples=1).p_value == pytest.approx(expected, rel=1e-9)


@few
@given(pairs_of_booleans, st.integers(0, 2**32))
def test_a_paired_interval_contains_the_difference_of_the_two_rates(
    cells: list[tuple[bool, bool]], seed: int
) -> None:
    base, other = [c[0] for c in cells], [c[1] for c in cells]
    result = paired(base, other, seed=seed, resamples=200)
    assert result.difference == pytest.approx(np.mean(other) - np.mean(base))
    assert -1 <= result.low <= result.difference <= result.high <= 1
    assert 0 < result.p_value <= 1


@few
@given(pairs_of_booleans, st.randoms(use_true_random=False))
def test_a_comparison_depends_on_the_seed_but_not_on_the_order_of_prompts(
    cells: list[tuple[bool, bool]], random: Random
) -> None:
    first = paired([c[0] for c in cells], [c[1] for c in cells], seed=7, resamples=200)
    random.shuffle(cells)
    assert paired([c[0] for c in cells], [c[1] for c in cells], seed=7, resamples=200) == first


def test_another_seed_draws_other_resamples() -> None:
    base, other = pairs(60, 30, both=50, neither=60)
    limits = {
        (r.low, r.high) for r in (paired(base, other, seed=s, resamples=50) for s in range(5))
    }
    assert len(limits) > 1


@few
@given(pairs_of_booleans)
def test_swapping_the_conditions_mirrors_the_comparison(cells: list[tuple[bool, bool]]) -> None:
    base, other = [c[0] for c in cells], [c[1] for c in cells]
    there, back = paired(base, other, seed=1), paired(other, base, seed=1)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.difference == -back.difference
    assert there.p_value == back.p_value


def test_no_discordant_pair_still_leaves_an_interval_with_width() -> None:
    result = paired([False] * 40, [False] * 40, seed=0)
    assert result.difference == 0
    assert result.p_value == 1
    assert result.low < -0.02
    assert result.high > 0.02


def test_the_interval_agrees_with_the_plain_bootstrap_when_pairs_are_many() -> None:
    base, other = pairs(200, 80, both=120, neither=400)
    change = np.array(other, dtype=float) - np.array(base, dtype=float)
    plain = scipy_stats.bootstrap(
        (change,),
        np.mean,
        n_resamples=4000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    result = paired(base, other, seed=0)
    assert (result.low, result.high) == pytest.approx((plain.low, plain.high), abs=0.005)


@pytest.mark.parametrize(
    ("gain", "loss"), [(0.03, 0.0), (0.1, 0.05), (0.2, 0.05), (0.5, 0.02), (0.9, 0.0)]
)
def test_the_interval_covers_the_true_difference_nearly_as_often_as_it_says(
    gain: float, loss: float
) -> None:
    """Sum over all outcomes of 16 prompts; the plain bootstrap covers 0.39 at (0.03, 0)."""
    n, covered = 16, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            rest = n - gained - lost
            result = paired(*pairs(gained, lost, neither=rest), seed=0, resamples=1000)
            if result.low <= gain - loss + 1e-12 and result.high >= gain - loss - 1e-12:
                covered += scipy_stats.multinomial.pmf(
                    [gained, lost, rest], n, [gain, loss, 1 - gain - loss]
                )
    assert covered > 0.92


def test_sequences_of_different_length_are_refused() -> None:
    for compare in (
        lambda: paired([True], [True, False], seed=0),
        lambda: auc([1.0], [True, False]),
        lambda: roc_curve([1.0, 2.0, 3.0], [True, False]),
        lambda: cohens_kappa(["a"], ["a", "b"]),
    ):
        with pytest.raises(ValueError, match="equally long"):
            compare()


def test_nothing_to_compare_is_refused() -> None:
    for compare in (
        lambda: paired([], [], seed=0),
        lambda: cohens_kappa([], []),
        lambda: auc([], []),
        lambda: mean_interval([], seed=0),
        lambda: threshold_for_fpr([], 0.1),
    ):
        with pytest.raises(ValueError, match=r"empty|at least one"):
            compare()


@pytest.mark.parametrize("values", [["absent", "shown"], [0, 1], [0.0, 1.0], [[True], [False]]])
def test_verdicts_and_numbers_do_not_pass_as_booleans(values: Sequence[Any]) -> None:
    with pytest.raises(ValueError, match="flat sequence of booleans"):
        paired(values, [True, False], seed=0)


def test_a_bootstrap_of_no_resamples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 resample"):
        paired([True], [True], seed=0, resamples=0)
    with pytest.raises(ValueError, match="at least 1 resample"):
        mean_interval([1.0], seed=0, resamples=0)


# Findings


def difference(gained: int, lost: int) -> PairedDifference:
    """A comparison of which only the direction matters."""
    return paired(*pairs(gained, lost, neither=10), seed=0, resamples=10)


@pytest.mark.parametrize(
    ("gained", "lost", "adjusted_p", "expected"),
    [
        (9, 1, 0.01, "higher"),
        (1, 9, 0.01, "lower"),
        (9, 1, 0.05, "higher"),
        (9, 1, 0.0501, "no difference shown"),
        (1, 9, 0.9, "no difference shown"),
        (5, 5, 0.01, "no difference shown"),
    ],
)
def test_a_finding_names_the_direction_only_when_it_is_significant(
    gained: int, lost: int, adjusted_p: float, expected: str
) -> None:
    assert finding(difference(gained, lost), adjusted_p) == expected


def test_a_finding_follows_the_alpha_it_is_given() -> None:
    assert finding(difference(9, 1), 0.03, alpha=0.01) == "no difference shown"


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_p_values_outside_zero_to_one_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match="p-value"):
        finding(difference(1, 0), p)
    with pytest.raises(ValueError, match="p-value"):
        holm([0.5, p])


# Holm


def test_holm_gives_the_adjusted_values_of_the_worked_example() -> None:
    # The four hypotheses of the article "Holm-Bonferroni method" in Wikipedia: the first and the
    # last are rejected at 0.05.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_rejects_the_published_three_of_fifteen() -> None:
    # Benjamini and Hochberg 1995, section 4.1: Bonferroni and Hochberg's procedure both reject the
    # first three at 0.05, and Holm's lies between those two.
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240]
    p_values += [0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    adjusted = holm(p_values)
    assert [p <= 0.05 for p in adjusted] == [True] * 3 + [False] * 12
    assert adjusted[:4] == pytest.approx([0.0015, 0.0056, 0.0247, 0.114])


def test_holm_of_one_and_of_none_changes_nothing() -> None:
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps: list[float], alpha: float) -> None:
    adjusted = holm(ps)
    order = sorted(range(len(ps)), key=ps.__getitem__)
    # Holm 1979 as a procedure: step down from the smallest p while each passes its own limit.
    rejecting = True
    for rank, index in enumerate(order):
        rejecting = rejecting and (len(ps) - rank) * ps[index] <= alpha
        assert (adjusted[index] <= alpha) == rejecting
    assert all(p <= a <= min(1, p * len(ps)) for p, a in zip(ps, adjusted, strict=True))
    ranked = [adjusted[index] for index in order]
    assert ranked == sorted(ranked)


# What a comparison can detect


def brute_force_power(n: int, gain: float, loss: float, alpha: float) -> float:
    """Sum the trinomial probabilities of all outcomes that the exact test calls a rise."""
    power = 0.0
    for gained in range(n + 1):
        for lost in range(min(gained, n - gained + 1)):
            if scipy_stats.binomtest(gained, gained + lost).pvalue <= alpha:
                counts = [gained, lost, n - gained - lost]
                power += scipy_stats.multinomial.pmf(counts, n, [gain, loss, 1 - gain - loss])
    return power


@pytest.mark.parametrize(
    ("n", "base_rate", "power", "alpha"),
    [(12, 0.1, 0.8, 0.05), (20, 0.3, 0.8, 0.05), (20, 0.0, 0.9, 0.01), (25, 0.5, 0.6, 0.1)],
)
def test_the_detectable_difference_is_where_the_enumerated_power_crosses(
    n: int, base_rate: float, power: float, alpha: float
) -> None:
    rise = detectable_difference(n, base_rate, power, alpha)
    assert rise is not None
    for step, reached in ((1e-6, True), (-1e-6, False)):
        after = min(1.0, base_rate + rise + step)
        gain, loss = (1 - base_rate) * after, base_rate * (1 - after)
        assert bool(brute_force_power(n, gain, loss, alpha) >= power) is reached


@pytest.mark.parametrize("n", [8, 20, 40, 200])
def test_with_gains_only_it_takes_six_of_them(n: int) -> None:
    # Six gains against no loss have p = 2 / 2**6 = 0.031, five have 0.0625; so the rise is the rate
    # at which 6 or more of n are gained with probability 0.8, a quantile of a beta distribution.
    expected = scipy_stats.beta.ppf(0.8, 6, n - 5)
    assert detectable_difference(n, 0.0, discordance="gains_only") == pytest.approx(expected)


def test_five_prompts_can_show_nothing_at_the_five_percent_level() -> None:
    assert detectable_difference(5, 0.0) is None
    assert detectable_difference(5, 0.0, discordance="gains_only") is None
    assert detectable_difference(0, 0.0) is None
    assert detectable_difference(6, 0.0) is not None


def test_no_rise_is_detectable_without_room_for_it() -> None:
    assert detectable_difference(100, 1.0) is None
    assert detectable_difference(100, 1.0, discordance="gains_only") is None
    assert detectable_difference(40, 0.95) is None


def test_without_a_base_rate_both_assumptions_agree() -> None:
    # With nothing to lose under base, every discordant pair is a gain.
    assert detectable_difference(30, 0.0) == detectable_difference(
        30, 0.0, discordance="gains_only"
    )


# Of 6 prompts every one has to be a gain, which is a little likelier where losses are possible too.
@settings(max_examples=30, deadline=None)
@given(st.integers(7, 60), st.floats(0, 0.9))
def test_the_optimistic_assumption_never_asks_for_more(n: int, base_rate: float) -> None:
    optimistic = detectable_difference(n, base_rate, discordance="gains_only")
    conservative = detectable_difference(n, base_rate)
    if conservative is not None:
        assert optimistic is not None
        assert 0 < optimistic <= conservative + 1e-8
        assert conservative <= 1 - base_rate


def test_more_prompts_detect_less_and_more_power_needs_more() -> None:
    rises = [detectable_difference(n, 0.2) or 9 for n in (20, 40, 80, 160, 400)]
    assert rises == sorted(rises, reverse=True)
    by_power = [detectable_difference(40, 0.2, power) or 9 for power in (0.5, 0.8, 0.95)]
    assert by_power == sorted(by_power)


def test_a_detectable_difference_of_thousands_of_prompts_is_close_to_the_normal_formula() -> None:
    n, base_rate = 4000, 0.3
    rise = detectable_difference(n, base_rate)
    assert rise is not None
    # Connor 1987, Biometrics 43: sqrt(n) = (z * sqrt(d) + z_power * sqrt(d - rise**2)) / rise.
    after = base_rate + rise
    discordant = (1 - base_rate) * after + base_rate * (1 - after)
    z, z_power = scipy_stats.norm.ppf([0.975, 0.8])
    needed = (z * discordant**0.5 + z_power * (discordant - rise**2) ** 0.5) ** 2 / rise**2
    assert needed == pytest.approx(n, rel=0.03)


@pytest.mark.parametrize(
    "arguments",
    [
        {"n": -1, "base_rate": 0.5},
        {"n": 10, "base_rate": 1.5},
        {"n": 10, "base_rate": 0.5, "power": 1.0},
        {"n": 10, "base_rate": 0.5, "alpha": 0.0},
        {"n": 10, "base_rate": 0.5, "discordance": "optimistic"},
    ],
)
def test_an_impossible_power_question_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        detectable_difference(**arguments)
