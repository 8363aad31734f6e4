import warnings
from collections.abc import Iterator
from math import erf, sqrt

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from mlx_steer.engine.capture import response_states
from mlx_steer.extraction.directions import (
    METHODS,
    Float64,
    held_out_auc,
    logistic_regression,
    mean_difference,
    pca,
    projection,
    whitened_mean_difference,
)
from mlx_steer.extraction.pairs import extract, pair_states
from mlx_steer.words import Method
from tests.helpers.tiny import LAYERS, tiny_model
from tests.oracle.cases import BEHAVIOR, PAIRS

ALL = list(METHODS)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def cosine(a: Float64, b: Float64) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def gaussians(count: int, size: int, apart: float, seed: int = 0) -> tuple[Float64, Float64]:
    """Two clouds of variance 1, their middles `apart` from each other along the first axis."""
    rng = np.random.default_rng(seed)
    positive, negative = rng.standard_normal((2, count, size))
    positive[:, 0] += apart
    return positive, negative


def correlated(count: int) -> tuple[Float64, Float64, Float64, Float64]:
    """Two Gaussians of one covariance, the difference of their means, and that covariance.

    The difference lies mostly along the direction in which the states vary most.
    """
    rng = np.random.default_rng(1)
    difference = np.array([2.0, 1.0, 0.0, 0.0])
    covariance = np.array(
        [[9.0, 0.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.2], [1.0, 0.0, 1.0, 0.0], [0.0, 0.2, 0.0, 1.0]]
    )
    positive = rng.multivariate_normal(difference, covariance, count)
    return positive, rng.multivariate_normal(np.zeros(4), covariance, count), difference, covariance


# --- what each method gives -----------------------------------------------------------------------


def test_the_mean_difference_is_the_difference_of_the_means() -> None:
    positive = np.array([[1.0, 5.0, 0.0], [3.0, 1.0, 0.0]])
    negative = np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 3.0], [3.0, 1.0, 2.0]])
    assert np.allclose(mean_difference(positive, negative), [1.0, 2.0, -2.0], atol=1e-15)


@pytest.mark.parametrize(("count", "size"), [(40, 6), (8, 50)], ids=["many states", "few states"])
def test_the_whitened_difference_is_fishers_direction_under_the_shrunk_covariance(
    count: int, size: int
) -> None:
    positive, negative = gaussians(count, size, 1.5)
    positive[:, :3] *= [3.0, 0.5, 2.0]
    negative[:, :3] *= [3.0, 0.5, 2.0]
    within = np.concatenate([positive - positive.mean(axis=0), negative - negative.mean(axis=0)])
    covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
    difference = mean_difference(positive, negative)
    wanted = np.linalg.solve(covariance, difference)
    wanted *= np.linalg.norm(difference) / np.linalg.norm(wanted)
    found = whitened_mean_difference(positive, negative)
    assert np.allclose(found, wanted, atol=1e-8)
    assert cosine(found, difference) < 0.95, "whitening must matter here"


def test_of_two_gaussians_whitened_and_logistic_find_the_direction_that_tells_them_apart() -> None:
    positive, negative, difference, covariance = correlated(1000)
    best = np.linalg.solve(covariance, difference)
    assert cosine(difference, best) < 0.75
    assert cosine(mean_difference(positive, negative), difference) > 0.99
    assert cosine(whitened_mean_difference(positive, negative), best) > 0.99
    assert cosine(logistic_regression(positive, negative), best) > 0.98


def test_logistic_regression_gives_the_weights_of_a_probe_on_the_scaled_states() -> None:
    positive, negative = gaussians(20, 60, 2.0)
    positive, negative = 40 * positive[:13] + 7, 40 * negative + 7
    states = np.concatenate([positive, negative])
    centred = states - states.mean(axis=0)
    scaled = centred / np.sqrt((centred**2).sum(axis=1).mean())
    probe = LogisticRegression(C=1.0, class_weight="balanced", max_iter=10_000, tol=1e-9)
    probe.fit(scaled, np.arange(33) < 13)
    found = logistic_regression(positive, negative)
    assert cosine(found, probe.coef_[0]) > 1 - 1e-6
    both = states @ found
    assert both[:13].min() > both[13:].max()


def test_pca_finds_the_axis_of_the_pairs_even_where_their_mean_hides_it() -> None:
    rng = np.random.default_rng(3)
    negative = 5 * rng.standard_normal((30, 8))
    sides = np.where(np.arange(30) < 18, 4.0, -4.0)
    positive = negative + 0.1 * rng.standard_normal((30, 8)) + [0, 0.3, 0, 0, 0, 0, 0, 0]
    positive[:, 5] += sides
    axis = np.eye(8)[5]
    assert cosine(pca(positive, negative), axis) > 0.99
    # The sign is that of most pairs.
    positive[:, 5] -= 2 * sides
    assert cosine(pca(positive, negative), axis) < -0.99


def test_pca_depends_on_which_states_are_a_pair_and_the_others_do_not() -> None:
    positive, negative = gaussians(12, 5, 1.0)
    turned = np.roll(negative, 1, axis=0)
    assert cosine(pca(positive, negative), pca(positive, turned)) < 0.99
    for name in ALL[:3]:
        assert np.allclose(
            METHODS[name](positive, negative), METHODS[name](positive, turned), rtol=1e-4, atol=1e-4
        )


# --- what all methods have in common --------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_a_direction_points_from_negative_to_positive_at_the_norm_of_the_mean_difference(
    method: Method,
) -> None:
    positive, negative = gaussians(10, 40, 3.0)
    found = METHODS[method](positive, negative)
    assert found.shape == (40,) and found.dtype == np.float64
    size = np.linalg.norm(mean_difference(positive, negative))
    assert np.linalg.norm(found) == pytest.approx(size, rel=1e-9)
    assert positive.mean(axis=0) @ found > negative.mean(axis=0) @ found
    assert cosine(found, np.eye(40)[0]) > 0.5
    assert np.allclose(METHODS[method](negative, positive), -found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ALL)
def test_a_direction_turns_moves_and_grows_with_the_states(method: Method) -> None:
    positive, negative = gaussians(10, 24, 2.0)
    found = METHODS[method](positive, negative)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((24, 24)))[0]
    for turned, wanted in (
        ((positive @ turn, negative @ turn), found @ turn),
        ((positive + 300.0, negative + 300.0), found),  # as the outlier dimensions of real models
        ((1e-3 * positive, 1e-3 * negative), 1e-3 * found),
        ((1e3 * positive, 1e3 * negative), 1e3 * found),
    ):
        again = METHODS[method](*turned)
        assert np.linalg.norm(again - wanted) < 1e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("method", ALL)
def test_states_that_are_all_alike_give_no_direction_and_single_ones_their_difference(
    method: Method,
) -> None:
    same = np.full((6, 9), 3.0)
    assert np.array_equal(METHODS[method](same, same), np.zeros(9))
    assert held_out_auc(same, same, method) == 0.5
    one, other = np.eye(9)[:1], np.eye(9)[1:2]
    assert np.allclose(METHODS[method](one, other), (one - other)[0], atol=1e-9)


@pytest.mark.parametrize("method", ALL[:3])
def test_more_states_of_one_side_do_not_move_a_direction_that_both_agree_on(method: Method) -> None:
    positive, negative = gaussians(8, 30, 4.0)
    thrice = np.concatenate([negative] * 3)
    assert cosine(METHODS[method](positive, thrice), METHODS[method](positive, negative)) > 0.9


# --- projections and held-out separation ----------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_a_projection_is_the_distance_from_the_middle_in_units_of_the_states(
    method: Method,
) -> None:
    positive, negative = gaussians(10, 12, 5.0)
    score = projection(positive, negative, method)
    unit = METHODS[method](positive, negative)
    unit /= np.linalg.norm(unit)
    middle = (positive.mean(axis=0) + negative.mean(axis=0)) / 2
    assert np.allclose(score(middle[None]), 0, atol=1e-12)
    assert np.allclose(score(np.stack([middle + 3 * unit, middle - 2 * unit])), [3.0, -2.0])
    assert score(positive).mean() == pytest.approx(-score(negative).mean())
    assert score(positive).mean() > 1


@pytest.mark.parametrize("method", ALL)
def test_separable_states_are_told_apart_without_having_been_seen(method: Method) -> None:
    assert held_out_auc(*gaussians(20, 100, 12.0), method) == 1.0


@pytest.mark.parametrize("method", ALL)
def test_on_noise_held_out_separation_is_chance_where_seen_states_would_all_be_told_apart(
    method: Method,
) -> None:
    seen, held_out = [], []
    for seed in range(30):
        positive, negative = gaussians(15, 200, 0.0, seed)
        score = projection(positive, negative, method)
        seen.append(np.mean(score(positive)[:, None] > score(negative)))
        held_out.append(held_out_auc(positive, negative, method))
    if method != "pca":
        assert min(seen) > 0.9
    assert abs(np.mean(held_out) - 0.5) < 4 * np.std(held_out) / np.sqrt(30)
    assert np.std(held_out) < 0.2


def test_the_held_out_separation_of_two_gaussians_is_the_one_of_theory() -> None:
    """Along the mean difference d Phi(d.d / sqrt(2 d.S.d)), whitened Phi(sqrt(d.S^-1.d / 2))."""
    positive, negative, d, covariance = correlated(700)
    along = d @ d / sqrt(2 * d @ covariance @ d)
    best = sqrt(d @ np.linalg.solve(covariance, d) / 2)
    theory = {k: (1 + erf(z / sqrt(2))) / 2 for k, z in (("mean", along), ("best", best))}
    assert theory["best"] - theory["mean"] > 0.1
    for method, wanted in (
        ("mean_difference", "mean"),
        ("whitened_mean_difference", "best"),
        ("logistic_regression", "best"),
    ):
        found = held_out_auc(positive, negative, method)  # type: ignore[arg-type]
        assert found == pytest.approx(theory[wanted], abs=0.03)


def test_a_pairs_two_sides_are_held_out_together() -> None:
    """What a pair has in common says nothing of its sides, though it makes states alike."""
    rng = np.random.default_rng(0)
    pairs = 50 * np.eye(12)
    found = []
    for _ in range(20):
        noise = rng.standard_normal((2, 12, 12))
        found.append(held_out_auc(pairs + noise[0], pairs + noise[1], "logistic_regression"))
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)


def test_of_one_pair_nothing_can_be_held_out_and_of_two_it_can() -> None:
    positive, negative = gaussians(2, 6, 50.0)
    assert np.isnan(held_out_auc(positive[:1], negative[:1], "mean_difference"))
    assert held_out_auc(positive, negative, "mean_difference") == 1.0


# --- as ways to extract ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_extracted_vectors_are_the_methods_direction_of_the_pairs_states(method: Method) -> None:
    model, layers = tiny_model(), [1, LAYERS - 1]
    prompts = [model.chat.prompt_ids(p.prompt, p.system) for p in PAIRS]
    texts = [
        [model.chat.response_ids(p.positive), model.chat.response_ids(p.negative)] for p in PAIRS
    ]
    states = response_states(model, prompts, texts, layers)
    vectors = extract(model, BEHAVIOR, layers, method=method)
    assert vectors.metadata.method == method
    for layer in layers:
        positive, negative = (
            np.stack([pair[side][layer][-1].astype(np.float64) for pair in states])
            for side in (0, 1)
        )
        wanted = METHODS[method](positive, negative)
        assert np.linalg.norm(vectors[layer].array - wanted) < 1e-4 * np.linalg.norm(wanted)
        apart = pair_states(model, BEHAVIOR, layers).separation(method)
        assert apart[layer] == held_out_auc(positive, negative, method)


def test_shuffled_sides_are_said_in_the_methods_name() -> None:
    states = pair_states(tiny_model(), BEHAVIOR, [2], shuffle_seed=1)
    assert states.vectors("pca").metadata.method == "pca of shuffled sides"
