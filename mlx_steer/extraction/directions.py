"""Directions that tell two groups of hidden states apart; small pure functions, chosen by name.

Each takes float64 arrays of shape (n, hidden_size), positive and negative, and returns one of shape
(hidden_size,) that points from negative to positive. Knows numpy and scikit-learn, never mlx.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mlx_steer.stats import auc
from mlx_steer.words import Method

Float64 = NDArray[np.float64]


def mean_difference(positive: Float64, negative: Float64) -> Float64:
    """mean(positive) - mean(negative), not normalised (CAA; Rimsky et al. 2024)."""
    difference: Float64 = positive.mean(axis=0) - negative.mean(axis=0)
    return difference


def whitened_mean_difference(positive: Float64, negative: Float64) -> Float64:
    """The mean difference through the inverse covariance within the groups, at its own norm.

    Fisher's linear discriminant; the covariance is shrunk after Ledoit and Wolf (2004), since there
    are fewer states than dimensions. Scaled to the norm of the mean difference, so that strengths
    mean the same under both.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    difference = mean_difference(positive, negative)
    centred = np.concatenate([positive - positive.mean(axis=0), negative - negative.mean(axis=0)])
    count, size = centred.shape
    shrinkage = max(float(ledoit_wolf_shrinkage(centred, assume_centered=True)), 1e-6)
    ridge = shrinkage * max(float((centred**2).sum()) / count / size, 1e-30)
    # Woodbury: the inverse of ridge + centred' centred is found among few states, not in a
    # matrix of hidden_size x hidden_size.
    scaled = centred * np.sqrt((1 - shrinkage) / count)
    inner = ridge * np.eye(count) + scaled @ scaled.T
    whitened = (difference - scaled.T @ np.linalg.solve(inner, scaled @ difference)) / ridge
    return _at_norm_of(whitened, difference)


def logistic_regression(positive: Float64, negative: Float64) -> Float64:
    """The weights of an L2-regularised logistic regression, at the norm of the mean difference.

    A linear probe (Alain and Bengio 2016; as a steering direction in Li et al. 2023). States are
    scaled as a whole, not by dimension, so that the weights are a direction of the hidden state.
    """
    from sklearn.linear_model import LogisticRegression

    states = np.concatenate([positive, negative])
    centred = states - states.mean(axis=0)
    scale = max(float(np.sqrt((centred**2).sum(axis=1).mean())), 1e-30)
    labels = np.arange(len(states)) < len(positive)
    # The weights lie in the span of the states, so they are found in its few coordinates.
    basis, coordinates = np.linalg.qr(centred.T)
    probe = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
    probe.fit(coordinates.T / scale, labels)
    return _at_norm_of(basis @ probe.coef_[0], mean_difference(positive, negative))


def pca(positive: Float64, negative: Float64) -> Float64:
    """The first principal component of the paired differences, at the norm of their mean.

    Representation engineering (Zou et al. 2023). Its sign is fixed by the pairs: positive states
    project higher. Row i of both arrays must belong to pair i.
    """
    differences = positive - negative
    both = np.concatenate([differences, -differences])
    _, _, components = np.linalg.svd(both, full_matrices=False)
    first = components[0]
    if (differences @ first).mean() < 0:
        first = -first
    return _at_norm_of(first, mean_difference(positive, negative))


METHODS: dict[Method, Callable[[Float64, Float64], Float64]] = {
    "mean_difference": mean_difference,
    "whitened_mean_difference": whitened_mean_difference,
    "logistic_regression": logistic_regression,
    "pca": pca,
}


FOLDS = 5


def held_out_auc(positive: Float64, negative: Float64, method: Method) -> float:
    """Area under the ROC curve of states along directions that were made without them.

    Args:
        positive: Shape (n, hidden_size).
        negative: Shape (n, hidden_size); row i belongs to pair i, and pairs are held out together.
        method: How directions are made.

    Returns:
        0.5 is chance; nan with fewer than two pairs.
    """
    folds = min(FOLDS, len(positive))
    if folds < 2:
        return float("nan")
    fold_of = np.arange(len(positive)) % folds
    scores: list[float] = []
    labels: list[bool] = []
    for fold in range(folds):
        seen, held = fold_of != fold, fold_of == fold
        score = projection(positive[seen], negative[seen], method)
        for states, label in ((positive, True), (negative, False)):
            scores += score(states[held]).tolist()
            labels += [label] * int(held.sum())
    return auc(scores, labels)


def projection(
    positive: Float64, negative: Float64, method: Method
) -> Callable[[Float64], Float64]:
    """The signed distance of states from the middle of two groups, along a unit direction.

    Taken from the middle, scores of directions made from different folds have one origin.
    """
    direction = METHODS[method](positive, negative)
    unit = direction / max(float(np.linalg.norm(direction)), 1e-30)
    middle = (positive.mean(axis=0) + negative.mean(axis=0)) / 2

    def score(states: Float64) -> Float64:
        distances: Float64 = (states - middle) @ unit
        return distances

    return score


def _at_norm_of(direction: Float64, model: Float64) -> Float64:
    size = float(np.linalg.norm(direction))
    return direction if size == 0 else direction * (np.linalg.norm(model) / size)
