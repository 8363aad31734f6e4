"""Scores against labels: the area under the ROC curve, its points, and thresholds."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_steer.stats.arguments import (
    Booleans,
    Numbers,
    booleans,
    check_probabilities,
    numbers,
    same_length,
)
from mlx_steer.stats.intervals import CONFIDENCE, Rate, wilson


@dataclass(frozen=True)
class Interval:
    """A value in [0, 1] with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve from (0, 0) to (1, 1): both rates, threshold by threshold."""

    false_positive_rates: list[float]
    true_positive_rates: list[float]


def auc(scores: Numbers, labels: Booleans) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties half.

    Equal to the Mann-Whitney U statistic over the number of pairs (Hanley and McNeil 1982).

    Raises:
        ValueError: If lengths differ, a score is not finite, or one of the two classes is missing.
    """
    # scikit-learn adds up trapezoids, and equal areas may differ in the last digit (1/3 of 3 and 3
    # scores in two ways): the choice among a gate's candidates would hang on that. It takes 30
    # times as long, too.
    from scipy.stats import rankdata

    values, positive = _scored("the area under the ROC curve", scores, labels)
    positives = int(np.count_nonzero(positive))
    u = float(rankdata(values)[positive].sum()) - positives * (positives + 1) / 2
    return u / (positives * (values.size - positives))


def auc_interval(
    area: float, positives: int, negatives: int, confidence: float = CONFIDENCE
) -> Interval:
    """The interval of an area under the ROC curve (Newcombe 2006, part 2, method 5).

    A score interval: it has width at an area of 1, too, where a bootstrap has none.

    Args:
        area: What `auc` gave.
        positives: How many positive scores it is of, at least one.
        negatives: How many negative ones, at least one.
        confidence: Coverage, between 0 and 1.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if not (0 <= area <= 1 and positives >= 1 and negatives >= 1):
        raise ValueError(f"There is no interval of {area} from {positives} and {negatives} scores.")
    z, extra = float(norm.ppf((1 + confidence) / 2)), (positives + negatives) / 2 - 1

    def excess(true: float) -> float:
        inner = 1 + extra * ((1 - true) / (2 - true) + true / (1 + true))
        return (area - true) ** 2 - z**2 * true * (1 - true) * inner / (positives * negatives)

    # At 0 and 1 the curve touches zero at the area itself: the other root is the bound.
    low = 0.0 if area == 0 else float(brentq(excess, 0.0, min(area, 1 - 1e-9)))
    high = 1.0 if area == 1 else float(brentq(excess, max(area, 1e-9), 1.0))
    return Interval(area, low, high)


def roc_curve(scores: Numbers, labels: Booleans) -> RocCurve:
    """Points of the ROC curve, thresholds descending; tied scores share one point.

    The trapezoids under these points add up to `auc`.

    Raises:
        ValueError: If lengths differ, a score is not finite, or one of the two classes is missing.
    """
    from sklearn.metrics import roc_curve as points_of

    values, positive = _scored("an ROC curve", scores, labels)
    false, true, _ = points_of(positive, values, drop_intermediate=False)
    return RocCurve(false.tolist(), true.tolist())


def threshold_for_fpr(negative_scores: Numbers, rate: float) -> tuple[float, Rate]:
    """Lowest threshold that lets at most a share `rate` of the negatives score above it.

    Args:
        negative_scores: Scores of what should not count as positive. A score is positive when it
            lies *above* the threshold, so the threshold is one of these scores (-inf at rate 1).
        rate: False positive rate allowed, in [0, 1].

    Returns:
        The threshold, and the false positive rate it has on these scores, with its Wilson interval.
        On new scores the rate tends to be a little higher, since the threshold was chosen on these.

    Raises:
        ValueError: If there are no scores, one is not finite, or rate is not in [0, 1].
    """
    values = np.sort(numbers("negative_scores", negative_scores))[::-1]
    check_probabilities([rate], "rate")
    # 0.29 * 100 is 28.999999999999996 in floating point; 29 of 100 are allowed all the same.
    allowed = math.floor(rate * values.size + 1e-9)
    threshold = float(values[allowed]) if allowed < values.size else -math.inf
    return threshold, wilson(int(np.count_nonzero(values > threshold)), values.size)


def _scored(
    what: str, scores: Numbers, labels: Booleans
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values, positive = numbers("scores", scores), booleans("labels", labels)
    same_length(values, positive)
    if positive.all() or not positive.any():
        missing = "negative" if positive.all() else "positive"
        raise ValueError(f"There is no {missing} label: {what} needs both.")
    return values, positive
